"""What the checks of the application on this host are told to."""

from __future__ import annotations

from nfq_failover.core.events import HealthChecked
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.shadow.table import BackupSide


def note_check(event: HealthChecked, members: Membership, gate: GateTable, backup: BackupSide, now: float) -> None:
    """A check has come to an end. What follows from it comes with the next tick."""
    if event.ok:
        gate.ends.note_well(now - event.took_s)
        backup.ends.well_at = now - event.took_s
    else:
        backup.out.counters["health-check-failed"] += 1
    health = members.health
    if not health.checked(event.ok, event.detail, now):
        return
    if health.well:
        backup.out.log("info", "application well")
    else:
        backup.out.log("error", "application failed", reason=health.reason)
