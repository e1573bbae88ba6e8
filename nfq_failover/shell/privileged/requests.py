"""What the daemon may ask of its privileged helper: a few typed requests, and nothing else.

A request says which of a handful of things is to be done. It never carries a command, an argument or a path: those come
from the helper's own copy of the configuration. `decode_request` takes bytes from a process that may be under somebody
else's control; what it does not know is refused.

Messages are JSON objects in SEQPACKET datagrams of at most `MAX_MESSAGE` bytes. The connections that a takeover has
inherited come in a sealed memfd (`flow_file`), 8 bytes each: client's address, client's port, our port.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nfq_failover.config.fence import FencePlan
from nfq_failover.core import ports
from nfq_failover.core.events import Profile
from nfq_failover.core.ports import Ports
from nfq_failover.core.settings import Peer
from nfq_failover.errors import NfqFailoverError
from nfq_failover.shell.firewall.script import RulesOptions
from nfq_failover.shell.privileged.reread import Known
from nfq_failover.wire.segment import FlowKey

MAX_MESSAGE: Final = 16384
MAX_DEADLINE_MS: Final = 600_000  # the configuration's limit
_FLOW = struct.Struct("!4sHH")
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

REFUSED: Final = -2  # status of an answer: the helper does not do that


class Refused(NfqFailoverError):
    """A request that the helper does not carry out; the text says why."""


@dataclass(frozen=True, slots=True)
class InstallRules:
    """Bring the rules to a profile. `flows`: a file of inherited connections comes with it. `ports`: those that are
    diverted, all of them the service's; None: those that the helper was started with."""

    profile: Profile
    flows: bool = False
    ports: Ports | None = None


@dataclass(frozen=True, slots=True)
class CheckRules:
    """Compare the rules with what was installed."""


@dataclass(frozen=True, slots=True)
class LookAtHost:
    """See what of the host's own rules does not go with ours."""


@dataclass(frozen=True, slots=True)
class RemoveRules:
    """Take the rules out; `force`: although the service address is still there."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class FencePeer:
    """Make sure that a configured peer is off."""

    peer: str
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class CheckFence:
    """Find out whether a configured peer could be fenced, without doing it."""

    peer: str
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that you are there, and how many descriptors you could still open."""


@dataclass(frozen=True, slots=True)
class ChangeAddress:
    """Configure the service address on lo, or take it away."""

    add: bool


@dataclass(frozen=True, slots=True)
class Reload:
    """Read the configuration again, and go by what may change in it. The answer brings a file with `Differences`,
    pickled; with status 1 a `ConfigError` instead, and nothing has changed."""


@dataclass(frozen=True, slots=True)
class StartSender:
    """Start the heartbeat sender on three descriptors: UDP socket, orders, progress."""


Request = (
    InstallRules
    | CheckRules
    | LookAtHost
    | RemoveRules
    | FencePeer
    | CheckFence
    | Ping
    | ChangeAddress
    | StartSender
    | Reload
)
_KINDS: Final[dict[str, type[Any]]] = {
    "install-rules": InstallRules,
    "check-rules": CheckRules,
    "look-at-host": LookAtHost,
    "remove-rules": RemoveRules,
    "fence": FencePeer,
    "check-fence": CheckFence,
    "ping": Ping,
    "address": ChangeAddress,
    "sender": StartSender,
    "reload": Reload,
}
_WORDS: Final = {kind: word for word, kind in _KINDS.items()}
_FIELDS: Final[dict[str, dict[str, type]]] = {
    "install-rules": {"profile": str, "flows": bool, "ports": str},
    "check-rules": {},
    "look-at-host": {},
    "remove-rules": {"force": bool},
    "fence": {"peer": str, "deadline_ms": int},
    "check-fence": {"peer": str, "deadline_ms": int},
    "ping": {},
    "address": {"add": bool},
    "sender": {},
    "reload": {},
}


def descriptors(request: Request) -> int:
    """Returns how many descriptors come with a request."""
    if isinstance(request, InstallRules):
        return int(request.flows)
    return 3 if isinstance(request, StartSender) else 0


def encode_request(number: int, request: Request) -> bytes:
    """Returns a request as one message. `number` comes back in the answer."""
    word = _WORDS[type(request)]
    fields = {name: getattr(request, name) for name in _FIELDS[word]}
    if isinstance(request, InstallRules):
        fields["profile"] = request.profile.value
        fields["ports"] = "as before" if request.ports is None else ports.text(request.ports)
    return json.dumps({"number": number, "do": word, **fields}).encode()


def decode_request(data: bytes) -> tuple[int, Request]:
    """Returns (number, request) of a message. Raises `Refused`."""
    try:
        table = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise Refused("not JSON") from None
    if not isinstance(table, dict):
        raise Refused("not an object")
    number, word = table.pop("number", None), table.pop("do", None)
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise Refused("no request number")
    if not isinstance(word, str) or word not in _KINDS:
        raise Refused("no such request")
    wanted = _FIELDS[word]
    if table.keys() != wanted.keys():
        raise Refused(f"{word}: wrong fields")
    for name, kind in wanted.items():
        if type(table[name]) is not kind:
            raise Refused(f"{word}: '{name}' is of the wrong kind")
    if word == "install-rules":
        try:
            table["profile"] = Profile(table["profile"])
        except ValueError:
            raise Refused("there is no such profile") from None
        said = table["ports"]
        table["ports"] = None if said == "as before" else ports.read(said)
        if said != "as before" and not table["ports"]:
            raise Refused("these are no ports")
    if word in ("fence", "check-fence") and not 0 < table["deadline_ms"] <= MAX_DEADLINE_MS:
        raise Refused("the deadline is out of range")
    request: Request = _KINDS[word](**table)
    return number, request


@dataclass(frozen=True, slots=True)
class Reply:
    """`status` 0: done. Else an exit code of the rules script, -1 (could not be tried) or `REFUSED`."""

    number: int
    status: int
    said: str = ""


def encode_reply(reply: Reply) -> bytes:
    """Returns a reply as one message, with the beginning of a long text."""
    said = reply.said[:MAX_MESSAGE]
    # Ends: `said` gets shorter.
    while len(data := json.dumps([reply.number, reply.status, said]).encode()) > MAX_MESSAGE:
        said = said[: len(said) // 2]
    return data


def decode_reply(data: bytes) -> Reply:
    """Returns the reply in a message of the helper, which is trusted."""
    return Reply(*json.loads(data))


# ------------------------------------------------------------------------------------------------ inherited connections


def sealed(name: str, data: bytes) -> int:
    """Returns a descriptor of a memfd that can't be changed any more, so that reading it can neither block nor race."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Ends: `write` takes something.
        while data:
            data = data[os.write(fd, data) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def flow_file(flows: Sequence[FlowKey]) -> int:
    """Returns a descriptor of a sealed memfd of connections."""
    return sealed("nfqf-flows", b"".join(_FLOW.pack(client, cport, port) for client, cport, _, port in flows))


def read_flows(fd: int, service: bytes, diverted: Sequence[tuple[int, int]], most: int) -> tuple[FlowKey, ...]:
    """Returns the connections in a `flow_file`, all of this service. Raises `Refused`."""
    try:
        kept = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        size = os.fstat(fd).st_size
    except OSError:
        kept, size = False, 0
    if not kept:
        raise Refused("the connections do not come in a sealed file")
    if size % _FLOW.size or size > most * _FLOW.size:
        raise Refused(f"{size} bytes are not at most {most} connections")
    flows: list[FlowKey] = []
    for client, client_port, port in _FLOW.iter_unpack(os.pread(fd, size, 0)):
        if not client_port or not any(low <= port <= high for low, high in diverted):
            raise Refused("a connection of another service")
        if client[0] in (0, 127) or client[0] >= 224:
            raise Refused("a connection whose client can't be one")
        flows.append((client, client_port, service, port))
    return tuple(flows)


# ------------------------------------------------------------------------------------------------ the helper's settings


@dataclass(frozen=True, slots=True)
class HelperSettings:
    """The helper's own copy of what it needs of the configuration. The sync channel's key is not in it: that is seen
    only while the file is read again."""

    service: bytes
    rules: RulesOptions
    manage_address: bool
    fence: FencePlan
    peers: tuple[Peer, ...]
    max_flows: int
    heartbeat_interval_ms: int
    user: tuple[int, int] | None  # of the heartbeat sender
    keep: frozenset[str] | None  # capabilities; None: all
    no_new_privileges: bool
    known: Known | None = None  # what a reload goes by; None: there is none
