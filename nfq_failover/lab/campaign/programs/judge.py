"""What a run of a program through a crash has shown: was every promise kept?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from nfq_failover.constants import FIN, RST, SYN
from nfq_failover.lab.measure.verdict import Packet

RIGHT: Final = "right"
AS_SAID: Final = "as status had said"
PROMISE: Final = "called protected, and lost"
WRONG: Final = "wrong content"
NOT_DONE: Final = "not done"
VERDICTS: Final = (RIGHT, AS_SAID, PROMISE, WRONG, NOT_DONE)


@dataclass(frozen=True, slots=True)
class Record:
    """One run. `before`: what status said just before the crash, per reason (empty: protected) how many connections.

    `wrong`: what the check has found; `lost`: the connections that were reset, per reason. `silence_ms`: the service's
    longest silence from the crash on.
    """

    key: str
    program: str
    version: str
    tap: str
    seed: int
    verdict: str
    why: str = ""
    before: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    client_code: int | None = None
    wrong: str = ""
    crashed: str = ""
    silence_ms: float | None = None
    commit: str = ""
    finished: str = ""


UNSEEN: Final = "opened after status was asked"


def reset_ports(packets: Iterable[Packet], since: float) -> frozenset[int]:
    """The client's ports of the connections that the service has reset since that Unix time, while the client went on.

    What is answered with a reset when the client has closed is no loss: many a client ends when it has what it asked
    for, and no server has the connection any more. One that has ended only its own half, and still reads, is judged by
    what it has read: its check finds what is missing.
    """
    found, ended = set[int](), set[int]()
    for packet in packets:
        if not packet.from_service and packet.flags & (SYN | FIN | RST):
            (ended.discard if packet.flags & SYN else ended.add)(packet.client_port)
        elif packet.flags & RST and packet.time >= since and packet.client_port not in ended:
            found.add(packet.client_port)
    return frozenset(found)


def silence_ms(packets: Iterable[Packet], crashed_at: float) -> float | None:
    """The service's longest silence from the crash on; None if it said nothing more. What was on its way at the crash
    has arrived after it."""
    times = [p.time for p in packets if p.from_service]
    gaps = [later - earlier for earlier, later in pairwise(times) if later > crashed_at]
    return round(max(gaps) * 1000, 1) if gaps else None


def reasons(rows: Iterable[dict[str, Any]]) -> dict[int, str]:
    """By the client's port, what status says of a connection; empty: it is protected."""
    return {int(row["client"].rpartition(":")[2]): "" if row["protected"] else str(row["reason"]) for row in rows}


def counted(found: Iterable[str]) -> dict[str, int]:
    """How often each is there, the most frequent first."""
    return dict(Counter(found).most_common())


def judge(code: int | None, wrong: str, before: dict[int, str], lost: frozenset[int]) -> tuple[str, str]:
    """The verdict and why. `code`: the client's exit code, None if it did not end; `wrong`: what its check says;
    `before`: what was said of each connection; `lost`: which were reset."""
    if code == 0 and not wrong:
        return RIGHT, ""
    what = "the client did not end" if code is None else f"the client ended with {code}" if code else wrong
    broken = [port for port in lost if before.get(port) == ""]
    said = [before[port] for port in lost if before.get(port)]
    if broken and said:  # of two that belong together a server ends the one when the other is gone
        return AS_SAID, f"{next(iter(counted(said)))}; and its server has ended {len(broken)} that belong to it"
    if broken:
        return PROMISE, f"{what}; {len(broken)} protected connections were reset"
    said = said or [reason for reason in before.values() if reason]
    if said:
        return AS_SAID, next(iter(counted(said)))
    if not before:
        return NOT_DONE, f"{what}; no connection was open at the crash"
    if code == 0 and not lost:
        return WRONG, what
    return PROMISE, f"{what}; {UNSEEN if lost else 'nothing was reset'}"


def losses(records: Iterable[Record]) -> tuple[int, int]:
    """How many connections that were called protected have been reset, and how many there were."""
    done = [record for record in records if record.verdict != NOT_DONE]
    return sum(r.lost.get("", 0) for r in done), sum(r.before.get("", 0) for r in done)


def worst(records: Sequence[Record]) -> float | None:
    """The longest silence of the runs that went well."""
    return max((r.silence_ms for r in records if r.silence_ms is not None and r.verdict == RIGHT), default=None)
