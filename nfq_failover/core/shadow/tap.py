"""What the tap brings, beside what has to be fetched from the primary.

A backup protects a connection also when its tap brings nothing: it asks the primary for every byte. But then each byte
costs the sync channel and the client's time, and nobody would notice that a rule, a switch or a link is not as it
should be. So both are counted, and compared over some seconds.

With a multicast MAC it matters more: the clients' packets come the same way after a takeover, when nobody can be asked
for them. With a deaf tap it would fail, so nothing is called protected.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.outbox import Outbox

EVERY_S: Final = 1.0
SPANS: Final = 5  # of `EVERY_S` each, that are looked at together
LOSSY_SHARE: Final = 0.05  # of the clients' bytes, fetched from the primary
WELL_SHARE: Final = 0.02
LEAST_PIECES: Final = 3  # that were missing: a tap that may have lost one packet is not called deaf for ever
LEAST_BYTES: Final = 16_384  # of a share of fewer bytes nothing follows
SOURCE: Final = "tap"
DEAF: Final = "tap-deaf"
LOSSY: Final = "tap-lossy"


@dataclass(slots=True)
class Span:
    """What has come in some time: packets and bytes by the tap; bytes that were fetched, in how many pieces; and how
    often the primary was asked for an acknowledgement that the tap had not brought."""

    packets: int = 0
    tapped: int = 0
    fetched: int = 0
    pieces: int = 0
    unheard: int = 0

    def __add__(self, other: Span) -> Span:
        return Span(
            self.packets + other.packets,
            self.tapped + other.tapped,
            self.fetched + other.fetched,
            self.pieces + other.pieces,
            self.unheard + other.unheard,
        )


class TapWatch:
    """Counts, and judges once a second. `share`: of the clients' bytes in the last seconds, what was fetched.

    `heard`: how many packets the tap has brought, until the last second.
    """

    def __init__(self, out: Outbox, multicast: bool = False) -> None:
        """`multicast`: after a takeover the clients' packets come the same way."""
        self.out = out
        self._multicast = multicast
        self.share = 0.0
        self.heard = 0
        self._span = Span()
        self._spans: deque[Span] = deque(maxlen=SPANS)
        self._next = self._judged_at = 0.0

    def came(self, size: int) -> None:
        """The tap has brought a segment of a connection in the shadow, with `size` bytes."""
        span = self._span
        span.packets += 1
        span.tapped += size

    def fetched(self, size: int) -> None:
        """The primary has sent bytes that the tap had not brought."""
        self._span.fetched += size
        self._span.pieces += 1

    def unheard(self) -> None:
        """The primary was asked to make a client acknowledge again."""
        self._span.unheard += 1

    def on_timer(self, now: float) -> None:
        """Judge, if it is time."""
        if now < self._next:
            return
        self._next, self._judged_at = now + EVERY_S, now
        self._spans.append(self._span)
        self.heard += self._span.packets
        self._span = Span()
        seen = sum(self._spans, Span())
        total = seen.tapped + seen.fetched
        if not total and not seen.unheard:
            return  # nobody has sent anything: what was found stands
        self.share = seen.fetched / total if total else 0.0
        deaf = not seen.packets
        lossy = not deaf and seen.fetched >= LEAST_BYTES and self.share > LOSSY_SHARE
        if deaf:
            self.out.concerns.raised(SOURCE, _deaf(seen, self._multicast), now)
        else:
            self.out.concerns.over(SOURCE, DEAF, now)
        if lossy:
            self.out.concerns.raised(SOURCE, _lossy(seen, self.share), now)
        elif deaf or self.share < WELL_SHARE:
            self.out.concerns.over(SOURCE, LOSSY, now)

    def clear(self) -> None:
        """This host shadows nobody any more, or somebody else."""
        self._spans.clear()
        self._span = Span()
        self.share = 0.0
        self.out.concerns.replace(SOURCE, (), self._judged_at)


def _deaf(seen: Span, multicast: bool) -> Concern:
    what = f"the tap has brought no packet of a client for {SPANS * EVERY_S:.0f} s, while "
    what += f"{seen.fetched} bytes of theirs had to be fetched" if seen.fetched else "clients have acknowledged data"
    if multicast and seen.pieces + seen.unheard >= LEAST_PIECES:
        what += ": after a takeover they would not reach this host either"
        cure = "see whether the switch floods the multicast MAC address ('tap_mac') to this host's port (IGMP snooping "
        cure += "may not), and whether this host's network card and firewalls let it in"
        return Concern(DEAF, Weight.UNPROTECTED, what, cure)
    cure = "see whether the primary clones to this host's MAC address ('mac' in its [[peer]]), and whether the switch "
    cure += "and the firewalls let the service's packets reach this host"
    return Concern(DEAF, Weight.DEGRADED, what, cure)


def _lossy(seen: Span, share: float) -> Concern:
    what = f"{share:.0%} of the clients' bytes ({seen.fetched} in {SPANS * EVERY_S:.0f} s) had to be fetched from the "
    what += "primary, since the tap did not bring them, or too late: the clients wait for that"
    cure = "see whether this host's link is slower than the clients' together, and whether its packet queue or network "
    cure += "card drops packets"
    return Concern(LOSSY, Weight.DEGRADED, what, cure)
