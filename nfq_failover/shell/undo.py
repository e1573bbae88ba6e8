"""The way back: what has been done to the host, and how each step of it is undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

log = structlog.get_logger()


class Closable(Protocol):
    """Anything that is undone by closing it."""

    def close(self) -> None:
        """Release it."""


T = TypeVar("T", bound=Closable)


class Undo:
    """Steps that are run in reverse order, each of them whatever becomes of the others."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Run `step` at the end, before the steps that were added earlier."""
        self._steps.append(step)

    def closing(self, thing: T) -> T:
        """Close `thing` at the end. Returns it."""
        self._steps.append(thing.close)
        return thing

    def run(self) -> None:
        """Undo everything, once; a step that fails is logged."""
        # Ends: each turn takes a step out.
        while self._steps:
            step = self._steps.pop()
            try:
                step()
            except Exception as error:  # all the rest must still be undone
                log.error("cleaning up failed", step=getattr(step, "__qualname__", str(step)), error=str(error))
