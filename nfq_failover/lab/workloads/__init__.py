"""The workloads of the ST-TCP paper: echo, interactive, bulk, upload. Each checks every byte.

Source: M. Marwah, S. Mishra, C. Fetzer, "TCP Server Fault Tolerance Using Connection Migration to a Backup Server",
DSN 2003, section 6, which measures echo (150 B / 150 B), interactive (150 B / 10 kB) and bulk (150 B, then 1 to
100 MB). Upload is bulk in the other direction; it is what finds faults in the acknowledgement gate.

    python -m nfq_failover.lab.workloads server --port 7000
    python -m nfq_failover.lab.workloads client bulk --host 10.77.0.100 --port 7000 --size 20M --json
"""

from __future__ import annotations
