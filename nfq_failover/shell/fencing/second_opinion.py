"""What this host asks others before it acts against its peer: the link check's targets, and the witness."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from nfq_failover.config import Config
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import AskWitness, CheckLink, LinkChecked
from nfq_failover.shell.answers import Answers
from nfq_failover.shell.fencing.witness_client import WitnessClient
from nfq_failover.shell.host.link import LinkChecker
from nfq_failover.shell.loop import Loop

ALARM_EVERY_S = 5.0
WITNESS_SILENT_S = 3.0  # a few lost datagrams are none

log = structlog.get_logger()


class SecondOpinion:
    """Seeks what the node wants to know. The link's state is returned, a witness's answer goes to `answers`."""

    def __init__(self, config: Config, loop: Loop, answers: Answers, trouble: Callable[[], str]) -> None:
        """`trouble` looks at our own way to the peer, and says what is wrong with it."""
        self._answers, self._loop, self._config = answers, loop, config
        self._link = LinkChecker(trouble, config.listen[0], config.check_targets, config.check_deadline_ms)
        self._witness = WitnessClient(config.witness, config.settings.name) if config.witness else None
        self._unanswered_at: float | None = None
        if self._witness is not None:
            loop.watch(self._witness.fileno(), self._heard)

    def follow(self, config: Config) -> None:
        """Ask others from now on. What is being asked at this moment goes on."""
        self._link.follow(config.check_targets, config.check_deadline_ms)
        before, self._config = self._config, config
        if config.witness is None or self._witness is None or config.witness == before.witness:
            return
        self._loop.unwatch(self._witness.fileno())
        self._witness.close()
        self._witness = WitnessClient(config.witness, config.settings.name)
        self._loop.watch(self._witness.fileno(), self._heard)

    def seek(self, order: CheckLink | AskWitness) -> LinkChecked | None:
        """Find out whether it is this host that is cut off; or ask the witness, once. Returns what is known at once."""
        if isinstance(order, CheckLink):
            return self._link.start()
        if self._witness is not None:
            self._ask(self._witness, order)
        return None

    def _ask(self, witness: WitnessClient, order: AskWitness) -> None:
        now = time.monotonic()
        if self._unanswered_at is None:
            self._unanswered_at = now
        elif now - self._unanswered_at >= ALARM_EVERY_S:
            self._unanswered_at = now
            log.error("the witness does not answer", **witness.describe())
        witness.ask(order)

    def _heard(self) -> None:
        assert self._witness is not None
        for event in self._witness.answers():
            self._unanswered_at = None
            log.info("the witness has answered", granted=event.granted, detail=event.detail)
            self._answers.answer(event)

    def concerns(self, now: float) -> list[Concern]:
        """What is wrong with the witness: whoever needs it can do nothing without it."""
        witness = self._witness
        if witness is None:
            return []
        witness.greet(now)
        if witness.unanswered_s(now) < WITNESS_SILENT_S:
            return []
        what = f"the witness {witness.describe()['address']} has not answered for more than {WITNESS_SILENT_S:.0f} s"
        cure = "start nfq-failover witness there, let its UDP port pass, and see that it has this pair's key"
        return [Concern("witness-silent", Weight.UNPROTECTED, what, cure)]

    def tick(self, now: float) -> LinkChecked | None:
        """Returns the link's state if it has become known."""
        return self._link.tick(now)

    def close(self) -> None:
        """Ask no more."""
        self._link.close()
        if self._witness is not None:
            self._witness.close()
