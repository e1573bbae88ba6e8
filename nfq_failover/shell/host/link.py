"""Before a host acts against its peer: is it the host itself that is cut off?

Its way to the peer must be whole (way.py), as far as it can see that alone. With `check_targets` one of them must
answer as well: a gateway, say, to an ICMP echo or by accepting a TCP connection. That proves that our frames reach
another machine and its frames reach us. It does not prove that clients reach us, nor anything about the peer: both
hosts of a broken pair can have a target's answer at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from array import array
from collections.abc import Callable

from nfq_failover.core.events import LinkChecked
from nfq_failover.wire.checksum import ipv4_header_checksum

_ECHO_REQUEST, _ECHO_REPLY = 8, 0  # RFC 792
_ECHO = struct.Struct("!BBHHH")
_SIOCGIFFLAGS = 0x8913
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A  # linux/sockios.h, linux/ethtool.h
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_REPEAT_S = 0.1  # a lost echo must not decide
_READ_AT_ONCE = 64


def _carrier(interface: str, ioctl: socket.socket) -> bool | None:
    """Returns whether the driver sees a carrier at this moment; None if it can't tell.

    The interface's IFF_RUNNING flag lags: the kernel brings it up to date at most once a second.
    """
    value = array("I", [_ETHTOOL_GLINK, 0])
    request = struct.pack("16sP", interface[:15].encode(), value.buffer_info()[0])
    try:
        fcntl.ioctl(ioctl, _SIOCETHTOOL, request.ljust(256, b"\0"))
    except OSError:
        return None
    return bool(value[1])


def link_up(interface: str, ioctl: socket.socket) -> tuple[bool, str]:
    """Returns whether our own link is up, administratively and with a carrier, and otherwise why not. `ioctl`: any
    socket."""
    try:
        answer = fcntl.ioctl(ioctl, _SIOCGIFFLAGS, struct.pack("256s", interface[:15].encode()))
    except OSError as error:
        return False, f"{interface}: {error.strerror}"
    (flags,) = struct.unpack_from("H", answer, 16)
    if not flags & _IFF_UP:
        return False, f"{interface} is down"
    carrier = _carrier(interface, ioctl)
    if carrier is False or (carrier is None and not flags & _IFF_RUNNING):
        return False, f"{interface} has no carrier"
    return True, ""


class Probe:
    """The question to one target: look for its answer (`answered`) again and again."""

    def __init__(self, target: tuple[str, int], source: str) -> None:
        """Raises OSError."""
        self.target = target
        self.failed = False
        self._number = int.from_bytes(os.urandom(2), "big")
        self._token = os.urandom(16)
        address, port = target
        if port:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        else:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        try:
            # Not from the service address, which the other host has as well.
            self._socket.bind((source, 0))
            if port:
                with contextlib.suppress(BlockingIOError):
                    self._socket.connect((address, port))
            else:
                self.repeat()
        except OSError:
            self._socket.close()
            raise

    def repeat(self) -> None:
        """Send one more echo request."""
        if not self.target[1]:
            head = _ECHO.pack(_ECHO_REQUEST, 0, 0, self._number, 1)
            summed = ipv4_header_checksum(head + self._token)
            with contextlib.suppress(OSError):
                self._socket.sendto(
                    _ECHO.pack(_ECHO_REQUEST, 0, summed, self._number, 1) + self._token, (self.target[0], 0)
                )

    def answered(self) -> bool:
        """Returns whether the target has answered; a refused connection is an answer of that machine as well."""
        if self.target[1]:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error not in (0, errno.ECONNREFUSED):
                self.failed = True
                return False
            with contextlib.suppress(OSError):
                self._socket.getpeername()
                return True
            return error == errno.ECONNREFUSED
        with contextlib.suppress(OSError):
            for _ in range(_READ_AT_ONCE):  # anybody may send us ICMP, as fast as the wire can
                data, (address, _) = self._socket.recvfrom(2048)
                body = data[(data[0] & 15) * 4 :] if data else b""
                if address == self.target[0] and body[:1] == bytes([_ECHO_REPLY]) and body[8:] == self._token:
                    return True
        return False

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()


class LinkChecker:
    """Runs checks for the event loop: each `start` has one `LinkChecked`, unless a newer check replaces it.

    `trouble()` looks at our way to the peer, and says what is wrong with it.
    The outcome is returned: by `start` if it is known at once, else by a later `tick`.
    """

    def __init__(
        self,
        trouble: Callable[[], str],
        source: str,
        targets: tuple[tuple[str, int], ...],
        deadline_ms: int,
    ) -> None:
        self._trouble = trouble
        self._source = source
        self._targets = targets
        self._deadline_s = deadline_ms / 1000
        self._probes: list[Probe] = []
        self._give_up = self._repeat_at = 0.0

    def follow(self, targets: tuple[tuple[str, int], ...], deadline_ms: int) -> None:
        """Ask these from the next check on."""
        self._targets = targets
        self._deadline_s = deadline_ms / 1000

    def start(self) -> LinkChecked | None:
        """Begin a check."""
        self.close()
        detail = self._trouble()
        if detail or not self._targets:
            return LinkChecked(not detail, detail)
        now = time.monotonic()
        self._give_up, self._repeat_at = now + self._deadline_s, now + _REPEAT_S
        for target in self._targets:
            with contextlib.suppress(OSError):  # no route
                self._probes.append(Probe(target, self._source))
        return None if self._probes else LinkChecked(False, "no target of check_targets can be asked")

    def tick(self, now: float) -> LinkChecked | None:
        """Look for answers; called at least every 50 ms."""
        if not self._probes:
            return None
        again = now >= self._repeat_at
        if again:
            self._repeat_at = now + _REPEAT_S
        for probe in self._probes:
            if probe.answered():
                return self._end(LinkChecked(True, f"{_name(probe.target)} answers"))
            if again:
                probe.repeat()
        if now >= self._give_up or all(probe.failed for probe in self._probes):
            names = ", ".join(_name(target) for target in self._targets)
            return self._end(LinkChecked(False, f"{names}: no answer"))
        return None

    def _end(self, outcome: LinkChecked) -> LinkChecked:
        self.close()
        return outcome

    def close(self) -> None:
        """Stop a check under way."""
        for probe in self._probes:
            probe.close()
        self._probes.clear()


def _name(target: tuple[str, int]) -> str:
    return f"{target[0]}:{target[1]}" if target[1] else target[0]
