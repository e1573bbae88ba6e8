"""The server application of one host as a process: it dies, exits in mid-response, hangs, refuses, is started again.

What its kernel makes of its end is Linux's: a socket with unread data is reset, any other one is closed after what is
in its buffer, and what the client sends after that is answered by RST (tcp_close, tcp_rcv_state_process). A process
that is stopped keeps its sockets: what came before a reset is there to be read when it goes on (tcp_reset).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

from nfq_failover.core.events import Event, HealthChecked, ListenersSeen, Sockets
from nfq_failover.wire.segment import FlowKey

from .clock import Clock, HostClock
from .kernel import Kernel
from .tcp import Tcp

CHECK_INTERVAL_S, CHECK_TIMEOUT_S = 0.2, 0.2
SEEN_S = 0.1
ORPHAN_S = 60.0  # tcp_fin_timeout


class Machine(Protocol):
    """What a process needs of its host. `run` counts the lives of the daemon, which checks the health."""

    clock: Clock
    ticks: HostClock
    kernel: Kernel
    running: bool
    run: int
    name: str

    @property
    def serves(self) -> bool:
        """Whether it is this host that clients hear."""

    @property
    def replica_knows(self) -> bool:
        """Whether the application is a replica that has missed nothing, and has been sent something."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Where the application listens."""

    def accepted(self, tcp: Tcp) -> None:
        """The application gets a connection."""

    def application_failed(self, how: str, alone: FlowKey | None = None) -> None:
        """The application fails now, or only the process of one connection (`alone`)."""

    def later(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        """This life of the host calls something later."""

    def feed(self, event: Event) -> None:
        """The daemon gets an input."""


class Stopped(Protocol):
    """What a process that hangs would have done with one connection."""

    tcp: Tcp

    def readable(self) -> None:
        """It goes on."""


class Application:
    """`state`: well, dead or hung. `refuses`: it goes on, but its listeners are gone. `broken`: the connections whose
    process has failed on this host, in this life, but for those whose port was used again since; `lost` has all, with
    the client's initial sequence number. `exit_at`: it exits when one connection has written this many bytes,
    the whole application or (`alone`) the one process that serves it."""

    def __init__(self, host: Machine) -> None:
        self.host = host
        self.state, self.refuses, self.alone = "well", False, False
        self.broken: set[FlowKey] = set()
        self.lost: set[tuple[FlowKey, int]] = set()
        self.exit_at: int | None = None
        self.failed_at = 0.0
        self.forgot_at: float | None = None  # by the host's clock: a replica was started anew, and had known something
        self._knew = False  # when it died
        self._stopped: list[Stopped] = []
        self._sockets = count(1)
        self.sockets: Sockets = frozenset()

    def boot(self) -> None:
        """The host has booted."""
        self.state, self.refuses, self.exit_at = "well", False, None
        self.broken, self.lost = set(), set()
        self.forgot_at, self._knew = None, False
        self._stopped.clear()
        self.sockets = frozenset()

    @property
    def well(self) -> bool:
        """Whether the application serves everybody who comes."""
        return self.state == "well" and not self.refuses

    def listen(self) -> None:
        """The application takes new connections, unless it is dead or refuses them."""
        if self.state != "dead" and not self.refuses:
            if not self.host.kernel.listeners:
                inode = next(self._sockets)
                self.sockets = frozenset((port, inode) for port in self.host.ports)
            for port in self.host.ports:
                self.host.kernel.listeners[port] = self.host.accepted
            self._seen()

    def start(self) -> None:
        """The application is started (again); one that hangs is killed first."""
        if self.well:
            return
        if self.state == "hung":
            self.die()
        self.state, self.refuses, self.exit_at = "well", False, None
        if self._knew:
            self.forgot_at, self._knew = self.host.ticks.now, False
        self.listen()

    def replace(self) -> None:
        """Another program takes over its connections and its state, and listens in its place."""
        if self.sockets:
            inode = next(self._sockets)
            self.sockets = frozenset((port, inode) for port in self.host.ports)
            self._seen()

    def remembers(self) -> None:
        """An operator has given it the state of the other one."""
        self.forgot_at, self._knew = None, False

    def _deaf(self) -> None:
        self.host.kernel.listeners.clear()
        self.sockets = frozenset()
        self._seen()

    def _seen(self) -> None:
        """The daemon sees the listening sockets, a little later."""
        if self.host.running:
            self.host.later(SEEN_S, self.look)

    def look(self) -> None:
        """The daemon looks at them."""
        self.host.feed(ListenersSeen(self.sockets))

    # ------------------------------------------------------------------------------------ failures

    def _fail(self, how: str) -> None:
        self.failed_at = self.host.clock.now
        self.host.application_failed(how)

    def die(self) -> None:
        """The process is killed (kill -9)."""
        if self.state == "dead":
            return
        kernel = self.host.kernel
        self._fail("die")
        self._knew = self.host.replica_knows
        self.state, self.exit_at = "dead", None
        self._deaf()
        for tcp in list(kernel.flows.values()):
            self._close(tcp)
        for app in self._stopped:
            self._break(app.tcp)  # what it had to read is lost
        self._stopped.clear()

    def hang(self, seconds: float) -> None:
        """The process is stopped (kill -STOP), for `seconds` unless that is 0; the kernel still acknowledges."""
        if not self.well:
            return
        self._fail("hang")
        self.state = "hung"
        if seconds:
            self.host.later(seconds, self._continue)

    def stops(self, app: Stopped) -> None:
        """One connection has something to be done, but the process hangs."""
        self._stopped.append(app)

    def _continue(self) -> None:
        if self.state == "hung":
            self.state = "well"
            for tcp in self.host.kernel.flows.values():
                if tcp.app is not None:
                    tcp.app.readable()
            for app in self._stopped:  # also of connections that were reset: the kernel has forgotten those
                app.readable()
            self._stopped.clear()

    def refuse(self) -> None:
        """The application no longer listens, and goes on with the connections that it has."""
        if self.well:
            self._fail("refuse")
            self.refuses = True
            self._deaf()

    def exits(self, tcp: Tcp) -> None:
        """A connection has written as many bytes as `exit_at` says."""
        self.exit_at = None
        if not self.alone:
            self.die()
        elif tcp.fin_at is None:
            self.host.application_failed("exit", (*tcp.remote, *tcp.local))
            self._close(tcp)

    def _break(self, tcp: Tcp) -> None:
        flow = (*tcp.remote, *tcp.local)
        self.broken.add(flow)
        self.lost.add((flow, tcp.theirs.base))

    def _close(self, tcp: Tcp) -> None:
        """The kernel closes what a process has left open."""
        if tcp.state in ("closed", "time-wait") or tcp.fin_at is not None:
            return
        self._break(tcp)
        tcp.app = None
        if tcp.state == "syn-received":
            tcp.abandon()  # a request that nobody will accept; what comes next is answered by RST
        elif tcp.received.end > tcp.read_at:
            tcp.abort()
        else:
            tcp.orphan = True
            tcp.close()
            self.host.clock.after(ORPHAN_S, tcp.abandon)

    # ------------------------------------------------------------------------------------ health checks

    def watch(self, run: int) -> None:
        """The daemon checks the application's health as long as it runs."""
        self._again(run, self._check, CHECK_INTERVAL_S)

    def _again(self, run: int, call: Callable[..., None], seconds: float, *arguments: object) -> None:
        if run == self.host.run and self.host.running:
            self.host.later(seconds, call, run, *arguments)

    def _check(self, run: int) -> None:
        ok = self.well and bool(self.host.kernel.listeners)
        self._again(run, self._checked, CHECK_TIMEOUT_S if self.state == "hung" else 0.002, ok, self.host.ticks.now)

    def _checked(self, run: int, ok: bool, began: float) -> None:
        if run == self.host.run:
            self.host.feed(HealthChecked(ok, "" if ok else "does not accept", self.host.ticks.now - began))
            self._again(run, self._check, CHECK_INTERVAL_S)
