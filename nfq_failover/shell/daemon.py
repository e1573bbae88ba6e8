"""The daemon: one loop that drives the services of this host.

Order matters. On each wake-up the sync sockets are read first and completely, so that news (a newer epoch, late
heartbeats) counts before packets are judged and before timers fire; then come the answers of slow actions, then the
queues and the copies, then time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import time
from collections.abc import Callable
from typing import Any

import structlog

from nfq_failover.shell import logs, signals
from nfq_failover.shell.control import ControlServer, status_only
from nfq_failover.shell.loop import Loop
from nfq_failover.shell.service import Service
from nfq_failover.shell.start import Prepared
from nfq_failover.shell.trouble import out_of_memory
from nfq_failover.shell.undo import Undo

MAX_WAIT_S = 0.05

log = structlog.get_logger()


class Daemon:
    """Runs services until it is told to stop.

    `run` undoes everything that was done to the host, on every way out. The one exception is a service that this host
    serves alone (see `Service`); only `leave` (or SIGINT) ends that as well.
    """

    def __init__(self, prepared: Prepared, *, follows_level: bool = False) -> None:
        """`follows_level`: a reload may change what is logged."""
        self._follows_level = follows_level
        self.services: list[Service] = []
        self._prepared = prepared
        self._loop = Loop()
        self._undo = Undo()
        self._stopping = False
        self._for_good = False
        self._signals: set[int] = set()  # that have come, and end nothing

    # ------------------------------------------------------------------------------------ life

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Start, serve until SIGTERM or SIGINT, undo. Raises `NfqFailoverError` if it can't start."""
        with contextlib.suppress(ValueError, OSError):  # no standard error
            faulthandler.enable()  # systemd's watchdog ends a hanging daemon by SIGABRT: say where it hung
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signals.survive(self._signals.add)
        manager = self._prepared.manager
        try:
            self._start()
            ready()
            manager.ready()
            try:
                self._serve()
            except MemoryError:
                out_of_memory()
        except BaseException:
            for service in self.services:
                service.fail(self._for_good)
            raise
        finally:
            manager.stopping()
            self._undo.run()
            self._prepared.undo.run()
            self._loop.close()

    def _start(self) -> None:
        prepared, loop = self._prepared, self._loop
        for warning in prepared.warnings():
            log.warning("privileges", said=warning)
        for own in prepared.services:
            self.services.append(self._undo.closing(Service.open(own, prepared, loop, self._follow_level)))
        control = ControlServer(prepared.control, self._control, prepared.may_ask())
        self._undo.add(control.close)
        loop.watch(control.fileno(), control.serve)
        if prepared.status_socket is not None:
            shown = ControlServer(prepared.status_socket, status_only(self._control), group=True)
            self._undo.add(shown.close)
            loop.watch(shown.fileno(), shown.serve)
        for service in self.services:
            service.begin()

    def _stop(self, number: int, frame: object) -> None:
        del frame
        self._stopping = True
        self._for_good = self._for_good or number == signal.SIGINT

    # ------------------------------------------------------------------------------------ the loop

    def _serve(self) -> None:
        # Ends: with the daemon.
        while True:
            self._turn()
            # Ends: each turn takes one out.
            while self._signals:
                self._signalled(self._signals.pop())
            if self._stopping:
                break
        for service in self.services:
            service.end(self._for_good)

    def _signalled(self, number: int) -> None:
        """Do what a signal asks for, if anything."""
        if number == signal.SIGUSR1:
            for service in self.services:
                service.dump()
        elif number == signal.SIGHUP:
            for service in self.services:
                service.reload()

    def _follow_level(self, level: str) -> None:
        if self._follows_level:
            logs.set_level(level)

    def _turn(self) -> None:
        """One wake-up, with the wait before it."""
        loop, services, progress = self._loop, self.services, True
        now = time.monotonic()
        for service in services:
            progress &= service.before_wait(now)
        if progress:
            self._prepared.manager.alive(now)
        logs.pass_time(now)
        readable = loop.wait(now, MAX_WAIT_S)
        for service in services:
            service.read_sync(readable)
        loop.serve(readable)
        for service in services:
            service.read_packets(readable)
        news = False
        for service in services:
            news |= service.let_time_pass()
        if news:
            self._prepared.manager.status("; ".join(service.summary() for service in services))

    # ------------------------------------------------------------------------------------ control

    def _control(self, command: str, request: dict[str, Any]) -> dict[str, Any]:
        if command == "ping":
            return {"pong": True}
        if command == "leave":
            self._stopping = self._for_good = True
            return {"state": ", ".join(service.state for service in self.services)}
        if command not in ("status", "claim", "replica-is-whole", "reload"):
            return {"error": f"unknown command '{command}': status, claim, replica-is-whole, reload, leave or ping"}
        wanted = request.get("service")
        asked = [service for service in self.services if wanted in (None, service.name)]
        if len(asked) != 1:
            return {"error": f"name one 'service' of {', '.join(service.name for service in self.services)}"}
        if command == "replica-is-whole":
            return asked[0].replica_is_whole()
        if command == "reload":
            number = request.get("number")
            return asked[0].reloaded(number) if isinstance(number, int) else {"number": asked[0].reload()}
        return asked[0].status() if command == "status" else asked[0].claim()
