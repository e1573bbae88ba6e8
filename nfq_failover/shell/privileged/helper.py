"""The privileged helper: a small process that does, as root, the few things for which the daemon is not trusted.

It installs, checks and removes the rules, looks at the host's own, runs and checks the fence command, configures the
service address and starts the heartbeat sender. The daemon asks over a socketpair, in typed requests (requests.py);
every command that is run comes from the helper's own copy of the configuration, which it got before the daemon had seen
a packet.

It ends when the daemon's end of the socket is closed. A rules script that runs then may finish (what it does is one
step of the host's rules, which the next daemon relies on); a fence is killed, since nobody is there any more to act on
it, and a peer that has come back in the meantime must not be turned off.

    python -P -m nfq_failover.shell.privileged.helper SOCKET_FD     settings (pickled) on standard input
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from nfq_failover.config import Config
from nfq_failover.config.differences import Differences, without_keys
from nfq_failover.core.events import Event, Fence, FenceFinished
from nfq_failover.core.ports import covers
from nfq_failover.errors import ConfigError
from nfq_failover.shell import signals
from nfq_failover.shell.fencing.agent import FenceKeeper
from nfq_failover.shell.fencing.check import UNKNOWN, RunningCheck, fault
from nfq_failover.shell.firewall.script import RulesError, RulesRunner, RunningScript
from nfq_failover.shell.host.loopback import change_address
from nfq_failover.shell.loop import Loop
from nfq_failover.shell.privileged import rights
from nfq_failover.shell.privileged.descriptors import left
from nfq_failover.shell.privileged.last_good import keep
from nfq_failover.shell.privileged.requests import (
    MAX_MESSAGE,
    REFUSED,
    ChangeAddress,
    CheckFence,
    CheckRules,
    FencePeer,
    HelperSettings,
    InstallRules,
    LookAtHost,
    Ping,
    Refused,
    Reload,
    RemoveRules,
    Reply,
    Request,
    StartSender,
    decode_request,
    descriptors,
    encode_reply,
    read_flows,
    sealed,
)
from nfq_failover.shell.privileged.reread import Known, fingerprint

MAX_DESCRIPTORS = 4
TICK_S = 0.05  # while a fence runs
SENDER_WAIT_S = 2.0
SAY_EVERY_S = 1.0


class Helper:
    """Answers requests one after another; rules script and fence run beside it."""

    def __init__(self, settings: HelperSettings, control: socket.socket) -> None:
        """`control`: the helper's end of the SEQPACKET socketpair."""
        self._settings = settings
        self._control = control
        self._loop = Loop()
        self._loop.watch(control.fileno(), self._serve)
        self._ending = False
        self._rules = RulesRunner(settings.rules)
        self._first_ports = settings.rules.ports
        self._fences = FenceKeeper(settings.fence, settings.peers, self._loop, self)
        self._fence_numbers: dict[str, int] = {}
        self._check: tuple[int, RunningCheck] | None = None
        self._script: tuple[int, RunningScript] | None = None
        self._look: tuple[int, RunningScript] | None = None  # beside the other: it changes nothing
        self._senders: dict[int, subprocess.Popen[bytes]] = {}
        self._said_at = 0.0
        self.refused = 0

    def run(self) -> None:
        """Answer requests until the daemon is gone, then end in order."""
        # Ends: with the helper.
        while not self._ending:
            now = time.monotonic()
            busy = self._fence_numbers or self._check is not None
            self._loop.serve(self._loop.wait(now, TICK_S if busy else math.inf))
            now = time.monotonic()
            if not self._ending:
                self._fences.tick(now)
                if self._check is not None and now >= self._check[1].deadline:
                    self._fence_checked()
        self._finish()

    def _finish(self) -> None:
        self._fences.close()
        self._fence_checked()
        if self._script is not None:
            self._script[1].wait()
        if self._look is not None:
            self._look[1].wait()
        give_up = time.monotonic() + SENDER_WAIT_S
        for sender in self._senders.values():  # they end by themselves, as we do
            try:
                sender.wait(max(give_up - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                sender.kill()
                sender.wait()

    # ------------------------------------------------------------------------------------ requests

    def _serve(self) -> None:
        """Take one request, or see that none will come any more."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._control, MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except InterruptedError:
            return
        except OSError:
            self._ending = True
            return
        try:
            if not data:
                self._ending = True
                return
            number = 0
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise Refused("too long")
                number, request = decode_request(data)
                if len(fds) != descriptors(request):
                    raise Refused(f"{len(fds)} descriptors came with it")
                self._carry_out(number, request, fds)
            except Refused as refusal:
                self._refuse(number, str(refusal))
        finally:
            for fd in fds:
                os.close(fd)

    def _refuse(self, number: int, why: str) -> None:
        """Refuse what our own daemon does not ask for: somebody else asks, or the daemon has a bug."""
        self.refused += 1
        now = time.monotonic()
        if now >= self._said_at + SAY_EVERY_S and select.select([], [2], [], 0)[1]:
            self._said_at = now
            with contextlib.suppress(OSError):
                os.write(2, f"nfq-failover: the helper refuses a request ({self.refused} so far): {why}\n".encode())
        self._reply(number, REFUSED, f"refused: {why}")

    def _reply(self, number: int, status: int, said: str = "", fds: Sequence[int] = ()) -> bool:
        """Answer. Returns whether that could be sent: if nobody reads the answers, they are not worth waiting for."""
        try:
            socket.send_fds(self._control, [encode_reply(Reply(number, status, said))], list(fds), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def _carry_out(self, number: int, request: Request, fds: list[int]) -> None:
        if isinstance(request, InstallRules | CheckRules | RemoveRules):
            self._start_script(number, request, fds)
        elif isinstance(request, LookAtHost):
            self._start_look(number)
        elif isinstance(request, FencePeer):
            self._fence(number, request)
        elif isinstance(request, CheckFence):
            self._check_fence(number, request)
        elif isinstance(request, Ping):
            self._reply(number, 0, str(left()))
        elif isinstance(request, ChangeAddress):
            if not self._settings.manage_address:
                raise Refused("the operator manages the address")
            problem = change_address(str(IPv4Address(self._settings.service)), request.add)
            self._reply(number, -1 if problem else 0, problem)
        elif isinstance(request, StartSender):
            self._start_sender(number, fds)
        elif isinstance(request, Reload):
            self._reload(number)

    def _reload(self, number: int) -> None:
        """Read the configuration again, go by it, and hand it to the daemon."""
        known = self._settings.known
        if known is None:
            raise Refused("there is no file to read again")
        changes: Differences | ConfigError
        text = ""
        try:
            changes, text = known.reread()
        except ConfigError as error:
            changes = error
        try:
            answer = sealed("nfqf-changes", pickle.dumps(changes))
        except OSError as error:
            self._reply(number, -1, f"no memory for the configuration: {error}")
            return
        try:
            if isinstance(changes, ConfigError):
                self._reply(number, 1, "", (answer,))
                return
            kept_in = changes.config.last_good
            if self._reply(number, 0, keep(text, kept_in) if kept_in else "", (answer,)):
                self._follow(known, changes.config)
        finally:
            os.close(answer)

    def _follow(self, known: Known, config: Config) -> None:
        """Go by another configuration. What it can't have changed, `reread` has left as it was."""
        settings = self._settings
        changed = config.witness is not None and config.witness.key
        witness = fingerprint(changed) if changed else known.witness_key
        self._settings = replace(
            settings,
            rules=replace(settings.rules, ports=config.settings.ports),
            fence=config.fence,
            max_flows=config.settings.max_connections,
            known=Known(without_keys(config), known.key, witness),
        )
        self._rules.serve(config.settings.ports)
        self._fences.follow(config.fence)

    # ------------------------------------------------------------------------------------ rules

    def _start_script(self, number: int, request: InstallRules | CheckRules | RemoveRules, fds: list[int]) -> None:
        if self._script is not None:
            raise Refused("a rules script runs already")
        try:
            if isinstance(request, InstallRules):
                options, most = self._settings.rules, self._settings.max_flows
                flows = read_flows(fds[0], self._settings.service, options.ports, most) if request.flows else ()
                diverted = self._first_ports if request.ports is None else request.ports
                if not covers(options.ports, diverted):
                    raise Refused("ports of another service")
                script = self._rules.start_apply(request.profile, flows, diverted)
            elif isinstance(request, CheckRules):
                script = self._rules.start_check()
            else:
                script = self._rules.start_remove(request.force)
        except (RulesError, OSError) as error:
            self._reply(number, -1, str(error))
            return
        self._script = (number, script)
        self._loop.watch(script.pidfd(), self._script_ended)

    def _script_ended(self) -> None:
        if self._script is None:
            return
        (number, script), self._script = self._script, None
        self._loop.unwatch(script.pidfd())
        self._reply(number, *script.wait())

    def _start_look(self, number: int) -> None:
        if self._look is not None:
            raise Refused("it is being looked at already")
        try:
            script = self._rules.start_look()
        except RulesError as error:
            self._reply(number, -1, str(error))
            return
        self._look = (number, script)
        self._loop.watch(script.pidfd(), self._look_ended)

    def _look_ended(self) -> None:
        if self._look is None:
            return
        (number, script), self._look = self._look, None
        self._loop.unwatch(script.pidfd())
        status, said = script.wait()
        self._reply(number, status, said)

    # ------------------------------------------------------------------------------------ fence

    def _fence(self, number: int, request: FencePeer) -> None:
        if request.peer not in {peer.name for peer in self._settings.peers}:
            raise Refused("there is no such peer")
        self._fence_checked()  # some devices take one at a time
        self._fence_numbers[request.peer] = number
        self._fences.start(Fence(request.peer, request.deadline_ms))

    def _check_fence(self, number: int, request: CheckFence) -> None:
        peers = {peer.name: peer for peer in self._settings.peers}
        if request.peer not in peers or self._check is not None:
            raise Refused("there is no such peer, or a check runs already")
        plan = self._settings.fence
        problem = fault(plan) if plan else "there is no fence"
        if problem or not plan.agent or self._fence_numbers:
            self._reply(number, 1 if problem else 0, problem or UNKNOWN)
            return
        try:
            check = RunningCheck(plan, peers[request.peer], request.deadline_ms)
        except OSError as error:
            self._reply(number, 1, f"the fence agent can't be started: {error}")
            return
        self._check = (number, check)
        self._loop.watch(check.fileno(), self._fence_checked)

    def _fence_checked(self) -> None:
        """The check of the fence has an answer; or it must end without one."""
        if self._check is None:
            return
        (number, check), self._check = self._check, None
        self._loop.unwatch(check.fileno())
        ok, said = check.finish()
        self._reply(number, 0 if ok else 1, said)

    def answer(self, event: Event) -> None:
        """Tell the daemon how a fence has ended."""
        if isinstance(event, FenceFinished):
            number = self._fence_numbers.pop(event.peer, None)
            if number is not None:
                self._reply(number, 0 if event.ok else 1, event.detail)

    # ------------------------------------------------------------------------------------ heartbeat sender

    def _start_sender(self, number: int, fds: list[int]) -> None:
        if len(self._senders) > 1:  # the old one may be about to end
            raise Refused("a heartbeat sender runs already")
        words = [str(self._settings.heartbeat_interval_ms), *map(str, fds)]
        if self._settings.user is not None:
            words += map(str, self._settings.user)
        argv = [sys.executable, "-P", "-m", "nfq_failover.shell.peer.heartbeat_sender", *words]
        try:
            with signals.kept_back():
                process = subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.DEVNULL)
        except OSError as error:
            self._reply(number, -1, f"can't start the heartbeat sender: {error}")
            return
        pidfd = os.pidfd_open(process.pid)
        self._senders[pidfd] = process
        self._loop.watch(pidfd, lambda: self._sender_ended(pidfd))
        self._reply(number, 0)

    def _sender_ended(self, pidfd: int) -> None:
        self._loop.unwatch(pidfd)
        self._senders.pop(pidfd).wait()
        os.close(pidfd)


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a group's: the daemon says when it is over
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which scripts and fences would inherit
    signals.survive()
    # Written by our parent before it gave its rights up and had read anything from outside.
    settings: HelperSettings = pickle.load(sys.stdin.buffer)  # noqa: S301
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    if settings.keep is not None:
        try:
            rights.limit(settings.keep, settings.no_new_privileges)
        except OSError as error:
            sys.exit(f"nfq-failover: the helper can't give its rights up (CAP_SETPCAP is needed): {error}")
    Helper(settings, socket.socket(fileno=int(arguments[0]))).run()


if __name__ == "__main__":
    main(sys.argv[1:])
