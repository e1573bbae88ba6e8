"""TCP conformance cases: what a client does to the service, and a transcript of what the service answers.

A transcript holds relative numbers and no times but classes of them ("soon", "growing"), so it has to be the same with
and without protection, and after a takeover. `must` are lines that it has to have anywhere: what the RFCs demand.
A case marked `lives` has an established connection, and `env.cross` is where a takeover may happen under it; one marked
`alone` changes the server's host for the others.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from nfq_failover.constants import ACK, FIN, RST
from nfq_failover.wire.tcp_options import SynOptions, each_option
from tests.netns.conformance.client import End, Seen, content_digest

CLOSED_PORT: Final = 7055
# Beyond what a survivor has to believe, since it can't know how far the primary had come (docs/design/conformance.md).
NEVER_SENT: Final = 1_500_000_000
Transcript = list[str]


class Env(Protocol):
    """Where a case runs."""

    def end(self, port: int | None = None, source_port: int | None = None) -> End:
        """A client's end."""

    def cross(self, end: End) -> None:
        """The takeover, if there is one here; then the byte that the server waits for. Numbers count from there."""

    def gate(self) -> Path:
        """A file that does not exist yet, for the server's step `gate`."""

    def quoted(self, seq: int) -> int:
        """A raw sequence number of the service as the serving kernel knows it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A named case."""

    name: str
    run: Callable[[Env], Transcript]
    lives: bool
    must: tuple[str, ...]
    alone: bool = False


CASES: Final[list[Case]] = []


def case(
    *must: str, lives: bool = True, alone: bool = False
) -> Callable[[Callable[[Env], Transcript]], Callable[[Env], Transcript]]:
    """Registers a case under its function's name."""

    def register(run: Callable[[Env], Transcript]) -> Callable[[Env], Transcript]:
        CASES.append(Case(run.__name__, run, lives, must, alone))
        return run

    return register


def said(segments: Sequence[Seen]) -> str:
    """What these segments say, however it is divided into segments."""
    if not segments:
        return "nothing"
    parts = []
    covered: list[tuple[int, int]] = []
    for left, right in sorted((one.seq, one.seq + one.length) for one in segments if one.length):
        if covered and left <= covered[-1][1]:
            covered[-1] = (covered[-1][0], max(right, covered[-1][1]))
        else:
            covered.append((left, right))
    parts += [f"data {left}..{right}" for left, right in covered]
    for one in segments:
        if one.flags & RST and "rst" not in " ".join(parts):
            parts.append(f"rst at {one.seq}" + (f" ack {one.ack}" if one.flags & ACK else ""))
    for at in sorted({one.seq + one.length for one in segments if one.flags & FIN}):
        parts.append(f"fin at {at}")
    plain = [one for one in segments if not one.flags & RST]
    if plain:
        parts.append(f"ack {max(one.ack for one in plain)}")
        twice = {f"dsack {one.sack[0][0]}..{one.sack[0][1]}" for one in plain if is_dsack(one)}
        parts += sorted(twice)
        newest = next((one for one in reversed(plain) if one.sack), plain[-1])
        rest = newest.sack[1:] if is_dsack(newest) else newest.sack
        parts += [f"sack {left}..{right}" for left, right in rest]
    return ", ".join(parts)


def is_dsack(one: Seen) -> bool:
    """Whether the first block reports a duplicate (RFC 2883 section 4)."""
    if not one.sack:
        return False
    left, right = one.sack[0]
    return left < one.ack or any(a <= left and right <= b for a, b in one.sack[1:])


def granted(one: Seen) -> str:
    """The options of a SYN-ACK."""
    options = SynOptions.parse(one.raw.options())
    kinds = sorted({kind for kind, _, _ in each_option(one.raw.options())})
    return f"options {kinds}, mss {options.mss}, scale {options.wscale}"


def bare(text: str) -> str:
    """Without the sequence number of an RST that answers a segment without an acknowledgement: it is 0 on the wire of a
    plain host (RFC 9293 section 3.10.7.1), and what the lab's scrambler makes of 0 otherwise."""
    return re.sub(r"rst at -?\d+ ack", "rst, ack", text)


def answer(end: End, *emit: Callable[[], object], until: Callable[[Seen], bool] = lambda one: True) -> str:
    """What comes after these, up to the first segment that is waited for."""
    end.mark()
    for one in emit:
        one()
    end.wait(until, 5.0)
    return said(end.since())


def selectively(end: End, emit: Callable[[], object], *wanted: tuple[int, int]) -> str:
    """The acknowledgement with these SACK blocks, in this order. The segment is sent again until it comes.

    (An ACK waits 2 ms for the backup's confirmation of its blocks; what comes later is said with the next ACK.)
    """

    def fits(one: Seen) -> bool:
        return (one.sack[1:] if is_dsack(one) else one.sack) == wanted

    end.mark()
    for _ in range(10):
        emit()
        found = end.wait(fits, 0.7)
        if found is not None:
            return re.sub(r"dsack \d+\.\.\d+, ", "", said([found]))
    return said(end.since())


def growing(times: Sequence[float]) -> str:
    """How the intervals between these times go on, after the first (which may be a tail loss probe)."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)][1:]
    if len(gaps) < 2:
        return f"only {len(times)} times"
    return "growing" if all(after > 1.4 * before for before, after in itertools.pairwise(gaps)) else "even"


def established(env: Env, *steps: list[object], options: bytes | None = None) -> End:
    """A connection whose server is about to do the steps, behind the takeover."""
    end = env.end()
    end.open(*steps, options=options)
    env.cross(end)
    return end


def digest_is(end: End, data: bytes) -> str:
    """Whether the server has read these bytes."""
    return "the digest is right" if end.receive(64).decode() == content_digest(data) else "the digest is wrong"


def alive(end: End) -> str:
    """Whether the server still echoes."""
    before = len(end.received())
    end.send(b"alive")
    end.wait_for(lambda: len(end.received()) >= before + 5)
    return end.received()[before:].decode(errors="replace")
