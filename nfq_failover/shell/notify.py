"""Tells systemd how the daemon is (sd_notify(3)): datagrams of `KEY=value` lines to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

SHARE = 3  # keep-alives per watchdog time


class ServiceManager:
    """Systemd, if NOTIFY_SOCKET names it. Nothing here blocks or raises: a manager that is away does no harm.

    The watchdog (WATCHDOG_USEC, for this process if WATCHDOG_PID says so) is fed by `alive`, which the packet loop
    calls as long as it makes progress: a daemon that hangs is ended, and started again.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = self._parse(environment.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self._status = ""
        self._next_alive = 0.0
        self.watchdog_s = 0.0
        if self._address is None:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):  # now, while we may go wherever it is
            self._socket.connect(self._address)
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if ours and microseconds.isdecimal():
            self.watchdog_s = int(microseconds) / 1e6

    @staticmethod
    def _parse(name: str) -> str | None:
        if name.startswith("@") and len(name) > 1:
            return "\0" + name[1:]  # in the abstract namespace
        return name if name.startswith("/") else None

    def _say(self, text: str) -> None:
        if self._socket is not None and self._address is not None:
            try:
                self._socket.send(text.encode())
            except BlockingIOError:
                return
            except OSError:  # a new one listens there, or none
                with contextlib.suppress(OSError):
                    self._socket.sendto(text.encode(), self._address)

    def ready(self) -> None:
        """Say that the host is prepared and the loop begins."""
        self._say(f"READY=1\nMAINPID={os.getpid()}")

    def alive(self, now: float) -> None:
        """Say that the loop makes progress. Costs a comparison when it is too early to say so."""
        if self.watchdog_s and now >= self._next_alive:
            self._next_alive = now + self.watchdog_s / SHARE
            self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say one line for people, if it is new."""
        if text != self._status:
            self._status = text
            self._say("STATUS=" + text.replace("\n", " "))

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1")

    def close(self) -> None:
        """Close the socket. Can be repeated."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
