"""A probe shows that the tap works while no client says anything.

The backup looks for it: what clients send goes to the service, and the tap should bring it here, too. With the clone
tap the probe goes to the primary, whose rules clone it as they clone what a client sends; with a multicast MAC address
the backup asks the primary to send one to that address, where clients' packets go. It is a reset from port 0, of a
connection that nobody can have (wire/tap_probe.py): the primary's TCP lets it go, and here it ends in the queue.

It is sent only while the tap brings nothing else, and the primary protects connections. What it finds is said, and
nothing more follows: the tap is judged by what clients send as soon as they do (core/shadow/tap.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import SendProbe
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.link import Link
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.tap import TapWatch
from nfq_failover.wire.records import ProbeAsked
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tap_probe import is_probe

FIRST_S: Final = 5.0  # after the primary has begun to protect
EVERY_S: Final = 10.0
WAIT_S: Final = 1.0
MISSED: Final = 3  # probes in succession
SENDS_APART_S: Final = 0.5  # of a primary that is asked for them
SOURCE: Final = "tap-probe"
CODE: Final = "tap-silent"


class TapProbe:
    """The probes of one host, in either part. `link`: to the host that this one shadows; `rng(n)` returns n random
    bytes."""

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        members: Membership,
        link: Link,
        tap: TapWatch,
        rng: Callable[[int], bytes],
    ) -> None:
        self._out = out
        self._members = members
        self._link = link
        self._tap = tap
        self._rng = rng
        self._multicast = settings.tap == "multicast"
        self._next: float | None = None
        self._waiting: int | None = None  # the token of the probe that is under way
        self._heard = 0
        self._missed = 0
        self._sent_at = float("-inf")

    # ------------------------------------------------------------------------------------ on the backup

    def on_timer(self, now: float) -> None:
        """Send a probe if it is time, and judge those that were sent."""
        if not self._useful:
            if self._next is not None:
                self._next = self._waiting = None
                self._missed = 0
                self._out.concerns.replace(SOURCE, (), now)
            return
        if self._next is None:
            self._next = now + FIRST_S
        if now < self._next:
            return
        heard, self._heard = self._heard, self._tap.heard
        if self._heard != heard:  # clients' packets show it as well
            self._well(now)
            return
        if self._waiting is not None:
            self._lost(now)
        self._send(now)

    @property
    def _useful(self) -> bool:
        """Whether a probe would come back: from a primary that protects, and is of a version that knows of probes."""
        told = self._link.told
        return (
            self._members.state is State.SHADOWING
            and self._link.view.state is State.PROTECTED
            and told.facts is not None
            and "records" in told.facts
            and ProbeAsked.number not in told.lacks
            and (self._multicast or bool(told.hardware))
        )

    def _send(self, now: float) -> None:
        token = int.from_bytes(self._rng(4))
        self._waiting, self._next = token, now + WAIT_S
        self._out.counters["tap-probes-sent"] += 1
        if self._multicast:
            self._link.lane.append(ProbeAsked(token))
        else:
            self._out.effects.append(SendProbe(token, self._link.told.hardware))

    def came(self, seg: Segment, now: float) -> None:
        """A segment has come that is for no connection: perhaps the probe."""
        if self._waiting is None or not is_probe(seg) or seg.seq != self._waiting:
            return
        self._out.counters["tap-probes-came"] += 1
        self._well(now)

    def _well(self, now: float) -> None:
        self._waiting, self._next = None, now + EVERY_S
        self._missed = 0
        self._out.concerns.over(SOURCE, CODE, now)

    def _lost(self, now: float) -> None:
        self._missed += 1
        if self._missed >= MISSED:
            self._out.concerns.raised(SOURCE, _silent(self._link.peer.name, self._multicast), now)

    # ------------------------------------------------------------------------------------ on the primary

    def asked(self, record: ProbeAsked, now: float) -> None:
        """The backup wants a probe at the address where the clients' packets go."""
        primary = self._members.role is Role.PRIMARY
        if primary and self._multicast and now - self._sent_at >= SENDS_APART_S:
            self._sent_at = now
            self._out.effects.append(SendProbe(record.token, b""))


def _silent(primary: str, multicast: bool) -> Concern:
    what = f"no client says anything, and of {MISSED} probes to the service none has come by the tap"
    if multicast:
        cure = "see whether the switch floods the multicast MAC address ('tap_mac') to this host's port, and whether "
        cure += "this host's network card and firewalls let it in: after a takeover clients would not reach it either"
        return Concern(CODE, Weight.DEGRADED, what, cure)
    cure = f"see whether {primary} clones to this host's MAC address ('mac' in its [[peer]]), and whether the switch "
    cure += "and the firewalls of both hosts let the service's packets pass"
    return Concern(CODE, Weight.WARNING, what, cure)
