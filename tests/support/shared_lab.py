"""A lab that the tests of a file share: its fixtures, each made by one line of the file.

shared = shared_lab(OPTIONS)
world = each_world()
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab import netns, power
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.fault_world import Edit, FaultWorld, world
from tests.support.lab_world import eventually


class Shared:
    """A lab that several tests use one after the other, brought back to a protected pair before each."""

    def __init__(self, options: Options | None = None, edit: Edit | None = None) -> None:
        self._options, self._edit = options, edit
        self._stack = contextlib.ExitStack()
        self._world: FaultWorld | None = None

    def ready(self) -> FaultWorld:
        """The lab, protected. Built anew if the last test has left it in a state that can't be mended."""
        if self._world is not None and not self._mend(self._world):
            self.close()
        if self._world is None:
            self._world = self._stack.enter_context(world(self._options, self._edit))
        return self._world

    def close(self) -> None:
        """Take it away."""
        self._stack.close()
        self._world = None

    @staticmethod
    def _mend(shared: FaultWorld) -> bool:
        made = shared.lab
        try:
            for cut in made.store.read().cuts:
                made.heal(cut.node)
            off = [node for node in TWO_HOSTS.hosts if not power.is_on(made.name, node)]
            for node in off:
                made.restore(node)
        except (CommandError, netns.LabError):
            return False
        return eventually(shared.is_protected, 3)


def shared_lab(*options: Options, edit: Edit | None = None, after: str = "") -> object:
    """A fixture of the module: a lab, or one after the other if there are several `options`, which differ in their tap.
    `after`: another fixture that has to be there before."""

    several = options if options[1:] else None

    @pytest.fixture(scope="module", params=several, ids=several and [each.tap for each in several])
    def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
        if after:
            request.getfixturevalue(after)
        lab = Shared(request.param if several else options[0], edit)
        yield lab
        lab.close()

    return shared


def each_world() -> object:
    """A fixture of each test: the lab that the fixture `shared` has made, protected."""

    @pytest.fixture
    def made(shared: Shared) -> FaultWorld:
        return shared.ready()

    return made
