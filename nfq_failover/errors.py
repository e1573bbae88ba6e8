"""Typed errors, split by whose fault they are.

A bad packet or datagram raises one of the `Malformed*` errors inside the wire layer and becomes a counted verdict in
the core; it never ends a loop. `ConfigError` and `CommandError` carry what the user should do next. `InternalError` is
our own bug.
"""

from __future__ import annotations

from dataclasses import dataclass


class NfqFailoverError(Exception):
    """Base of all errors of this package."""


class MalformedSegment(NfqFailoverError):
    """A packet that is not a well-formed TCP segment. `reason` is a short, countable slug."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MalformedDatagram(NfqFailoverError):
    """A sync datagram that was refused. `reason` is a short, countable slug."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongName(MalformedDatagram):
    """A datagram of a handshake that was made with our key, but is not from our peer to us: `sender` and `receiver` are
    the names in it."""

    def __init__(self, sender: str, receiver: str) -> None:
        super().__init__("wrong-name")
        self.sender = sender
        self.receiver = receiver


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a configuration file, or doubtful: `what` says it, and what to do.

    `file` is the path, or what else the configuration is called. `line` counts from 1; 0 is the file as a whole.
    `table` is how the table is written ("[health]", "[[peer]] 1"), empty for the top level. `setting` is the name of
    the setting, empty if it is not about one.
    """

    what: str
    file: str = ""
    line: int = 0
    table: str = ""
    setting: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.table, self.what) if part)


class ConfigError(NfqFailoverError):
    """The configuration is wrong; the message says which setting and what to do. `faults`: all that was found, in the
    order of the file; the message has a line for each."""

    def __init__(self, *faults: Fault | str) -> None:
        self.faults = tuple(Fault(each) if isinstance(each, str) else each for each in faults)
        super().__init__("\n".join(map(str, self.faults)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[Fault, ...]]:
        return type(self), self.faults


class CommandError(NfqFailoverError):
    """A command can't be carried out; the message says what to do next. Exit code 2."""


class StartRefused(NfqFailoverError):
    """The configuration is right, and the host is not as a daemon needs it: it may be at the next start. Exit code 1,
    after which a service manager tries again, as it does not after that of a `ConfigError`."""


class InternalError(NfqFailoverError):
    """A broken invariant: our own bug."""
