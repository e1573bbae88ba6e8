"""Whether this host's application has got all that the clients have sent: if not, what it answers may be wrong, also on
connections whose own replica is in step.

The primary knows most of it: it sees what clients send on connections that have no replica (core/gate/missed.py), and
says so. Here is added what was logged and could not be delivered. An application that has missed input counts as whole
again when it has been restarted, which its listening sockets tell: none of those is left that were seen next after it
had missed something (so they are looked at at once then). Or an operator says so. Each such life has a number
(`instance`), by which the primary knows what its count is about.
"""

from __future__ import annotations

from zlib import crc32

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.outbox import Outbox
from nfq_failover.wire.records import InputMissed, Whole, WholeSaid
from nfq_failover.wire.segment import FlowKey

TELL_EVERY_S = 1.0
CODE = "input-missed"
SOURCE = "wholeness"
CURE = (
    "make the application here equal to the one that serves, or restart it, if it then takes over the other's state; "
    "after the former: nfq-failover replica-is-whole"
)
_STEP = 0x9E3779B1  # from one number to the next: any odd number reaches them all


class Wholeness:
    """What this host's application has missed. `shared`: its connections have state in common."""

    def __init__(self, out: Outbox, shared: bool) -> None:
        self.out = out
        self._shared = shared
        self.instance = 0  # 0: its sockets have not been looked at yet
        self._told = 0
        self._own: set[int] = set()  # connections, by number
        self._unsaid: list[tuple[FlowKey, str]] = []
        self._reason = ""
        self._at_miss: frozenset[int] | None = None  # not looked at since it has missed something
        self._next = 0.0

    @property
    def missed(self) -> int:
        """Of how many connections it has missed input, at the least: both hosts may have seen the same one."""
        return max(self._told, len(self._own))

    @property
    def wants_look(self) -> bool:
        """Whether it has missed something, and its sockets have not been looked at since."""
        return self._at_miss is None and self.missed > 0

    # ------------------------------------------------------------------------------------ what is missing

    def lacks(self, conn: int, flow: FlowKey, reason: str) -> None:
        """What the client of a connection has sent could not be delivered. `review` sees to it."""
        if conn not in self._own:
            self._own.add(conn)
            self.out.counters["input-missed-here"] += 1
            self._unsaid.append((flow, reason))
            self._at_miss = None

    def review(self, now: float) -> None:
        """Say what is not said yet."""
        for flow, reason in self._unsaid:
            self.out.mishaps.note("input missed here", reason, flow, now)
            self._note(reason, now)
        self._unsaid.clear()

    def on_missed(self, record: InputMissed, now: float) -> None:
        """The primary tells what was sent on connections that have no replica here."""
        if record.instance == self.instance and record.count > self._told:
            self._told = record.count
            self._note("the primary has told so", now)
        self._tell()

    def _note(self, reason: str, now: float) -> None:
        self._at_miss, self._reason = None, reason
        if self._shared:
            what = f"the replica has missed input of {self.missed} connections ({self._reason})"
            self.out.concerns.raised(SOURCE, Concern(CODE, Weight.DEGRADED, what, CURE), now)
        self._next = now

    # ------------------------------------------------------------------------------------ whole again

    def sockets(self, inodes: frozenset[int], now: float) -> None:
        """The application's listening sockets, as they are now; none: it is not there."""
        if not self.instance:
            self.instance = crc32(repr(sorted(inodes)).encode()) or 1
        if not self.missed:
            return
        if self._at_miss is None:
            # What was seen before proves nothing: this life of the application may have begun before it missed that.
            self._at_miss = inodes
        elif inodes and not inodes & self._at_miss:
            self._whole("it has been restarted", now)

    def said(self, now: float) -> None:
        """An operator says that the application is whole."""
        self._whole("an operator says so", now)

    def on_said(self, record: WholeSaid, now: float) -> None:
        """An operator has said so on the primary."""
        if record.instance == self.instance:
            self.said(now)
        self._tell()

    def _whole(self, why: str, now: float) -> None:
        if self.missed:
            self.out.log("warning", "the application counts as whole", reason=why, missed=self.missed)
        self._told = 0
        self._own.clear()
        self._unsaid.clear()
        self.instance = (self.instance + _STEP) & 0xFFFFFFFF or 1
        self.out.concerns.over(SOURCE, CODE, now)
        self._next = now

    # ------------------------------------------------------------------------------------ the primary

    def _tell(self) -> None:
        if self.instance:
            self.out.record(Whole(self.instance, self._told, self.missed))

    def on_timer(self, now: float) -> None:
        """Tell the primary, which serves and hears us."""
        if now >= self._next:
            self._next = now + TELL_EVERY_S
            self._tell()
