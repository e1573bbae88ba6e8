"""What keeps the protection from being what it claims to be: known now, and not found at the crash.

A *concern* is something that a takeover needs and that is not as it should be, on this host or, as the peer tells us,
on the other. Whoever finds one says `raised`, and later `over`; all that is known is in one registry for each node, and
the status, the log and the peer are served from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

MAX_OF_A_PEER = 64  # a peer that says more is cut short
MAX_CLIENTS = 48  # that a concern names; whoever finds more must say that it concerns all


class Weight(IntEnum):
    """How much a concern matters."""

    WARNING = 1  # look at it; the protection holds
    DEGRADED = 2  # the protection holds, with a limit that is named
    UNPROTECTED = 3  # a takeover now would fail: nothing may be called protected

    @property
    def level(self) -> str:
        """The level of its line in the log."""
        return "warning" if self is Weight.WARNING else "error"

    @property
    def label(self) -> str:
        """The word that people read."""
        return self.name.lower()


class Part(Enum):
    """What a host is in the pair."""

    ANY = "any"
    PRIMARY = "primary"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing that is not as it should be.

    `code` names the kind, and does not change with the details: "address-missing". `what` says what is wrong, with
    values; `cure` what to do about it. `bears` is the part whose work it hinders: a backup that can't fence can't take
    over, while the same on the primary is no more than a warning until the hosts have changed places. `clients`: packed
    addresses; the connections of these clients are not protected, while all others are as `weight` says.
    """

    code: str
    weight: Weight
    what: str
    cure: str = ""
    bears: Part = Part.ANY
    clients: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """A concern that stands. `host`: whose it is, empty for this host. `since`: when it was raised."""

    concern: Concern
    host: str
    since: float


class Concerns:
    """All concerns that stand, of this host and of its peers.

    `source` is the part that has found a concern of this host: two of them may find the same code, and each takes back
    its own. `version` changes with what this host has to tell.
    """

    def __init__(self, log: Callable[..., None]) -> None:
        """`log(level, event, **fields)` writes a line."""
        self.version = 0
        self._log = log
        self._part = Part.ANY
        self._standing: dict[tuple[str, str, str], Standing] = {}  # by host, source, code

    # ------------------------------------------------------------------------------------ of this host

    def raised(self, source: str, concern: Concern, now: float) -> None:
        """Note that something is wrong, or that it is wrong in another way. Said in the log when it is new or weighs
        more than before."""
        self._put("", source, concern, now)

    def over(self, source: str, code: str, now: float) -> None:
        """Note that something is well again; nothing happens if it was well before."""
        self._take(("", source, code), now)

    def replace(self, source: str, concerns: Iterable[Concern], now: float) -> None:
        """Note that `concerns` are all that a source finds now."""
        self._replace("", source, concerns, now)

    def act_as(self, part: Part) -> None:
        """This host is `part` of the pair now: what did not matter may matter, and the other way round."""
        if part is self._part:
            return
        before = {key: self._weight(each) for key, each in self._standing.items()}
        self._part = part
        self.version += 1
        for key, each in self._standing.items():
            if self._weight(each) > before[key]:
                self._say(each)

    @property
    def own(self) -> list[Concern]:
        """What is wrong on this host, the heaviest first; each code once."""
        found: dict[str, Concern] = {}
        for standing in self.standing():
            if not standing.host:
                found.setdefault(standing.concern.code, standing.concern)
        return list(found.values())

    # ------------------------------------------------------------------------------------ of the peers

    def told(self, host: str, concerns: Iterable[Concern], now: float) -> None:
        """Note what a peer says is wrong there."""
        self._replace(host, "", list(concerns)[:MAX_OF_A_PEER], now)

    # ------------------------------------------------------------------------------------ views

    def standing(self) -> list[Standing]:
        """All, the heaviest first, and of the same weight the oldest. What a peer says in our own words, as both hosts
        do where they differ, is not said twice, unless it matters more there."""
        own = {
            (each.concern.code, each.concern.what): self._weight(each)
            for each in self._standing.values()
            if not each.host
        }
        found = [
            replace(each, concern=replace(each.concern, weight=self._weight(each)))
            for each in self._standing.values()
            if not each.host or each.concern.weight > own.get((each.concern.code, each.concern.what), 0)
        ]
        return sorted(found, key=lambda each: (-each.concern.weight, each.since))

    @property
    def worst(self) -> Standing | None:
        """The heaviest of all; None if all is well."""
        return next(iter(self.standing()), None)

    def hindered(self) -> dict[bytes, str]:
        """The clients whose connections are not protected although others are, and why."""
        return {
            client: standing.concern.what
            for standing in reversed(self.standing())
            if standing.concern.weight >= Weight.DEGRADED
            for client in standing.concern.clients
        }

    def codes(self) -> Iterator[str]:
        """The codes of what is wrong on this host."""
        return (code for host, _, code in self._standing if not host)

    # ------------------------------------------------------------------------------------ changes

    def _replace(self, host: str, source: str, concerns: Iterable[Concern], now: float) -> None:
        found = {concern.code: concern for concern in concerns}
        for key in [key for key in self._standing if key[:2] == (host, source) and key[2] not in found]:
            self._take(key, now)
        for concern in found.values():
            self._put(host, source, concern, now)

    def _put(self, host: str, source: str, concern: Concern, now: float) -> None:
        key = host, source, concern.code
        before = self._standing.get(key)
        if before is not None and before.concern == concern:
            return
        after = self._standing[key] = Standing(concern, host, now if before is None else before.since)
        self._changed(host)
        if before is None or self._weight(after) > self._weight(before):
            self._say(after)

    def _take(self, key: tuple[str, str, str], now: float) -> None:
        gone = self._standing.pop(key, None)
        if gone is None:
            return
        self._changed(gone.host)
        fields = {"host": gone.host} if gone.host else {}
        self._log("info", "concern is over", code=gone.concern.code, after_s=round(now - gone.since, 1), **fields)

    def _weight(self, standing: Standing) -> Weight:
        """How much it matters in the part that this host has; a peer has judged that for itself."""
        concern = standing.concern
        idle = concern.bears is not Part.ANY and self._part not in (Part.ANY, concern.bears)
        return Weight.WARNING if idle and not standing.host else concern.weight

    def _say(self, standing: Standing) -> None:
        concern, weight = standing.concern, self._weight(standing)
        fields = {"code": concern.code, "what": concern.what}
        if concern.cure:
            fields["cure"] = concern.cure
        if standing.host:
            fields["host"] = standing.host
        self._log(weight.level, f"concern: {weight.label}", **fields)

    def _changed(self, host: str) -> None:
        if not host:
            self.version += 1
