"""Typed errors, split by whose fault they are.

A bad packet or datagram raises one of the `Malformed*` errors inside the wire layer and becomes a counted verdict in
the core; it never ends a loop. `ConfigError` and `CommandError` carry what the user should do next. `InternalError` is
our own bug.
"""

from __future__ import annotations


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


class ConfigError(NfqFailoverError):
    """The configuration is wrong; the message says which setting and what to do."""


class CommandError(NfqFailoverError):
    """A command can't be carried out; the message says what to do next. Exit code 2."""


class InternalError(NfqFailoverError):
    """A broken invariant: our own bug."""
