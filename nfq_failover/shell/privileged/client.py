"""The daemon's side of its privileged helper (helper.py): rules and fences that the helper carries out.

Nothing here waits unless it is told to: a request that can't be sent at once has failed, and a reply makes the
descriptor of its request readable.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nfq_failover.config import Config
from nfq_failover.config.differences import without_keys
from nfq_failover.core.events import Fence, FenceFinished, Profile
from nfq_failover.core.ports import Ports
from nfq_failover.core.settings import Peer
from nfq_failover.errors import CommandError
from nfq_failover.shell import signals
from nfq_failover.shell.answers import Answers
from nfq_failover.shell.firewall.script import PROBLEM, PeerHost, RulesError, RulesOptions
from nfq_failover.shell.loop import Loop
from nfq_failover.shell.privileged.account import Account
from nfq_failover.shell.privileged.requests import (
    MAX_MESSAGE,
    ChangeAddress,
    CheckRules,
    FencePeer,
    HelperSettings,
    InstallRules,
    LookAtHost,
    RemoveRules,
    Reply,
    Request,
    StartSender,
    decode_reply,
    encode_request,
    flow_file,
)
from nfq_failover.shell.privileged.reread import Known, fingerprint
from nfq_failover.shell.privileged.rights import HELPER
from nfq_failover.wire.segment import FlowKey

WAIT_S = 40.0  # for a rules script: it gets 30 s
GRACE_S = 1.0  # the helper's own deadline for a fence comes first
CLOSE_WAIT_S = 35.0
_GONE = -1
_SNDBUF = 1 << 20
_SPARE = 8  # descriptors for requests under way: rules, fence, checks, ping


def _content(fd: int) -> bytes:
    """What is in a file that has come with a message; it is closed."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()


def _event() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def helper_settings(config: Config, user: Account | None, owned: bool = True) -> HelperSettings:
    """Returns what the helper gets to know. `owned`: as of the `Injector`."""
    settings, wanted = config.settings, config.privileges
    return HelperSettings(
        service=settings.service,
        rules=RulesOptions(
            service=config.service,
            ports=settings.ports,
            interface=config.interface,
            tap=config.tap,
            peers=tuple(PeerHost(peer.address, config.peer_macs.get(peer.address)) for peer in settings.peers),
            conntrack=config.conntrack,
            instance=config.instance,
            queue_in=config.queue_in,
            queue_out=config.queue_out,
            mark=config.mark,
            owned=owned,
            state_dir=config.state_dir / "rules",
            script=config.rules_script,
        ),
        manage_address=config.manage_address,
        fence=config.fence,
        peers=settings.peers,
        max_flows=settings.max_connections,
        known=Known(
            without_keys(config),
            fingerprint(settings.key),
            b"" if config.witness is None else fingerprint(config.witness.key),
        ),
        heartbeat_interval_ms=settings.heartbeat_interval_ms,
        user=(user.uid, user.gid) if user else None,
        keep=HELPER | frozenset(wanted.fence_capabilities) if user else None,
        no_new_privileges=not wanted.fence_setuid,
    )


@dataclass(slots=True)
class Pending:
    """A request under way: `fileno()` is readable when the reply is there."""

    helper: HelperClient
    number: int
    _event: int
    reply: Reply | None = None
    file: bytes = b""

    def fileno(self) -> int:
        """The descriptor, readable when the reply is there."""
        return self._event

    def settle(self, reply: Reply, file: bytes = b"") -> None:
        """Take the reply, and the content of the file that may come with it."""
        self.reply, self.file = reply, file
        os.eventfd_write(self._event, 1)

    def wait(self, timeout_s: float = WAIT_S) -> Reply:
        """Wait for the reply, and close the descriptor. Returns the reply."""
        give_up = time.monotonic() + timeout_s
        # Ends: by the deadline.
        while self.reply is None:
            left = give_up - time.monotonic()
            if left <= 0:
                self.reply = Reply(self.number, _GONE, "the privileged helper does not answer")
                break
            self.helper.serve(left)
        self.close()
        return self.reply

    def close(self) -> None:
        """Wait for the reply no more. Can be repeated."""
        self.helper.forget(self.number)
        if self._event >= 0:
            self.helper.spare(self._event)
            self._event = -1


class HelperClient:
    """Starts the helper, sends requests, takes replies. `gone` once it has ended, which no daemon survives."""

    def __init__(self, settings: HelperSettings) -> None:
        """Must be called as root. Raises `CommandError`."""
        self.gone = False
        self._pending: dict[int, Pending] = {}
        self._number = 0
        # A takeover asks for a fence and for rules, and must not fail for want of a descriptor.
        self._spare = [_event() for _ in range(_SPARE)]
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF)
        self._socket.setblocking(False)
        copy = os.memfd_create("nfqf-settings", os.MFD_CLOEXEC)
        try:
            with theirs, open(copy, "wb", closefd=False) as file:
                file.write(pickle.dumps(settings))
                file.flush()
                os.lseek(copy, 0, os.SEEK_SET)
                argv = [sys.executable, "-P", "-m", "nfq_failover.shell.privileged.helper", str(theirs.fileno())]
                with signals.kept_back():
                    self.process = subprocess.Popen(
                        argv, stdin=copy, pass_fds=(theirs.fileno(),), start_new_session=True
                    )
        except OSError as error:
            self._socket.close()
            raise CommandError(f"can't start the privileged helper: {error}") from None
        finally:
            os.close(copy)

    def fileno(self) -> int:
        """The descriptor, readable when there are replies, or when the helper is gone."""
        return self._socket.fileno()

    def ask(self, request: Request, fds: Sequence[int] = ()) -> Pending:
        """Send a request. One that can't be sent has failed, and its reply says so at once. Raises OSError if very many
        are under way and no more descriptors are to be had."""
        self._number += 1
        event = self._spare.pop() if self._spare else _event()
        pending = self._pending[self._number] = Pending(self, self._number, event)
        try:
            socket.send_fds(self._socket, [encode_request(self._number, request)], list(fds))
        except OSError as error:
            self.forget(pending.number)
            pending.settle(Reply(pending.number, _GONE, f"the privileged helper can't be asked: {error}"))
        return pending

    def serve(self, wait_s: float = 0.0) -> None:
        """Take the replies that are there."""
        if not select.select([self._socket], [], [], wait_s)[0]:
            return
        # Ends: the helper answers each question once.
        while not self.gone:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            file = b"".join(map(_content, fds))
            if not data:
                self._lose()
                return
            reply = decode_reply(data)
            pending = self._pending.get(reply.number)
            if pending is not None:
                self.forget(reply.number)
                pending.settle(reply, file)

    def _lose(self) -> None:
        self.gone = True
        for pending in list(self._pending.values()):
            pending.settle(Reply(pending.number, _GONE, "the privileged helper has ended"))
        self._pending.clear()

    def forget(self, number: int) -> None:
        """Ignore the reply to the request of this number."""
        self._pending.pop(number, None)

    def spare(self, event: int) -> None:
        """Take back the descriptor of a request that nobody waits for any more."""
        if self._socket.fileno() < 0 or len(self._spare) >= _SPARE:
            os.close(event)
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
        self._spare.append(event)

    def change_address(self, add: bool) -> str:
        """Do what `host.loopback.change_address` does, by way of the helper, and wait for it."""
        reply = self.ask(ChangeAddress(add)).wait()
        return (reply.said or f"status {reply.status}") if reply.status else ""

    def start_sender(self, fds: Sequence[int]) -> None:
        """Start a heartbeat sender; whether it lives, its end of the orders' socket shows."""
        self.ask(StartSender(), fds).close()

    def close(self) -> None:
        """Let the helper end, after what it has to finish. Can be repeated."""
        self._socket.close()
        for event in self._spare:
            os.close(event)
        self._spare.clear()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_WAIT_S)


class RemoteScript:
    """A run of the rules script by the helper (a `Script` of firewall/keeper.py)."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def pidfd(self) -> int:
        """A descriptor that polls readable when the script has ended."""
        return self._pending.fileno()

    def wait(self) -> tuple[int, str]:
        """Wait for the end. Returns the exit code and what the script said."""
        reply = self._pending.wait()
        return reply.status, reply.said

    @property
    def done(self) -> bool:
        """Whether the script has ended."""
        return self._pending.reply is not None

    def close(self) -> None:
        """Wait for the script no more. Can be repeated."""
        self._pending.close()

    def finish(self) -> str:
        """Returns the warnings ('' for none) of a run that succeeded. Raises RulesError for one that did not."""
        status, said = self.wait()
        if status:
            raise RulesError(status, said)
        return said

    def finish_check(self) -> str | None:
        """For `start_check`: returns None if all rules are as installed, else what is missing or changed."""
        status, said = self.wait()
        if status not in (0, PROBLEM):
            raise RulesError(status, said)
        return said if status else None


class RemoteRules:
    """The rules, by way of the helper (a `Runner` of firewall/keeper.py)."""

    def __init__(self, helper: HelperClient) -> None:
        self._helper = helper

    def start_apply(
        self, profile: Profile, inherited: Sequence[FlowKey] = (), ports: Ports | None = None
    ) -> RemoteScript:
        """Begin to install a profile. Raises RulesError."""
        if not inherited:
            return RemoteScript(self._helper.ask(InstallRules(profile, ports=ports)))
        try:
            flows = flow_file(inherited)
        except OSError as error:
            raise RulesError(-1, f"no memory for {len(inherited)} connections: {error}") from error
        try:
            return RemoteScript(self._helper.ask(InstallRules(profile, True, ports), [flows]))
        finally:
            os.close(flows)

    def apply(self, profile: Profile, inherited: Sequence[FlowKey] = (), ports: Ports | None = None) -> str:
        """Install a profile and wait for it. Returns warnings. Raises RulesError."""
        return self.start_apply(profile, inherited, ports).finish()

    def start_check(self) -> RemoteScript:
        """Begin to compare the rules with what was installed."""
        return RemoteScript(self._helper.ask(CheckRules()))

    def start_look(self) -> RemoteScript:
        """Begin to see what of the host's own rules does not go with ours."""
        return RemoteScript(self._helper.ask(LookAtHost()))

    def remove(self, force: bool = False) -> str:
        """Take everything out again, and wait for it. Raises RulesError."""
        return RemoteScript(self._helper.ask(RemoveRules(force))).finish()


class RemoteFences:
    """Fences, by way of the helper: each `Fence` gets one `FenceFinished`, unless a newer one replaces it."""

    def __init__(
        self,
        helper: HelperClient,
        peers: tuple[Peer, ...],
        loop: Loop,
        answers: Answers,
    ) -> None:
        self._helper = helper
        self._peers = {peer.name for peer in peers}
        self._loop = loop
        self._answers = answers
        self._running: dict[str, tuple[Pending, float]] = {}

    def start(self, order: Fence) -> None:
        """Begin a fence. An older one of the same peer is forgotten: the helper kills it."""
        self._drop(order.peer)
        pending = self._helper.ask(FencePeer(order.peer, order.deadline_ms))
        self._running[order.peer] = (pending, time.monotonic() + order.deadline_ms / 1000 + GRACE_S)
        self._loop.watch(pending.fileno(), lambda: self._ended(order.peer))

    def _drop(self, peer: str) -> None:
        old = self._running.pop(peer, None)
        if old is not None:
            self._loop.unwatch(old[0].fileno())
            old[0].close()

    def _ended(self, peer: str) -> None:
        reply = self._running[peer][0].reply
        self._drop(peer)
        if reply is None:
            self._answers.answer(FenceFinished(peer, False, "the privileged helper does not answer"))
        else:
            self._answers.answer(FenceFinished(peer, reply.status == 0, reply.said))

    def tick(self, now: float) -> None:
        """Count a fence as failed if the helper has been silent for too long."""
        for peer in [peer for peer, (_, give_up) in self._running.items() if now >= give_up]:
            self._ended(peer)

    def close(self) -> None:
        """Wait for no fence any more; the helper kills them when it ends."""
        for peer in list(self._running):
            self._drop(peer)
