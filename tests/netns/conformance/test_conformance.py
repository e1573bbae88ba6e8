"""Standard TCP behaviour is unchanged: plain, protected and after a takeover the same cases give the same transcripts.

Differences that are allowed, and why, are in docs/design/conformance.md. They are in how a transcript is written down
(conformance_cases), not in a list of exceptions here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.conformance.case import Transcript
from tests.netns.conformance.cases import CASES
from tests.netns.conformance.world import conformance

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LIVING = [case for case in CASES if case.lives]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Transcript]:
    """What a kernel alone answers."""
    with conformance(tmp_path_factory.mktemp("plain"), plain=True) as world:
        return world.run(CASES)


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Transcript]]]:
    """What a protected one answers; then, for the cases with a living connection, with a takeover under them."""
    with conformance(tmp_path_factory.mktemp("protected"), plain=False) as world:
        before = world.run(CASES)
        yield [before, world.run(LIVING, takeover=True)]


def test_a_plain_server_does_what_the_rfcs_demand(plain: dict[str, Transcript]) -> None:
    assert len(CASES) >= 50
    missing = {case.name: plain[case.name] for case in CASES if not set(case.must) <= set(plain[case.name])}
    assert missing == {}


def test_a_protected_server_answers_as_a_plain_one(
    plain: dict[str, Transcript], protected: list[dict[str, Transcript]]
) -> None:
    differ = {name: (lines, plain[name]) for name, lines in protected[0].items() if lines != plain[name]}
    assert differ == {}
    assert set(protected[0]) == {case.name for case in CASES}


def test_the_survivor_of_a_takeover_answers_as_a_plain_one(
    plain: dict[str, Transcript], protected: list[dict[str, Transcript]]
) -> None:
    differ = {name: (lines, plain[name]) for name, lines in protected[1].items() if lines != plain[name]}
    assert differ == {}
    assert set(protected[1]) == {case.name for case in LIVING}
