"""`python -m nfq_failover.lab.measure CAPTURE` judges a client's capture."""

import sys

from nfq_failover.lab.measure.verdict import main

sys.exit(main())
