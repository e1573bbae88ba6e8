"""Why a peer is not heard: what arrives and is refused, what does not arrive, and what the network says about it.

Anybody can send such datagrams, and some of these clues can be forged without the key. So a clue only chooses the words
in which the silence is told. It changes no state and counts for nothing once the peer is heard; those that prove the
key are told first; and however many datagrams come, a minute has as many lines in the log as there are kinds of clues.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import Undelivered
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import MalformedDatagram, WrongName
from nfq_failover.wire.datagram import VERSION, is_handshake

UNHEARD_S: Final = 1.5  # a peer that is well answers HELLO long before
FRESH_S: Final = 5.0  # how long a clue counts; the kernel gives an address without an answer up every 3 s
AGAIN_S: Final = 0.4  # nobody listens on a host that is starting: it must have been so for this long
ANEW_S: Final = 0.2  # a clue of the same kind is not looked at again for as long
LOOK_EVERY_S: Final = 0.5
REPEAT_S: Final = 60.0
CODE: Final = "peer-unheard"


class Clue(IntEnum):
    """What tells why a peer is not heard, in the order in which it is told. The first three prove the key, the fourth
    comes from our own kernel, and the next four may come from anybody."""

    NAME = 1
    SOURCE = 2
    ONE_WAY = 3
    NOT_SENT = 4
    KEY = 5
    VERSION = 6
    UNREACHABLE = 7
    NOBODY = 8
    NOTHING = 9


_ARRIVES: Final = frozenset((Clue.NAME, Clue.SOURCE, Clue.ONE_WAY, Clue.KEY, Clue.VERSION))


@dataclass(frozen=True, slots=True)
class Found:
    """A clue in words: `what` is wrong, and `cure`, what to do. `at`: when it was found, `first` at first."""

    what: str
    cure: str
    at: float
    first: float


class Diagnosis:
    """What is known of one peer that is not heard. Times are seconds of our monotonic clock."""

    def __init__(self, settings: Settings, peer: Peer, out: Outbox, now: float) -> None:
        self._name = settings.name
        self._peer = peer
        self._end = f"{peer.address}:{peer.port}"
        self._out = out
        self._source = f"link to {peer.name}"
        self._silence_s = max(UNHEARD_S, 2 * settings.detection_ms / 1000)
        self._after_s = UNHEARD_S  # until it is heard for the first time no heartbeat is due
        self._since = now
        self._sent = 0
        self._found: dict[Clue, Found] = {}
        self._told: dict[Clue, float] = {}
        self._next_look = self._next_line = now
        self._begun = self._raised = False

    # ------------------------------------------------------------------------------------ what is noticed

    def sent(self) -> None:
        """Count a datagram of a handshake that was sent."""
        self._sent += 1

    def greeted(self, now: float) -> None:
        """Note a HELLO with the right key and names. Nothing is wrong with that, if the peer then hears us."""
        self._note(
            Clue.ONE_WAY,
            f"datagrams of {self._peer.name} arrive here, but those to {self._end} do not arrive there",
            f"let UDP {self._peer.port} pass to {self._peer.name}: look at its firewall, and at its [[peer]]",
            now,
        )

    def refused(self, error: MalformedDatagram, source: tuple[str, int], data: bytes, now: float) -> None:
        """Note that a datagram from `source` was refused."""
        where = source[0] if source == (self._peer.address, self._peer.port) else f"{source[0]}:{source[1]}"
        if isinstance(error, WrongName):
            self._wrong_name(error, where, now)
        elif error.reason == "bad-mac" and is_handshake(data):
            what = f"datagrams come from {where}, but with another key"
            self._note(
                Clue.KEY, what, "copy the key file from one host to the other, and restart the daemon there", now
            )
        elif error.reason == "bad-version":
            spoken = f"version {data[0]} of the sync channel"
            what = f"datagrams come from {where}, but they speak {spoken}, this host {VERSION}"
            cure = "install the same release on both hosts; no connection is protected until then"
            self._note(Clue.VERSION, what, cure, now)

    def _wrong_name(self, error: WrongName, where: str, now: float) -> None:
        mine, its = self._name, self._peer.name
        if error.sender == mine:
            what = f"they call themselves '{mine}', which is this host's own name"
            cure = "each host has a `name` of its own, and the other's in [[peer]]"
        elif error.sender != its:
            what = f"they call themselves '{error.sender}', this host expects '{its}'"
            cure = "make `name` there and `name` in [[peer]] here the same"
        else:
            what = f"they are meant for '{error.receiver}', this host is '{mine}'"
            cure = "make `name` here and `name` in [[peer]] there the same"
        self._note(Clue.NAME, f"datagrams come from {where}, but {what}", cure, now)

    def elsewhere(self, source: tuple[str, int], now: float) -> None:
        """Note that the peer's datagrams, with its key and its name, come from where they are not expected."""
        what = f"datagrams of {self._peer.name} come from {source[0]}:{source[1]}, this host expects {self._end}"
        cure = "make `listen` there and [[peer]] here the same; nothing between the hosts may translate addresses"
        self._note(Clue.SOURCE, what, cure, now)

    def undelivered(self, why: Undelivered, now: float) -> None:
        """Note that what we send does not reach the peer, as the network or our kernel says."""
        its, port = self._peer.name, self._peer.port
        told = {
            "nobody-listens": (
                f"nobody listens at {self._end}: the daemon is not running there, or a firewall rejects",
                f"start the daemon on {its}, or make its `listen` and [[peer]] here the same",
            ),
            "no-host": (
                f"there is no way to {self._end}: nobody answers for the address",
                f"is {its} up and connected, and is its address in [[peer]] right?",
            ),
            "prohibited": (
                f"a firewall refuses what this host sends to {self._end}",
                f"let UDP {port} pass between the hosts",
            ),
        }
        if why.local or why.reason not in told:
            what = f"this host can't send to {self._end}: {why.reason}"
            cure = "look at this host's firewall, addresses and routes"
            self._note(Clue.NOT_SENT, what, cure, now)
        else:
            clue = Clue.NOBODY if why.reason == "nobody-listens" else Clue.UNREACHABLE
            self._note(clue, *told[why.reason], now)

    def _note(self, clue: Clue, what: str, cure: str, now: float) -> None:
        before = self._found.get(clue)
        if before is None or now - before.at > FRESH_S:
            self._found[clue] = Found(what, cure, now, now)
        elif now - before.at >= ANEW_S:
            self._found[clue] = Found(what, cure, now, before.first)

    # ------------------------------------------------------------------------------------ what is told

    def on_timer(self, heard_at: float, now: float) -> None:
        """Say why the peer is not heard: at once, when something else comes to light, and once a minute.

        `heard_at`: when it has last said something in a session.
        """
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_S
        if heard_at > self._since:
            self._all_well(heard_at, now)
        elif not self._begun:
            self._out.log("info", "waiting for the peer", peer=self._peer.name, address=self._end)
        self._begun = True
        if now - self._since > self._after_s:
            self._tell(now)

    def _all_well(self, heard_at: float, now: float) -> None:
        self._since, self._sent, self._after_s = heard_at, 0, self._silence_s
        self._found.clear()
        if self._raised:
            self._raised = False
            self._out.concerns.over(self._source, CODE, now)

    def _tell(self, now: float) -> None:
        clue, found = self._explain(now)
        self._out.concerns.raised(self._source, Concern(CODE, Weight.UNPROTECTED, found.what, found.cure), now)
        if self._raised and now < self._next_line and now - self._told.get(clue, -REPEAT_S) < REPEAT_S:
            return
        if self._raised:  # the registry has said it the first time
            self._out.log("error", "the peer is not heard", peer=self._peer.name, why=found.what, cure=found.cure)
        self._raised = True
        self._told[clue] = now
        self._next_line = now + REPEAT_S

    def _explain(self, now: float) -> tuple[Clue, Found]:
        """The clue that is told first, and all of them in words."""
        fresh = {clue: found for clue, found in self._found.items() if now - found.at <= FRESH_S}
        if Clue.NOBODY in fresh and fresh[Clue.NOBODY].at - fresh[Clue.NOBODY].first < AGAIN_S:
            del fresh[Clue.NOBODY]
        if not fresh.keys() & _ARRIVES:
            fresh[Clue.NOTHING] = self._nothing(now, alone=not fresh)
        first = min(fresh)
        return first, Found("; ".join(fresh[clue].what for clue in sorted(fresh)), fresh[first].cure, now, now)

    def _nothing(self, now: float, alone: bool) -> Found:
        what = f"nothing has arrived from {self._end} for {now - self._since:.0f} s; {self._sent} datagrams were sent"
        if alone:
            what += f": is UDP {self._peer.port} open there and here?"
        return Found(what, f"is the daemon running on {self._peer.name}? Do the firewalls let UDP pass?", now, now)
