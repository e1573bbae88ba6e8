"""The witness: a small daemon on a third machine.

It decides which host of a pair may act alone when the two don't hear each other, puts each decision on disk before it
says it, and does nothing else: it needs no root, hears no heartbeats, and can be away as long as both hosts are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from nfq_failover.core.pair.witness import Grant, decide
from nfq_failover.errors import CommandError, ConfigError, MalformedDatagram
from nfq_failover.shell import logs, signals
from nfq_failover.wire.witness import Answer, Question, seal, unseal, witness_key

MAX_PAIRS = 1000
_BATCH = 64

log = structlog.get_logger()


class Decisions:
    """The decisions on disk: one file, replaced and synced before a decision counts."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` if there is a file and it can't be read: to forget decisions is to let two hosts act."""
        self.path = path
        self._grants: dict[str, Grant] = {}
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            for pair, (number, holder) in table.items():
                if type(number) is not int or number < 0 or not isinstance(holder, str):
                    raise ValueError(f"{pair}: {number!r}, {holder!r}")
                self._grants[pair] = Grant(number, holder)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the witness's record {path} can't be read ({error}). Remove it only while every pair is protected"
            ) from None

    @property
    def count(self) -> int:
        """How many pairs have had a decision."""
        return len(self._grants)

    def decide(self, question: Question) -> tuple[bool, str]:
        """Returns (whether it is granted, who has the right). Raises OSError if nothing could be decided."""
        last = self._grants.get(question.pair)
        grant = decide(last, question.host, question.low, question.high)
        if grant is None:
            return False, last.holder if last else ""
        if grant != last:
            if last is None and len(self._grants) >= MAX_PAIRS:
                raise OSError(f"there are {MAX_PAIRS} pairs already")
            self._store({**self._grants, question.pair: grant})
        return True, grant.holder

    def _store(self, grants: dict[str, Grant]) -> None:
        temporary = self.path.with_suffix(".new")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({pair: [grant.number, grant.holder] for pair, grant in grants.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._grants = grants


class Witness:
    """The witness's daemon. Questions that are not authentic are counted and get no answer."""

    def __init__(self, listen: tuple[str, int], key: bytes, state_dir: Path) -> None:
        """Raises `CommandError`, `ConfigError`."""
        self._key = witness_key(key)
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CommandError(f"can't use the state directory {state_dir} ({error})") from None
        self.decisions = Decisions(state_dir / "decisions.json")
        self.refused: dict[str, int] = {}
        self._stopping = False
        self._asked = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(listen)
        except OSError as error:
            self._socket.close()
            raise CommandError(f"can't listen on {listen[0]}:{listen[1]} ({error.strerror})") from None

    def fileno(self) -> int:
        """The descriptor, readable when there are questions."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer the questions that have come."""
        for _ in range(_BATCH):
            try:
                data, source = self._socket.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError:
                continue
            answer = self.answer(data)
            if answer is not None:
                with contextlib.suppress(OSError):
                    self._socket.sendto(answer, source)

    def answer(self, data: bytes) -> bytes | None:
        """Returns the answer to a datagram, None for silence."""
        try:
            question = unseal(data, self._key)
            if not isinstance(question, Question):
                raise MalformedDatagram("not-a-question")
        except MalformedDatagram as error:
            if error.reason not in self.refused:
                log.warning("datagrams are refused", reason=error.reason)
            self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
            return None
        if not question.high:
            return seal(Answer(question.nonce, question.pair, question.host, 0, False), self._key)
        try:
            granted, holder = self.decisions.decide(question)
        except OSError as error:
            log.error("nothing can be decided", error=str(error))
            return None
        log.info(
            "decided", pair=question.pair, host=question.host, number=question.high, granted=granted, holder=holder
        )
        return seal(Answer(question.nonce, question.pair, holder, question.high, granted), self._key)

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer questions until SIGTERM or SIGINT. SIGUSR1 has it say what it has done."""

        def stop(number: int, frame: object) -> None:
            del number, frame
            self._stopping = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        signals.survive(self._signalled)
        ready()
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        # Ends: with the witness.
        while not self._stopping:
            if poller.poll(500):
                self.serve()
            if self._asked:
                self._asked = False
                log.info("status of the witness", decisions=self.decisions.count, refused=self.refused)
            logs.pass_time(time.monotonic())
        self._socket.close()

    def _signalled(self, number: int) -> None:
        self._asked = self._asked or number == signal.SIGUSR1

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
