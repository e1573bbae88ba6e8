"""Who is asked before a host acts alone: the fence agent, and the witness on a third machine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nfq_failover.core.events import AskWitness, WitnessAnswered
from nfq_failover.core.pair import witness

from .network import Path, Quality

if TYPE_CHECKING:
    from .host import Host
    from .world import World


class Fences:
    """What becomes of each attempt to fence, by the scenario's `fence`.

    works, fails: always. late: it works, and says so just before its deadline. flaky: some attempts fail, then it
    works. timeout: the first attempt is given up at the deadline, and works after that. lies: the first attempts work,
    and are said to have failed.
    """

    def __init__(self, plan: str, deadline_s: float) -> None:
        self.plan, self.deadline_s = plan, deadline_s
        self.attempts: Counter[str] = Counter()

    def attempt(self, host: Host) -> tuple[float | None, float, bool]:
        """(the peer loses power after so many seconds, or not; the answer comes after so many; what it says)."""
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
    """The witness, and the wires to it: "a>witness", "witness>a", the same for b."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last: witness.Grant | None = None
        quality = world.scenario.quality.get("witness", Quality(0.0005))
        dice, clock = world.dice, world.clock
        self.paths = {f"{n}>witness": Path(clock, quality, self._asked, dice(f"{n}>witness")) for n in world.hosts}
        for name, host in world.hosts.items():
            self.paths[f"witness>{name}"] = Path(clock, quality, host.answered, dice(f"witness>{name}"))

    def ask(self, host: Host, question: AskWitness) -> None:
        """A host asks, once."""
        if not host.unplugged:
            self.paths[f"{host.name}>witness"].send(f"{host.name} {host.run} {question.low} {question.high}".encode())

    def _asked(self, data: bytes) -> None:
        name, run, low, high = data.decode().split()
        decided = witness.decide(self.last, name, int(low), int(high))
        if decided is not None:
            self.last = decided
        granted = int(decided is not None)
        self.paths[f"witness>{name}"].send(f"{run} {high} {granted}".encode())

    def reaches(self, host: Host) -> bool:
        """Whether questions and answers of `host` get through now."""
        return not (self.paths[f"{host.name}>witness"].cuts or self.paths[f"witness>{host.name}"].cuts)

    def heal(self) -> None:
        """Nothing is lost any more."""
        for path in self.paths.values():
            path.quality = path.quality.healed()


def answer(data: bytes) -> tuple[int, WitnessAnswered]:
    """(which life of the daemon has asked, what it is told)."""
    run, high, granted = map(int, data.split())
    return run, WitnessAnswered(high, bool(granted), "it is the other's" if not granted else "")
