"""Who is asked before a host acts alone: the fence agent, and the witness on a third machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from nfq_failover.core.events import AskWitness, WitnessAnswered
from nfq_failover.core.pair import witness

from .clock import Clock
from .host import SimHost
from .network import Path, Quality


class Fences:
    """What becomes of each attempt to fence, by the scenario's `fence`.

    works, fails: always. late: it works, and says so just before its deadline. flaky: some attempts fail, then it
    works. timeout: the first attempt is given up at the deadline, and works after that. lies: the first attempts work,
    and are said to have failed.
    """

    def __init__(self, plan: str, deadline_s: float) -> None:
        self.plan, self.deadline_s = plan, deadline_s
        self.attempts: Counter[str] = Counter()

    def attempt(self, host: SimHost) -> tuple[float | None, float, bool]:
        """Returns (seconds until the peer loses power, None if it does not; seconds until the answer; what it says)."""
        plan, deadline, random = self.plan, self.deadline_s, host.random
        takes = random.choice((0.005, 0.05, 0.3))
        self.attempts[host.name] += 1
        first = self.attempts[host.name] == 1
        if plan == "late":
            return deadline * random.uniform(0.5, 0.95), deadline * 0.98, True
        if plan == "timeout" and first:
            return deadline * random.uniform(1.0, 3.0), deadline, False
        if plan == "lies" and (first or random.random() < 0.5):
            return takes * 0.9, takes, False
        if plan == "fails" or (plan == "flaky" and (first or random.random() < 0.5)):
            return None, takes, False
        return takes * 0.9, takes, True


class Witness:
    """The witness, and the wires between it and each of `hosts`: "HOST>witness", "witness>HOST"."""

    def __init__(self, hosts: Sequence[SimHost], clock: Clock, quality: Quality, dice: Callable[[str], Random]) -> None:
        self.last: witness.Grant | None = None
        self._questions: dict[str, Path[tuple[int, AskWitness]]] = {}
        self._answers: dict[str, Path[tuple[int, WitnessAnswered]]] = {}
        for host in hosts:
            to, back = f"{host.name}>witness", f"witness>{host.name}"
            self._questions[host.name] = Path(clock, quality, partial(self._asked, host.name), dice(to))
            self._answers[host.name] = Path(clock, quality, host.channel.answered, dice(back))

    @property
    def paths(self) -> dict[str, Path[Any]]:
        """All wires by name."""
        to: dict[str, Path[Any]] = {f"{name}>witness": path for name, path in self._questions.items()}
        return to | {f"witness>{name}": path for name, path in self._answers.items()}

    def ask(self, host: SimHost, question: AskWitness) -> None:
        """A host asks, once."""
        if not host.speechless:
            self._questions[host.name].send((host.run, question))

    def _asked(self, name: str, came: tuple[int, AskWitness]) -> None:
        run, question = came
        decided = witness.decide(self.last, name, question.low, question.high)
        if decided is not None:
            self.last = decided
        detail = "" if decided is not None else "it is another's"
        self._answers[name].send((run, WitnessAnswered(question.high, decided is not None, detail)))

    def reaches(self, host: SimHost) -> bool:
        """Whether questions and answers of `host` get through now."""
        return not (self._questions[host.name].cuts or self._answers[host.name].cuts)

    def heal(self) -> None:
        """From now on nothing is lost."""
        for path in self.paths.values():
            path.quality = path.quality.healed()
