"""What the service hands its node, and in which order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nfq_failover.core.events import Event, HealthChecked, ListenersSeen
from nfq_failover.shell.service import Service


class Handed(Service):
    """A service of a host whose application has failed some health checks. Its listeners have changed."""

    def __init__(self, failed: int) -> None:
        nothing: Any = lambda: None  # noqa: E731
        found: Any = SimpleNamespace(tick=lambda now, wanted: ListenersSeen(frozenset(), 0.5) if wanted else None)
        node: Any = SimpleNamespace(
            members=SimpleNamespace(health=SimpleNamespace(failed=failed)),
            handle=lambda event, now: self.got.append(event),
        )
        self.got: list[Event] = []
        self.node = node
        self._listening = found
        self._effects: Any = SimpleNamespace(carry_out=nothing)
        self._outlet: Any = SimpleNamespace(decides=lambda now: None)


@pytest.mark.parametrize(
    ("failed", "event", "looks"),
    [
        (1, HealthChecked(True), True),
        (1, HealthChecked(False, "refused"), False),
        (0, HealthChecked(True), False),
    ],
)
def test_application_that_is_well_again_may_be_another_one_and_that_is_seen_first(
    failed: int, event: HealthChecked, looks: bool
) -> None:
    """Else the pair would be protected for a moment."""
    service = Handed(failed)
    service.answer(event)
    assert service.got == ([ListenersSeen(frozenset(), 0.5)] if looks else []) + [event]
