"""Whether connections get a replica at all. One that does not may have a reason of its own; if it is the same with each
that a client opens at a port, then something is wrong with this host, and a takeover would end them all.

The application may have no more files to open, its queue of connections may be full, it may listen in another network
namespace, a rule or a sysctl may drop what is injected, it may turn away whom it does not know. Nobody can look for all
of that, so what comes of it is watched: a replica whose SYN has no answer, or is refused, or that is closed as soon as
it is open while the server goes on. What does not tell: a client that does not complete its handshake, or is gone
before its replica is there, and a replica that is late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from nfq_failover.core import ports
from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.wire.segment import FlowKey

SOURCE = "missing"
CODE = "replicas-missing"
ENOUGH = 3  # connections in a row
SPAN_S = 3.0  # between the first of them and the last: a restart, or a peak of load, takes less
WAIT_S = 0.75  # a kernel that has time answers a SYN at once
AT_ONCE_S = 1.0  # an application that turns a connection away does so within this time
MOST_OPEN = 64  # of a row: it takes one to know that it goes on
_LOOK_MAX_S = 0.5  # a longer time between two looks was a pause of this host
_PORTS_BYTES = 60


class How(Enum):
    """What has come of the replica's SYN: what people are told, and what helps."""

    SILENT = (
        "their SYNs had no answer",
        "see whether the application accepts connections (limit of open files; ss -ltn: Recv-Q above Send-Q), and "
        "whether anything drops what comes over lo (iptables-save, nft list ruleset)",
    )
    REFUSED = (
        "their SYNs were refused by RST",
        "let the application listen at the service address, in the network namespace of this host; see whether a rule "
        "rejects what comes over lo (iptables-save, nft list ruleset)",
    )
    CLOSED = (
        "the application closed them at once",
        "see the application's log on this host: a limit of connections, a list of whom it lets in (hosts.deny), "
        "something that it does not get here",
    )


@dataclass(slots=True)
class Entry:
    """A connection whose replica has not answered since then, or has lived since then."""

    connection: ShadowConnection
    since: float
    refused: bool = False


@dataclass(slots=True)
class Row:
    """The latest connections at a port, of which none got a replica. `first`, `last`: when they began to wait for it.
    `open`: those that the primary still serves."""

    first: float
    last: float
    how: How
    count: int = 0
    open: set[int] = field(default_factory=set)

    def add(self, entry: Entry, how: How) -> None:
        """One more."""
        self.count += 1
        self.how = how
        self.last = max(self.last, entry.since)
        if len(self.open) < MOST_OPEN:
            self.open.add(entry.connection.conn)


class MissingReplicas:
    """Watches what comes of each opening; `flows` is the table's. Its clock stands still while this host is paused."""

    def __init__(self, out: Outbox, flows: Mapping[FlowKey, ShadowConnection]) -> None:
        self.out = out
        self._flows = flows
        self._waiting: dict[int, Entry] = {}  # by number: for the replica's answer
        self._young: dict[int, Entry] = {}
        self._rows: dict[int, Row] = {}  # by port
        self._lacking: dict[int, Row] = {}  # by number: those in a row that the primary still serves
        self._clock = 0.0
        self._looked_at: float | None = None
        self._had_at = float("-inf")  # when a connection has got a replica, at any port

    # ------------------------------------------------------------------------------------ what comes of each

    def opened(self, connection: ShadowConnection) -> None:
        """The client's SYN is delivered for the first time."""
        self._waiting[connection.conn] = Entry(connection, self._clock)

    def refused(self, connection: ShadowConnection) -> None:
        """Our TCP has answered it by a reset."""
        if (entry := self._waiting.get(connection.conn)) is not None:
            entry.refused = True

    def answered(self, connection: ShadowConnection) -> None:
        """Our TCP has answered it."""
        self._waiting.pop(connection.conn, None)
        row = self._rows.get(connection.flow[3])
        if row is not None and row.how is not How.CLOSED:
            self._had(connection.flow[3])
        self._young[connection.conn] = Entry(connection, self._clock)

    def over(self, conn: int) -> None:
        """The primary has it no more."""
        waiting, young = self._waiting.pop(conn, None), self._young.pop(conn, None)
        if waiting is not None:
            self._judge(waiting)
        elif young is not None and young.connection.ended:
            self._had(young.connection.flow[3])
        if (row := self._lacking.pop(conn, None)) is not None:
            row.open.discard(conn)

    def _judge(self, entry: Entry) -> bool:
        """Whether the connection has waited for its replica in vain, which is noted then."""
        connection = entry.connection
        established = connection.output.snd_una >= 0 or connection.unready is not None
        if self._clock - entry.since < WAIT_S or not (entry.refused or established):
            return False
        self._miss(entry, How.REFUSED if entry.refused else How.SILENT)
        return True

    def _miss(self, entry: Entry, how: How) -> None:
        port = entry.connection.flow[3]
        row = self._rows.setdefault(port, Row(entry.since, entry.since, how))
        row.add(entry, how)
        if entry.connection.conn in row.open:
            self._lacking[entry.connection.conn] = row

    def _had(self, port: int) -> None:
        """A connection at this port has a replica."""
        self._had_at = self._clock
        if (row := self._rows.pop(port, None)) is not None:
            for conn in row.open:
                self._lacking.pop(conn, None)

    # ------------------------------------------------------------------------------------ the host

    def look(self, where: Collection[int] | None, now: float) -> None:
        """Look what has come of them. `where`: the ports where both applications listen, so that there should be
        replicas; None: it is not known."""
        if self._looked_at is not None:
            self._clock += min(now - self._looked_at, _LOOK_MAX_S)
        self._looked_at = now
        for conn, entry in list(self._waiting.items()):
            if entry.connection.state is not Shadow.OPENING or self._judge(entry):
                del self._waiting[conn]
        for conn, entry in list(self._young.items()):
            if self._grown(entry):
                del self._young[conn]
        found = {port: row for port, row in self._rows.items() if self._lasts(row) and (where is None or port in where)}
        if found:
            self.out.concerns.raised(SOURCE, self._concern(found), now)
        else:
            self.out.concerns.over(SOURCE, CODE, now)

    def _grown(self, entry: Entry) -> bool:
        """Whether it is known what has come of a replica that had answered."""
        connection = entry.connection
        output = connection.output
        if output.fin_out is None and output.rst_out is None:
            lived = connection.state is Shadow.SHADOW and self._clock - entry.since >= AT_ONCE_S
            if lived:
                self._had(connection.flow[3])
            return lived or connection.state is not Shadow.SHADOW
        if connection.state is Shadow.SHADOW:
            return False  # the server may have ended, too: that is still to be told
        if connection.state in (Shadow.FED, Shadow.DEAD) and not connection.over:
            self._miss(entry, How.CLOSED)
        return True

    def _lasts(self, row: Row) -> bool:
        return row.count >= ENOUGH and (self._clock if row.open else row.last) - row.first >= SPAN_S

    def _concern(self, found: Mapping[int, Row]) -> Concern:
        said, cures = [], []
        for how in How:
            rows = {port: row for port, row in found.items() if row.how is how}
            if rows:
                what, cure = how.value
                count = sum(row.count for row in rows.values())
                said.append(f"the last {count} connections at {_where(rows)} got no replica: {what}")
                cures.append(cure)
        some = self._had_at >= min(row.first for row in found.values()) or any(
            each.state is Shadow.SHADOW and each.conn not in self._young for each in self._flows.values()
        )
        weight = Weight.DEGRADED if some else Weight.UNPROTECTED
        return Concern(CODE, weight, "; ".join(said), "; ".join(cures[:1]), Part.BACKUP)

    def begun(self) -> None:
        """Our application has begun to listen: what was before does not tell."""
        self._rows.clear()
        self._lacking.clear()
        self._young.clear()  # they ended with the application that was there before
        for entry in self._waiting.values():
            entry.since = self._clock

    def clear(self) -> None:
        """There is nothing that should have a replica."""
        self._waiting.clear()
        self._young.clear()
        self._rows.clear()
        self._lacking.clear()


def _where(numbers: Iterable[int]) -> str:
    said = ports.text(ports.union([(port, port) for port in numbers]))
    return said if len(said) <= _PORTS_BYTES else f"{said[:_PORTS_BYTES]}..."
