"""`python -m nfq_failover` is the command line."""

import sys

from nfq_failover.cli import main

sys.exit(main())
