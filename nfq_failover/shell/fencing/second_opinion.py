"""What others say before this host acts against its peer: targets of the link check, and the witness."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from nfq_failover.config import Config
from nfq_failover.core.events import AskWitness, CheckLink, Event
from nfq_failover.shell.fencing.witness_client import WitnessClient
from nfq_failover.shell.host.link import LinkChecker

ALARM_EVERY_S = 5.0

log = structlog.get_logger()


class SecondOpinion:
    """`feed` takes an answer while effects are being carried out, `answer` one that comes by itself."""

    def __init__(
        self,
        config: Config,
        watch: Callable[[int, Callable[[], None]], None],
        feed: Callable[[Event, float], None],
        answer: Callable[[Event], None],
    ) -> None:
        self._answer = answer
        self._link = LinkChecker(
            config.interface,
            config.listen[0],
            config.check_targets,
            config.check_deadline_ms,
            lambda event: feed(event, time.monotonic()),
        )
        self._witness = WitnessClient(config.witness, config.settings.name) if config.witness else None
        self._unanswered_at: float | None = None
        if self._witness is not None:
            watch(self._witness.fileno(), self._heard)

    def seek(self, order: CheckLink | AskWitness) -> None:
        """Find out whether it is we who are cut off; or ask the witness, once."""
        if isinstance(order, CheckLink):
            self._link.start()
        elif self._witness is not None:
            self._ask(self._witness, order)

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
            self._answer(event)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._link.tick(now)

    def close(self) -> None:
        """Ask no more."""
        self._link.close()
        if self._witness is not None:
            self._witness.close()
