"""The host's side of the witness (shell/witness_daemon.py): asks it, and recognizes its answers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import OrderedDict

from nfq_failover.config.fence import WitnessPlan
from nfq_failover.core.events import AskWitness, WitnessAnswered
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.witness import NONCE_BYTES, Answer, Question, seal, unseal, witness_key

OPEN_QUESTIONS = 64
_BATCH = 64
GREET_S = 10.0  # between two greetings that are answered
GREET_AGAIN_S = 1.0  # after one that was not


class WitnessClient:
    """Asks the witness, and returns its answers to the latest questions."""

    def __init__(self, plan: WitnessPlan, host: str) -> None:
        self._plan = plan
        self._host = host
        self._key = witness_key(plan.key)
        self._asked: OrderedDict[bytes, int] = OrderedDict()
        self.sent = self.answered = 0
        self.refused: dict[str, int] = {}
        self._greeted: float | None = None  # when the question was asked for which no answer has come yet
        self._next_greeting = 0.0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor, readable when an answer may have come."""
        return self._socket.fileno()

    def ask(self, order: AskWitness) -> None:
        """Send the question once; whoever orders it repeats it if it is lost."""
        nonce = os.urandom(NONCE_BYTES)
        self._asked[nonce] = order.high
        if len(self._asked) > OPEN_QUESTIONS:
            self._asked.popitem(last=False)
        question = Question(nonce, self._plan.pair, self._host, order.low, order.high)
        self.sent += 1
        with contextlib.suppress(OSError):  # no route at this moment
            self._socket.sendto(seal(question, self._key), self._plan.address)

    def greet(self, now: float) -> None:
        """Ask for an answer, and for nothing else, so that a witness that is out of reach is known before it is needed.
        `unanswered_s` says for how long none has come."""
        if now < self._next_greeting:
            return
        self._greeted = now if self._greeted is None else self._greeted
        self._next_greeting = now + GREET_AGAIN_S
        self.ask(AskWitness(0, 0))

    def unanswered_s(self, now: float) -> float:
        """How long the witness has not answered; 0 if nothing waits for an answer."""
        return 0.0 if self._greeted is None else now - self._greeted

    def answers(self) -> list[WitnessAnswered]:
        """Returns the answers that have come."""
        found = []
        for _ in range(_BATCH):
            try:
                data = self._socket.recv(2048)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error: nobody listens there
                continue
            try:
                answer = unseal(data, self._key)
                if not isinstance(answer, Answer) or self._asked.get(answer.nonce) != answer.high:
                    raise MalformedDatagram("not-asked")
            except MalformedDatagram as error:
                self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
                continue
            del self._asked[answer.nonce]
            self.answered += 1
            if self._greeted is not None:
                self._greeted, self._next_greeting = None, self._next_greeting + GREET_S
            if not answer.high:
                continue
            found.append(WitnessAnswered(answer.high, answer.granted, f"it is {answer.holder}'s"))
        return found

    def describe(self) -> dict[str, object]:
        """Returns the client's row in the status."""
        host, port = self._plan.address
        counts = {"asked": self.sent, "answered": self.answered, "refused": dict(self.refused)}
        return {"address": f"{host}:{port}", **counts}

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()
