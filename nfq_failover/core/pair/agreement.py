"""Whether two hosts are set up so that one can go on with the other's connections.

Each tells the other its settings and what its kernel grants (`wire/records/host.py: Facts`); both compare the two lists
by one table, `RULES`. What can't work keeps a pair from protecting anything, and both hosts say which values differ.
What can work is made to: the primary grants its clients only what the backup's kernel grants as well (`Common`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s
from ipaddress import ip_address
from typing import Final

from nfq_failover import __version__
from nfq_failover.constants import MAX_DATAGRAM, OPT_SACK_PERMITTED, OPT_TIMESTAMPS, OPT_WSCALE
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.pair.told import Pairs, Told
from nfq_failover.core.ports import Ports, covers, digest, read, union
from nfq_failover.core.settings import Settings
from nfq_failover.wire.records import known_numbers

WAIT_S: Final = 1.0  # a peer that tells its settings at all does so as soon as it is heard
SOURCE: Final = "agreement"
SILENT: Final = "peer-tells-nothing"
HEADERS: Final = 40  # IPv4 and TCP without options, which the MSS does not count (RFC 6691)
UDP_HEADERS: Final = 28
LARGEST_RECORD: Final = 1380  # a packet with one record: none is longer
NONE: Final = "none"
SHOWN: Final = 160  # bytes of a long value; a digest stands for the whole
Facts = dict[str, str]


@dataclass(frozen=True, slots=True)
class Host:
    """One of the two: its name, and what it has told."""

    name: str
    facts: Facts

    def number(self, name: str) -> int:
        """A fact that is a number; 0 if it is none."""
        text = self.facts[name]
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0

    @property
    def ports(self) -> Ports | None:
        """The ports that it diverts; None if they can't be read."""
        return read(self.facts["ports"])

    @property
    def diverted(self) -> Ports | None:
        """The same, and those that it diverts only while it follows."""
        mine, added = self.ports, read(self.facts.get("ports-added", ""))
        return None if mine is None or added is None else union(mine, added)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is compared: the facts that are shown of both hosts, how much it matters that they differ, and what follows.

    `wrong(one, other)` says whether the two are of concern. It is asked only if both have told all of these facts.
    `shown`: how a host's values are put, in the order of `facts`.
    """

    code: str
    facts: tuple[str, ...]
    weight: Weight
    label: str
    follows: str = ""
    cure: str = "make both hosts the same"
    wrong: Callable[[Host, Host], bool] | None = None
    shown: str = ""

    def judge(self, one: Host, other: Host) -> Concern | None:
        """The concern; None if all is well, or one of them has not told."""
        if any(name not in host.facts for host in (one, other) for name in self.facts):
            return None
        values = [tuple(host.facts[name] for name in self.facts) for host in (one, other)]
        if values[0] == values[1] if self.wrong is None else not self.wrong(one, other):
            return None
        shown = self.shown or " x ".join(["{}"] * len(self.facts))
        told = "; ".join(
            f"{shown.format(*value)} on {host.name}" for host, value in zip((one, other), values, strict=True)
        )
        what = f"{self.label}: {told}" + (f": {self.follows}" if self.follows else "")
        return Concern(f"differs-{self.code}", self.weight, what, self.cure)


# ------------------------------------------------------------------------------------ what needs more than a glance


def _too_rare(one: Host, other: Host) -> bool:
    """Whether less than two heartbeats of one come within the time after which the other takes it for lost."""
    pairs = ((one, other), (other, one))
    return any(2 * a.number("heartbeat-ms") > b.number("heartbeat-ms") * b.number("heartbeat-count") for a, b in pairs)


def _otherwise(one: Host, other: Host) -> bool:
    return not _too_rare(one, other) and any(
        one.facts[name] != other.facts[name] for name in ("heartbeat-ms", "heartbeat-count")
    )


def _too_narrow(one: Host, other: Host) -> bool:
    """Whether a record does not fit into the smaller MTU. Nobody cuts it up: the sender's own MTU is larger."""
    mtus = sorted(host.number("mtu") for host in (one, other))
    return mtus[0] != mtus[1] and mtus[0] < LARGEST_RECORD


def _narrower(one: Host, other: Host) -> bool:
    return one.facts["mtu"] != other.facts["mtu"] and not _too_narrow(one, other)


def _both_yes(one: Host, other: Host) -> bool:
    return one.facts["prefer-primary"] == other.facts["prefer-primary"] == "yes"


def _one_has_none(one: Host, other: Host) -> bool:
    return (one.facts["witness"] == NONE) is not (other.facts["witness"] == NONE)


def _two_witnesses(one: Host, other: Host) -> bool:
    return one.facts["witness"] != other.facts["witness"] and not _one_has_none(one, other)


def _lacks_ports(one: Host, other: Host) -> bool:
    """Whether a port that one diverts would find a replica on the other that nothing keeps silent."""
    if one.facts["ports"] == other.facts["ports"]:
        return False
    return not (_covered(one, other) and _covered(other, one))


def _covered(one: Host, other: Host) -> bool:
    """Whether the rules that are in force on `other` divert every port that `one` diverts. That the other is to have
    them as well is not enough: its rules come later."""
    everything = _all_ports(one)
    if everything and other.facts.get("ports-diverted") == everything:
        return True  # also of a list that is too long to be told
    needed, there = one.ports, other.diverted
    return needed is not None and there is not None and covers(there, needed)


def _all_ports(host: Host) -> str:
    return host.facts.get("ports-all", "")


def _wants_others(one: Host, other: Host) -> bool:
    """Whether one is to serve a port that is not, or not yet, diverted by both."""
    differ = _all_ports(one) != _all_ports(other) or one.facts["ports"] != other.facts["ports"]
    waits = any(
        host.facts.get("ports-added") or host.facts.get("ports-diverted") != _all_ports(host) for host in (one, other)
    )
    return (differ or waits) and not _lacks_ports(one, other)


def _off_on_one(one: Host, other: Host) -> bool:
    return (one.facts["divergence"] == "off") is not (other.facts["divergence"] == "off")


def _strict_on_one(one: Host, other: Host) -> bool:
    return one.facts["divergence"] != other.facts["divergence"] and not _off_on_one(one, other)


_U, _D, _W = Weight.UNPROTECTED, Weight.DEGRADED, Weight.WARNING
_UPGRADE = "install the same version on both hosts"

RULES: Final = (
    Rule("service", ("service",), _U, "the service address differs"),
    Rule("ports", ("ports",), _U, "`ports` differ", wrong=_lacks_ports),
    Rule(
        *("added-ports", ("ports-wanted", "ports"), _D, "`ports` differ"),
        *(
            "those that are not in force on both are not protected",
            "give both hosts the same, and run 'nfq-failover reload' where it lacks one",
            _wants_others,
        ),
        shown="{0} (in force so far: {1})",
    ),
    Rule("tap", ("tap",), _U, "`tap` differs", "the backup does not see what clients send"),
    Rule(
        *("heartbeat", ("heartbeat-ms", "heartbeat-count"), _U, "heartbeats differ (ms, count)"),
        *(
            "they come too rarely for the other host",
            "give both hosts the same heartbeat_interval_ms and heartbeat_count",
        ),
        _too_rare,
    ),
    Rule(
        *("heartbeat-time", ("heartbeat-ms", "heartbeat-count"), _W, "heartbeats differ (ms, count)"),
        *("a failure of one is noticed later than of the other", "give both hosts the same"),
        _otherwise,
    ),
    Rule(
        *("witness", ("witness",), _U, "`[witness]` differs", "both hosts could act alone"),
        *("name the same witness on both hosts", _one_has_none),
    ),
    Rule(
        *("witnesses", ("witness",), _D, "`[witness] address` differs"),
        *(
            "if these are two machines, both hosts could act alone",
            "name the same witness on both hosts",
            _two_witnesses,
        ),
    ),
    Rule(
        *("divergence", ("divergence",), _U, "`[divergence] policy` differs", "the outputs can't be compared"),
        wrong=_off_on_one,
    ),
    Rule(
        *("divergence-policy", ("divergence",), _W, "`[divergence] policy` differs"),
        *("what counts as different depends on who serves",),
        wrong=_strict_on_one,
    ),
    Rule(
        *("mtu-narrow", ("mtu",), _U, "the interfaces' MTU differs"),
        *("the hosts' records do not fit into the smaller one", "give both interfaces the same MTU"),
        _too_narrow,
    ),
    Rule(
        *("mtu", ("mtu",), _W, "the interfaces' MTU differs", "new connections are held to the smaller one"),
        *("give both interfaces the same MTU", _narrower),
    ),
    Rule(
        *("timestamps", ("timestamps",), _W, "net.ipv4.tcp_timestamps differs"),
        *("protected connections do without timestamps", "set it to the same value on both hosts"),
    ),
    Rule(
        *("sack", ("sack",), _W, "net.ipv4.tcp_sack differs"),
        *("protected connections do without SACK", "set it to the same value on both hosts"),
    ),
    Rule(
        *("window-scaling", ("window-scaling",), _D, "net.ipv4.tcp_window_scaling differs"),
        *("protected connections have windows of at most 64 KiB", "set it to the same value on both hosts"),
    ),
    Rule("on-failure", ("on-failure",), _W, "`[application] on_failure` differs", "what moves depends on who serves"),
    Rule("state", ("state",), _W, "`[application] state` differs", "what missed input means depends on who serves"),
    Rule("alone", ("alone",), _W, "what lets a host act alone differs", "a takeover may work in one direction only"),
    Rule("conntrack", ("conntrack",), _W, "`conntrack` differs", "stateful firewall rules may match on one host only"),
    Rule("health", ("health",), _W, "`[health]` differs", "the application is checked on one host only"),
    Rule("max-connections", ("max-connections",), _W, "`max_connections` differs", "the smaller one counts"),
    Rule(
        *("prefer-primary", ("prefer-primary",), _W, "`prefer_primary` is set on both hosts", "the names decide"),
        *("set it on one host", _both_yes),
    ),
    Rule("version", ("version",), _W, "the versions differ", cure=_UPGRADE),
    Rule(
        *("records", ("records",), _W, "the records that are understood differ"),
        *("what only one host knows is not said to the other", _UPGRADE),
    ),
)
"""Everything that is compared, and how much it matters. docs/operate/limits.md has the table for people."""

_OPTIONS: Final = {
    "timestamps": OPT_TIMESTAMPS,
    "sack": OPT_SACK_PERMITTED,
    "window-scaling": OPT_WSCALE,
}


@dataclass(frozen=True, slots=True)
class Common:
    """What connections must do without so that the peer can go on with them: option kinds that its kernel does not
    grant, and segments longer than `mss` (None: any). `mtu`: the peer's, None if it has not told it."""

    without: frozenset[int] = frozenset()
    mtu: int | None = None

    @property
    def mss(self) -> int | None:
        """The largest MSS (RFC 9293 section 3.7.1) that a client may be told."""
        return None if self.mtu is None else self.mtu - HEADERS


def compare(one: Host, other: Host) -> list[Concern]:
    """All that differs, in the same words on both hosts."""
    both = sorted((one, other), key=lambda host: host.name)
    return [concern for rule in RULES if (concern := rule.judge(*both)) is not None]


def facts_of(settings: Settings, sharing: Sharing) -> Pairs:
    """What the core's settings say of a host."""
    alone = [
        word
        for word, there in (
            ("fence", settings.has_fence),
            ("witness", settings.has_witness),
            ("split brain accepted", settings.split_brain_accepted),
        )
        if there
    ]
    return (
        ("version", __version__),
        ("records", known_numbers()),
        ("service", str(ip_address(settings.service))),
        *((name, short(value)) for name, value in sharing.facts()),
        ("heartbeat-ms", str(settings.heartbeat_interval_ms)),
        ("heartbeat-count", str(settings.heartbeat_count)),
        ("divergence", settings.divergence),
        ("on-failure", settings.on_app_failure),
        ("state", settings.service_state),
        ("alone", " and ".join(alone) or "nothing"),
        ("health", "checked" if settings.health_checked else "not checked"),
        ("max-connections", str(settings.max_connections)),
        ("prefer-primary", "yes" if settings.prefer_primary else "no"),
    )


def short(value: str) -> str:
    """A value that is told whole, so that both hosts compare the same: a digest stands for the end of a long one."""
    data = value.encode()
    if len(data) <= SHOWN:
        return value
    return f"{data[:SHOWN].decode(errors='ignore')}... ({blake2s(data, digest_size=8).hexdigest()})"


def mtu_of(facts: Facts) -> int | None:
    """The interface's MTU; None if it is not known."""
    text = facts.get("mtu", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and int(text) > HEADERS else None


def datagram_bytes(*mtus: int | None) -> int:
    """The longest sync datagram that fits into all of these MTUs (None: not known, and nothing is risked). It has room
    for one record at the least."""
    return min(MAX_DATAGRAM, *(max(mtu or LARGEST_RECORD, LARGEST_RECORD) - UDP_HEADERS for mtu in mtus))


class Agreement:
    """The comparison with one peer.

    `own` is what this host tells. `obstacle`: why nothing may be protected, empty if something may. `common`: what the
    peer's kernel can go on with.
    """

    def __init__(self, settings: Settings, peer: str, told: Told, out: Outbox) -> None:
        self._settings = settings
        self._peer = peer
        self._told = told
        self._out = out
        self.own: Facts = {}
        self._seen: Facts | None = None
        self._until: float | None = None
        self._judged = True
        self.obstacle = ""
        self.common = Common()

    def set_own(self, facts: Pairs) -> None:
        """This host is set up like that."""
        self.own = dict(facts)
        self._judged = False

    def session_started(self, now: float) -> None:
        """The peer's daemon has restarted, perhaps with other settings: what it tells decides."""
        self._until = now + WAIT_S
        self._seen = None
        self.obstacle = f"waiting for {self._peer} to tell its settings"

    def review(self, now: float) -> bool:
        """Compare, if there is something new. Returns whether there was."""
        facts = self._told.facts
        if facts is None:
            if self._until is None or now < self._until:
                return False
            self._until = None
            self.obstacle = ""
            self.common = Common()
            what = f"{self._peer} does not tell how it is set up: whether both hosts agree is not known"
            self._out.concerns.replace(SOURCE, [Concern(SILENT, Weight.WARNING, what, _UPGRADE)], now)
            return True
        if facts == self._seen and self._judged:
            return False
        self._seen, self._until, self._judged = facts, None, True
        self._compare(facts, now)
        return True

    def _compare(self, facts: Facts, now: float) -> None:
        found = compare(Host(self._settings.name, self.own), Host(self._peer, facts))
        self._out.concerns.replace(SOURCE, found, now)
        refused = [concern.what for concern in found if concern.weight is Weight.UNPROTECTED]
        self.obstacle = "; ".join(refused)
        lacking = (kind for name, kind in _OPTIONS.items() if facts.get(name) == "0")
        self.common = Common(frozenset(lacking), mtu_of(facts))

    @property
    def diverted(self) -> Ports | None:
        """The ports that the peer diverts, or will as soon as it follows; None if it has not told."""
        facts = self._told.facts or {}
        if "ports" not in facts:
            return None
        if facts.get("ports-diverted") == digest(self._settings.ports):
            return self._settings.ports  # whose list may be too long to be told
        return Host(self._peer, facts).diverted

    @property
    def heartbeat_ms(self) -> int:
        """The time between two heartbeats of the peer; 0 if it has not told."""
        facts = self._told.facts or {}
        return Host(self._peer, facts).number("heartbeat-ms") if "heartbeat-ms" in facts else 0
