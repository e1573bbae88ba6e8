"""Every setting of the configuration file, declared once: data that the parser, the reference page, the sample file and
whoever compares two configurations read. Nothing here reads a file or checks a value.

To add a setting, declare it here, give it a field in `core.settings.Settings` (with `core=True`) or in a class of
`config.model`, and run `python -m nfq_failover.config.reference --write`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from enum import Enum
from typing import Any, Final

from nfq_failover.constants import (
    DEFAULT_MARK,
    DEFAULT_QUEUE_BUFFER,
    DEFAULT_QUEUE_IN,
    DEFAULT_QUEUE_OUT,
    DEFAULT_QUEUE_PACKETS,
    DEFAULT_SYNC_BUFFER,
    DEFAULT_SYNC_PORT,
    DEFAULT_WITNESS_PORT,
)


class Kind(Enum):
    """What a setting's value is. `config.values` has the check of each kind."""

    FLAG = "true or false"
    NUMBER = "a whole number"
    MASK = "a whole number, a single bit"
    CHOICE = "one of"
    NAME = "a name: at most 31 letters, digits, '.', '_', '-'"
    INSTANCE = "at most 16 letters, digits, '_'"
    INTERFACE = "an interface's name"
    INTERFACES = "a list of interfaces' names"
    USER = "a user's name"
    GROUP = "a group's name"
    ADDRESS = "an IPv4 address"
    LISTEN = f"ADDRESS, or ADDRESS:PORT (port {DEFAULT_SYNC_PORT} if left out)"
    WITNESS = f"ADDRESS, or ADDRESS:PORT (port {DEFAULT_WITNESS_PORT} if left out)"
    MAC = "a MAC address"
    PATH = "an absolute path"
    AGENT = "a name or path"
    PORTS = 'a list of ports and ranges ("7000-7099")'
    TARGETS = "a list of ADDRESS (ICMP echo) or ADDRESS:PORT (TCP)"
    COMMAND = "a list of words: a program and its arguments"
    FENCE = "a list of words, a program and its arguments; or the table [fence]"
    HOOK = "a list of words: a program and its arguments, with {event}, {role}, {state}, {epoch}, {reason}, ..."
    CAPABILITIES = "a list of capabilities"
    PARAMETERS = "a table: names and texts, numbers, or true and false"
    SECRETS = "a table: names and absolute paths of files (mode 600, one line)"


class Change(Enum):
    """What a changed value takes. A running daemon may be given another one where nothing rests on the old one that it
    has agreed upon with its peer or the kernel. `MORE`: ports that are added, a number that is raised. `OTHER`: another
    of what is there before and after."""

    RESTART = "restart"
    LIVE = "reload"
    MORE = "reload: more"
    OTHER = "reload: another"

    @property
    def about(self) -> str:
        """The same in words."""
        return _CHANGES[self]


_CHANGES: Final = {
    Change.RESTART: "takes a restart of the daemon",
    Change.LIVE: "'nfq-failover reload' applies it",
    Change.MORE: "'nfq-failover reload' applies it if it is more than before; less takes a restart of the daemon",
    Change.OTHER: "'nfq-failover reload' exchanges it; what is new, or gone, takes a restart of the daemon",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. Values are as TOML has them; `default` None means that nothing is set.

    `required`: a file without it is refused (where its table is there at all). `low`, `high`: inclusive bounds of a
    number. `core`: the field of the core's settings that takes the value as it is. `example`: what the sample file
    shows where there is no default.
    """

    name: str
    kind: Kind
    _: KW_ONLY
    text: str = ""
    default: Any = None
    required: bool = False
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    unit: str = ""
    change: Change = Change.RESTART
    core: str = ""
    example: Any = None

    def says(self, text: str) -> Setting:
        """The same setting with the sentence that explains it."""
        return replace(self, text=text)


@dataclass(frozen=True, slots=True)
class Section:
    """Settings under one heading. `table` is the TOML table they stand in, "" for the top level.

    `optional`: what the table describes is not there unless the table is. `many`: the table is an array of tables.
    """

    title: str
    settings: tuple[Setting, ...]
    table: str = ""
    text: str = ""
    optional: bool = False
    many: bool = False

    @property
    def header(self) -> str:
        """How the table is opened in a file: "[health]", "[[peer]]"; "" at the top level."""
        return f"[[{self.table}]]" if self.many else f"[{self.table}]" if self.table else ""


def _setting(name: str, kind: Kind, *, core: bool | str = False, **more: Any) -> Setting:
    """`core` True: the core's field has the setting's own name."""
    return Setting(name, kind, core=name if core is True else core or "", **more)


def _needed(name: str, kind: Kind, example: Any, **more: Any) -> Setting:
    return _setting(name, kind, required=True, example=example, **more)


def _number(name: str, default: int, low: int, high: int, **more: Any) -> Setting:
    return _setting(name, Kind.NUMBER, default=default, low=low, high=high, **more)


def _ms(name: str, default: int, low: int, high: int, **more: Any) -> Setting:
    return _number(name, default, low, high, unit="ms", **more)


def _bytes(name: str, default: int, low: int, high: int, **more: Any) -> Setting:
    return _number(name, default, low, high, unit="bytes", **more)


def _flag(name: str, default: bool, **more: Any) -> Setting:
    return _setting(name, Kind.FLAG, default=default, **more)


def _choice(name: str, choices: tuple[str, ...], **more: Any) -> Setting:
    """The first of `choices` is the default."""
    return _setting(name, Kind.CHOICE, default=choices[0], choices=choices, **more)


_HOST: Final = (
    _needed("name", Kind.NAME, "alpha", core=True).says("This host's name."),
    _needed("service", Kind.ADDRESS, "192.0.2.100").says(
        "The address that clients connect to; the same on both hosts."
    ),
    _needed("ports", Kind.PORTS, [80, "7000-7099"], core=True, change=Change.MORE).says(
        "The service's TCP ports; the same on both hosts."
    ),
    _needed("interface", Kind.INTERFACE, "eth0").says("The interface towards the clients and the peer."),
    _setting("answer_interfaces", Kind.INTERFACES, default=(), change=Change.LIVE, example=["eth2"]).says(
        "Other interfaces by which answers may leave this host, since their networks bring them to the clients, too."
    ),
    _needed("listen", Kind.LISTEN, "192.0.2.11:7766").says(
        "This host's own address, and the UDP port of the sync channel."
    ),
    _flag("manage_address", True).says("The daemon configures the service address, and removes it when it ends."),
    _setting("instance", Kind.INSTANCE, default="default").says(
        "Distinguishes two daemons on one host: their rules and records."
    ),
)
_FILES: Final = (
    _setting("key_file", Kind.PATH, default="/etc/nfq-failover/key").says(
        "The key that both hosts share: mode 600, at least 16 bytes; `nfq-failover keygen` makes one."
    ),
    _setting("state_dir", Kind.PATH, default="/var/lib/nfq-failover").says(
        "What must outlive a boot of the host (the epoch), and the control socket."
    ),
    _setting("run_dir", Kind.PATH, default="/run/nfq-failover").says(
        "What must outlive the daemon, and not the host's boot: the checkpoint for a restart."
    ),
    _setting(
        "log_level", Kind.CHOICE, default="info", choices=("debug", "info", "warning", "error"), change=Change.LIVE
    ).says("What is logged, at the least; `--log-level` on the command line comes first."),
)
_RULES: Final = (
    _choice("tap", ("clone", "multicast"), core=True).says(
        "How the backup gets the clients' packets: the primary clones them, or a multicast MAC brings them to both."
    ),
    _setting("tap_mac", Kind.MAC, example="01:00:5e:4d:00:64").says(
        'The multicast MAC address, which `tap = "multicast"` needs.'
    ),
    _choice("conntrack", ("notrack", "liberal")).says(
        "Connection tracking: the service stays out of it, or the kernel is told to tolerate changed numbers."
    ),
    _setting("rules_script", Kind.PATH, example="/usr/local/sbin/nfq-failover-rules").says(
        "The program that installs the rules, if it is not the one that comes with the package."
    ),
    _number("queue_in", DEFAULT_QUEUE_IN, 0, 65535).says("The netfilter queue of packets from clients."),
    _number("queue_out", DEFAULT_QUEUE_OUT, 0, 65535).says("The netfilter queue of packets to clients."),
    _setting("mark", Kind.MASK, default=DEFAULT_MARK, low=1, high=0xFFFFFFFF).says(
        "The bit of the packet mark that says that the daemon has handled a packet."
    ),
)
_SERVING: Final = (
    _flag("prefer_primary", False, core=True).says(
        "Breaks the tie when two hosts that never served boot together: set it on one host."
    ),
    _choice("boot_alone", ("wait", "fence"), core=True).says(
        "What a host does that boots and hears nobody: wait for its peer or the operator, or fence the peer and serve."
    ),
    _ms("boot_wait_ms", 3000, 100, 600_000, core=True).says("How long a host that has booted waits for its peer."),
    _choice("split_brain", ("refuse", "accepted")).says(
        "`accepted`: the backup takes over without a fence or a witness, and both hosts may be heard at once."
    ),
    _setting(
        "check_targets", Kind.TARGETS, default=(), change=Change.LIVE, example=["192.0.2.1", "192.0.2.20:443"]
    ).says("Machines of which one must answer before this host acts alone: it may be this host that is cut off."),
    _ms("check_deadline_ms", 500, 10, 60_000, change=Change.LIVE).says(
        "How long the answer of such a machine may take."
    ),
)
_NOTIFY: Final = (
    _setting(
        "notify", Kind.HOOK, default=(), example=["/usr/local/bin/notify", "{event}", "{role}", "{state}", "{reason}"]
    ).says(
        "A program that is run, as the daemon's user, when what this host is changes: once for each change, in "
        "order. {event} is start, role or state; {name}, {service}, {role}, {state}, {epoch} and {reason} are as in "
        "the status."
    ),
)
_DETECTION: Final = (
    _ms("heartbeat_interval_ms", 50, 10, 5000, core=True).says("The time between two heartbeats."),
    _number("heartbeat_count", 3, 2, 100, core=True).says(
        "After how many missing heartbeats the peer counts as lost; times the interval this is the detection time."
    ),
    _ms("loop_stall_ms", 300, 100, 60_000, core=True).says(
        "A peer whose heartbeats are punctual but whose packet loop has stood still for this long is not alive."
    ),
)
_FENCING: Final = (
    _setting("fence", Kind.FENCE, change=Change.OTHER, example=["/usr/local/sbin/power-off", "{peer}"]).says(
        "How to make sure that the peer is off. A program says so by exit code 0; {peer} and {address} are the peer's."
    ),
    _ms("fence_deadline_ms", 5000, 10, 600_000, core=True).says(
        "How long a fence may take. A primary that has lost its backup holds acknowledgements back for as long."
    ),
    _ms("fence_delay_ms", 0, 0, 600_000, core=True).says(
        "How long this host waits before it acts against its peer: set it on one host."
    ),
    _number("fence_attempts", 0, 0, 1000, change=Change.LIVE).says(
        "How often a failing fence is tried within the deadline; 0: as often as it fits."
    ),
    _ms("fence_retry_ms", 5000, 0, 3_600_000, core=True, change=Change.LIVE).says(
        "When a fence that has failed is tried again; then after twice that, and so on; 0: never."
    ),
    _ms("fence_retry_max_ms", 60_000, 1, 86_400_000, core=True, change=Change.LIVE).says(
        "The longest time between two tries."
    ),
)
_CONNECTIONS: Final = (
    _ms("open_deadline_ms", 1000, 10, 60_000, core=True, change=Change.LIVE).says(
        "How long the primary's SYN-ACK waits for the replica's; then the connection begins unprotected."
    ),
    _number("announce_count", 5, 1, 100, core=True, change=Change.LIVE).says(
        "How many announcements follow a takeover at the least."
    ),
    _ms("announce_refresh_ms", 30_000, 0, 86_400_000, change=Change.LIVE).says(
        "The time between two announcements of the service address by a host that serves; 0: no more of them."
    ),
    _flag("revert_backoff", True, core=True, change=Change.LIVE).says(
        "At a takeover clients are made to repeat at once what they have sent to nobody (RFC 6069)."
    ),
    _ms("hole_deadline_ms", 3000, 100, 600_000, core=True, change=Change.LIVE).says(
        "How long a connection that was taken over may lack bytes of its client before it is reset, and how long its "
        "server may stand still that lacks what the client has heard. More than `replica_patience_ms`."
    ),
)
_PACE: Final = (
    _ms("replica_slow_ms", 200, 10, 60_000, core=True, change=Change.LIVE).says(
        "How late a replica must be before its client is slowed: what the server sends waits for the replica then."
    ),
    _choice("slow_backup", ("wait", "unprotect", "drop"), core=True, change=Change.LIVE).says(
        "What becomes of a connection that is slowed all the time: it stays protected at the backup's pace, or goes on "
        "unprotected after `replica_patience_ms`. With `drop` its replica is given up then: that relieves the backup, "
        "and what the client goes on to send is missed."
    ),
    _ms("replica_patience_ms", 2000, 0, 600_000, core=True, change=Change.LIVE).says(
        "How long a client waits for a replica that stands still or can't keep up; then its connection goes on "
        "unprotected, until the replica has caught up. 0: as long as it takes."
    ),
)
_LIMITS: Final = (
    _number("max_connections", 20_000, 1, 1_000_000, core=True, change=Change.MORE).says(
        "The connections that a host keeps track of."
    ),
    _bytes("max_log_bytes", 16 << 20, 1 << 16, 1 << 30, core=True, change=Change.LIVE).says(
        "Per connection: the client's bytes that the replica has not taken. A new value counts for new connections."
    ),
    _bytes("max_unacked_bytes", 16 << 20, 1 << 16, 1 << 30, core=True, change=Change.LIVE).says(
        "Per connection: the replica's output that the client has not acknowledged. A new value counts as above."
    ),
    _number("queue_max_packets", DEFAULT_QUEUE_PACKETS, 16, 1 << 20, unit="packets").says(
        "The packets that may wait in each netfilter queue."
    ),
    _bytes("queue_buffer_bytes", DEFAULT_QUEUE_BUFFER, 1 << 16, 1 << 30).says(
        "The receive buffer of each netfilter queue."
    ),
    _bytes("sync_buffer_bytes", DEFAULT_SYNC_BUFFER, 1 << 16, 1 << 30).says("The receive buffer of the sync channel."),
)
_PEER: Final = (
    _needed("name", Kind.NAME, "beta").says("The peer's name, as in its own configuration."),
    _needed("address", Kind.ADDRESS, "192.0.2.12").says("The peer's own address, as in its `listen`."),
    _number("port", DEFAULT_SYNC_PORT, 1, 65535).says("The UDP port of its sync channel."),
    _setting("mac", Kind.MAC, example="52:54:00:12:34:56").says(
        "Its MAC address, for the clone tap; if it is left out the kernel is asked."
    ),
)
_FENCE: Final = (
    _setting("agent", Kind.AGENT, change=Change.OTHER, example="fence_virsh").says(
        "A fence agent with the standard interface."
    ),
    _setting("command", Kind.COMMAND, change=Change.OTHER, example=["/usr/local/sbin/power-off", "{peer}"]).says(
        "A program and its arguments, instead of an agent: the same as `fence = [...]`."
    ),
    _flag("verify", True, change=Change.LIVE).says(
        "Off is believed only when the agent's status says so; `false` for an agent that has none."
    ),
    _setting(
        "parameters",
        Kind.PARAMETERS,
        change=Change.LIVE,
        example={"ip": "192.0.2.1", "username": "fence", "plug": "{peer}"},
    ).says("What the agent is told; {peer} and {address} are the peer's."),
    _setting(
        "secrets", Kind.SECRETS, change=Change.LIVE, example={"password": "/etc/nfq-failover/fence-password"}
    ).says("Parameters that are read from files."),
)
_WITNESS: Final = (
    _needed("address", Kind.WITNESS, "192.0.2.13", change=Change.OTHER).says("Where the witness listens."),
    _setting("key_file", Kind.PATH, change=Change.OTHER, example="/etc/nfq-failover/witness-key").says(
        "The key that the hosts share with the witness; if it is left out, the key that they share with each other."
    ),
    _ms("lease_ms", 0, 0, 600_000, core="witness_lease_ms").says(
        "How long a primary is heard without its backup's votes; 0: three times the detection time."
    ),
)
_APPLICATION: Final = (
    _choice("state", ("shared", "none"), core="service_state").says(
        "What clients send may matter to other connections, so a replica that has missed some is not relied on; or it "
        "matters to none (static content)."
    ),
    _choice("on_failure", ("service", "connection", "off"), core="on_app_failure", change=Change.LIVE).says(
        "What moves to the backup when the primary's application has failed: the whole service, that one connection, "
        "or nothing (it becomes unprotected, and its end goes out)."
    ),
    _ms("end_deadline_ms", 1000, 50, 60_000, core=True, change=Change.LIVE).says(
        "How long an end of the server's stream waits for the replica's."
    ),
)
_HEALTH: Final = (
    _flag("connect", True, change=Change.LIVE).says("Connect to the application, and wait until it accepts."),
    _setting("port", Kind.NUMBER, low=1, high=65535, change=Change.LIVE, example=80).says(
        "The port to connect to; if it is left out, the first of `ports`."
    ),
    _setting("command", Kind.COMMAND, default=(), change=Change.LIVE, example=["/usr/local/bin/check", "--quick"]).says(
        "A program and its arguments; exit code 0: the application is well."
    ),
    _ms("interval_ms", 1000, 50, 600_000, change=Change.LIVE).says("The time between two checks."),
    _ms("timeout_ms", 1000, 10, 600_000, change=Change.LIVE).says("How long a check may take."),
    _number("failures", 3, 1, 1000, core="health_failures", change=Change.LIVE).says(
        "How many checks in a row must have failed before the application has."
    ),
)
_DIVERGENCE: Final = (
    _choice("policy", ("default", "strict", "off"), core="divergence").says(
        "The two servers' output is compared; `strict`: nothing is sent that the replica has not sent, too."
    ),
    _bytes("run_bytes", 1024, 16, 1 << 20, core="divergence_run_bytes", change=Change.LIVE).says(
        "A difference of this length ends a connection's protection."
    ),
    _ms("out_of_step_ms", 10_000, 100, 3_600_000, core=True, change=Change.LIVE).says(
        "How long one server may lack output that the other has sent, and that the client is not the reason for. More "
        "than `replica_patience_ms`: by then a replica that is merely slow is no longer called protected."
    ),
)
_PRIVILEGES: Final = (
    _setting("user", Kind.USER, example="nfq-failover").says(
        "The user that the daemon becomes after its start; if it is left out, `nfq-failover` if there is one, else "
        "`nobody`, with a warning."
    ),
    _flag("drop", True).says("`false`: the daemon keeps all of root's rights."),
    _setting("fence_capabilities", Kind.CAPABILITIES, default=(), example=["CAP_SYS_RAWIO"]).says(
        "What the fence needs besides the privileged helper's own capabilities."
    ),
    _setting("status_group", Kind.GROUP, example="nfq-failover-status").says(
        "Members of this group may ask for the status without being root (`status`, `top`, `web`, `metrics`), and "
        "nothing else."
    ),
    _flag("fence_setuid", False).says("`true`: the fence may gain rights by setuid programs."),
)

SECTIONS: Final = (
    Section("The host and the service", _HOST),
    Section("Files and the log", _FILES),
    Section("Tap and firewall rules", _RULES),
    Section("Who serves", _SERVING),
    Section("Telling others", _NOTIFY),
    Section("Detection", _DETECTION),
    Section("Fence", _FENCING),
    Section("Opening and taking over", _CONNECTIONS),
    Section("Keeping pace", _PACE),
    Section("Limits", _LIMITS),
    Section("The peer", _PEER, "peer", many=True),
    Section("The fence as a table", _FENCE, "fence", "Instead of `fence = [...]`, for fence agents.", optional=True),
    Section("The witness", _WITNESS, "witness", "A third machine that decides who may act alone.", optional=True),
    Section("The application", _APPLICATION, "application"),
    Section("Checks of the application", _HEALTH, "health", "Without this table nothing is checked.", optional=True),
    Section("The two servers' output", _DIVERGENCE, "divergence"),
    Section("The daemon's rights", _PRIVILEGES, "privileges"),
)


def settings(table: str = "") -> tuple[Setting, ...]:
    """All settings of a table, in the order of their declaration; "" is the top level."""
    return tuple(setting for section in SECTIONS if section.table == table for setting in section.settings)


def tables() -> tuple[str, ...]:
    """The names of all tables, in the order of their declaration; "" is the top level."""
    return tuple(dict.fromkeys(section.table for section in SECTIONS))


def header(table: str) -> str:
    """How a table is opened in a file. Raises `KeyError`."""
    for section in SECTIONS:
        if section.table == table:
            return section.header
    raise KeyError(table)


def names(table: str = "") -> tuple[str, ...]:
    """What may stand in a table: its settings; at the top level the other tables, too."""
    tables = () if table else tuple(section.table for section in SECTIONS if section.table)
    return tuple(dict.fromkeys((*(setting.name for setting in settings(table)), *tables)))


def find(name: str, table: str = "") -> Setting:
    """The declaration of a setting. Raises `KeyError`."""
    for setting in settings(table):
        if setting.name == name:
            return setting
    raise KeyError(f"{table}.{name}" if table else name)


def core_defaults() -> dict[str, Any]:
    """The defaults of those settings that the core takes as they are, by the names of its fields."""
    return {
        setting.core: setting.default
        for section in SECTIONS
        for setting in section.settings
        if setting.core and not setting.required
    }
