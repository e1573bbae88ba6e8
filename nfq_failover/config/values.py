"""How a single value is checked and made what the program works with: one function for each kind of setting.

A check takes the value as TOML has it, of the type that `CHECKS` names, and raises `ValueError` with a text that says
what is wrong with it. Checks of several settings at once are in `config.parse`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from nfq_failover.config.schema import Kind
from nfq_failover.constants import DEFAULT_SYNC_PORT, DEFAULT_WITNESS_PORT

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_INSTANCE = re.compile(r"[A-Za-z0-9_]{1,16}")
_INTERFACE = re.compile(r"[^\s/\0]{1,15}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NUMBER = re.compile(r"[0-9]{1,5}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}\$?")
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]*\}")
HOOK_NAMES: Final = ("event", "name", "service", "role", "state", "epoch", "reason")
_CAPABILITY = re.compile(r"CAP_[A-Z_]{3,24}")


def name(value: str) -> str:
    """A host's name."""
    if not _NAME.fullmatch(value):
        raise ValueError(f"'{value}' is not a name (letters, digits, '.', '_', '-'; at most 31)")
    return value


def instance(value: str) -> str:
    """What distinguishes two daemons on one host; it is part of the names of chains and files."""
    if not _INSTANCE.fullmatch(value):
        raise ValueError(f"'{value}' is not up to 16 letters, digits and underscores")
    return value


def interface(value: str) -> str:
    """A network interface's name; whether it exists is not asked."""
    if not _INTERFACE.fullmatch(value):
        raise ValueError(f"'{value}' is not the name of an interface; 'ip -br link' lists them")
    return value


def interfaces(value: list[Any]) -> tuple[str, ...]:
    """Names of network interfaces."""
    for each in value:
        if not isinstance(each, str):
            raise ValueError(f"{each!r} is not the name of an interface")
        interface(each)
    return tuple(value)


def user(value: str) -> str:
    """A user's name; whether there is one is not asked."""
    if not _USER.fullmatch(value):
        raise ValueError(f"'{value}' is not the name of a user")
    return value


def group(value: str) -> str:
    """A group's name; whether there is one is not asked."""
    if not _USER.fullmatch(value):
        raise ValueError(f"'{value}' is not the name of a group")
    return value


def path(value: str) -> Path:
    """An absolute path."""
    made = Path(value)
    if "\0" in value or not made.is_absolute():
        raise ValueError(f"{value!r} is not an absolute path")
    return made


def command(value: list[Any]) -> tuple[str, ...]:
    """A program and its arguments, without a shell."""
    if not value or not all(isinstance(word, str) and word and "\0" not in word for word in value):
        raise ValueError("must be a list of words: the command and its arguments")
    return tuple(value)


def hook(value: list[Any]) -> tuple[str, ...]:
    """A program and its arguments, with placeholders."""
    made = command(value)
    known = ", ".join(f"{{{name}}}" for name in HOOK_NAMES)
    for word in made:
        for placeholder in _PLACEHOLDER.findall(word):
            if placeholder[1:-1] not in HOOK_NAMES:
                raise ValueError(f"{placeholder} is none of {known}")
    return made


def capabilities(value: list[Any]) -> tuple[str, ...]:
    """Names like CAP_SYS_RAWIO; whether the kernel knows them is not asked."""
    for word in value:
        if not isinstance(word, str) or not _CAPABILITY.fullmatch(word):
            raise ValueError(f"{word!r} is not a capability like CAP_SYS_RAWIO; capabilities(7) lists them")
    return tuple(value)


def mac(value: str) -> str:
    """A hardware address, in small letters."""
    if not _MAC.fullmatch(value.lower()):
        raise ValueError(f"'{value}' is not a MAC address like 52:54:00:12:34:56")
    return value.lower()


def _ipv4(value: str) -> IPv4Address:
    try:
        made = ip_address(value)
    except ValueError:
        raise ValueError(f"'{value}' is not an IP address") from None
    if not isinstance(made, IPv4Address):
        raise ValueError(f"'{value}' is not an IPv4 address; IPv6 is not supported yet")
    return made


def address(value: str) -> str:
    """An IPv4 address that a host can have."""
    made = _ipv4(value)
    if made.is_multicast or made.is_unspecified:
        raise ValueError(f"'{value}' can't be the address of a host")
    return str(made)


def address_and_port(value: Any, default: int) -> tuple[str, int]:
    """`ADDRESS` or `ADDRESS:PORT`; port 0 only as the default. Any value is taken, and all but these refused."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not ADDRESS:PORT")
    host, colon, port = value.partition(":")
    if colon and not (_NUMBER.fullmatch(port) and 0 < int(port) < 65536):
        raise ValueError(f"'{value}' is not ADDRESS:PORT")
    return str(_ipv4(host)), int(port) if colon else default


def listen(value: str) -> tuple[str, int]:
    """A host's own address and a port."""
    host, _, port = value.rpartition(":")
    if not host:
        host, port = value, str(DEFAULT_SYNC_PORT)
    if not _NUMBER.fullmatch(port) or not 0 < int(port) < 65536:
        raise ValueError(f"'{value}' is not ADDRESS:PORT")
    return address(host), int(port)


def witness(value: str) -> tuple[str, int]:
    """Where a witness is."""
    return address_and_port(value, DEFAULT_WITNESS_PORT)


def targets(value: list[Any]) -> tuple[tuple[str, int], ...]:
    """Machines whose answer proves our own connectivity: `ADDRESS` (port 0: ICMP echo) or `ADDRESS:PORT` (TCP)."""
    return tuple(address_and_port(one, 0) for one in value)


def ports(value: list[Any]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges of ports, sorted, none of them twice."""
    ranges = []
    for item in value:
        low, dash, high = str(item).replace(":", "-").partition("-")
        high = high if dash else low
        numbers = _NUMBER.fullmatch(low) and _NUMBER.fullmatch(high)
        if not (numbers and 0 < int(low) <= int(high) < 65536):
            raise ValueError(f"'{item}' is not a port or a range like \"7000-7099\"")
        ranges.append((int(low), int(high)))
    if not ranges:
        raise ValueError("list at least one port")
    ranges.sort()
    for (_, end), (begin, _) in pairwise(ranges):
        if begin <= end:
            raise ValueError(f"port {begin} is listed twice")
    return tuple(ranges)


CHECKS: Final[dict[Kind, tuple[type, Callable[[Any], Any] | None]]] = {
    Kind.FLAG: (bool, None),
    Kind.NUMBER: (int, None),
    Kind.MASK: (int, None),
    Kind.CHOICE: (str, None),
    Kind.NAME: (str, name),
    Kind.INSTANCE: (str, instance),
    Kind.INTERFACE: (str, interface),
    Kind.INTERFACES: (list, interfaces),
    Kind.USER: (str, user),
    Kind.GROUP: (str, group),
    Kind.ADDRESS: (str, address),
    Kind.LISTEN: (str, listen),
    Kind.WITNESS: (str, witness),
    Kind.MAC: (str, mac),
    Kind.PATH: (str, path),
    Kind.PORTS: (list, ports),
    Kind.TARGETS: (list, targets),
    Kind.COMMAND: (list, command),
    Kind.HOOK: (list, hook),
    Kind.CAPABILITIES: (list, capabilities),
}
"""The TOML type of a value, and its check; None: the declaration's bounds and choices say all. What a fence is made of
is not here: `config.fence` reads it as a whole."""
