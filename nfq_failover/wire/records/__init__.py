"""The records that two hosts exchange inside sync datagrams: one module for each dialogue; see base.py for what one is.

Importing this package declares them all. What each module lists in `__all__` is a part of the package.
"""

from nfq_failover.wire.records.base import *
from nfq_failover.wire.records.closing import *
from nfq_failover.wire.records.digests import *
from nfq_failover.wire.records.handover import *
from nfq_failover.wire.records.host import *
from nfq_failover.wire.records.opening import *
from nfq_failover.wire.records.pace import *
from nfq_failover.wire.records.state import *
from nfq_failover.wire.records.stream import *
