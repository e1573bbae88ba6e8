"""Where the outcome of what takes time goes: a fence, a check, the witness's decision."""

from __future__ import annotations

from typing import Protocol

from nfq_failover.core.events import Event


class Answers(Protocol):
    """Whoever has ordered something slow, and is told of its outcome later."""

    def answer(self, event: Event) -> None:
        """Take the outcome, and do at once what follows from it. Never called while effects are carried out."""
