"""What a planted bug is: names of the core that are replaced for a run, and the proof that the core uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pytest


class Patch:
    """One name of a class or module, and what stands there instead.

    `instead` may be a function, a property (which may also stand for a field of the instances), a class or a frozenset.
    `used` becomes true when the core has called it, read it, made an instance of it or looked something up in it; a
    patch that is never used plants nothing.
    """

    def __init__(self, where: Any, name: str, instead: Any) -> None:
        self.where, self.name, self.instead = where, name, instead
        self.used = self.assigned = False

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the name, which must exist (a field exists as soon as `__init__` assigns it: see `check`)."""
        self.used = self.assigned = False
        if not self._of_field:
            assert hasattr(self.where, self.name), f"{self} does not exist"
        monkeypatch.setattr(self.where, self.name, self._watched(), raising=False)

    def check(self) -> None:
        """The core has used what was planted; call it after a run that the bug has changed."""
        assert self.used, f"{self} is not used: the planted bug is none"
        assert self.assigned or not self._of_field, f"{self} is never assigned: there is no such field"

    @property
    def _of_field(self) -> bool:
        return isinstance(self.instead, property) and self.instead.fset is not None

    def _watched(self) -> Any:
        instead = self.instead
        if isinstance(instead, property):
            assert instead.fget is not None
            return property(self._noted(instead.fget, "used"), instead.fset and self._noted(instead.fset, "assigned"))
        if isinstance(instead, type):
            initialise: Any = instead.__init__  # type: ignore[misc]  # of this very class, so nothing is incompatible
            return type(instead.__name__, (instead,), {"__init__": self._noted(initialise, "used")})
        if isinstance(instead, frozenset):
            return type("Watched", (frozenset,), {"__contains__": self._noted(frozenset.__contains__, "used")})(instead)
        return self._noted(instead, "used")

    def _noted(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @wraps(function)
        def noted(*arguments: Any, **keywords: Any) -> Any:
            setattr(self, what, True)
            return function(*arguments, **keywords)

        return noted

    def __str__(self) -> str:
        return f"{self.where.__name__}.{self.name}"


@dataclass(frozen=True)
class Mutant:
    """One bug. `complaint`: a part of what the checkers say about it. `kinds`: seeds of these are tried.

    `hint`: a seed and kind that have caught it, to be tried first; it saves time, and is no more than that.
    """

    name: str
    complaint: str
    patches: tuple[Patch, ...]
    kinds: Iterable[str] = ("crash-primary",)
    hint: tuple[int, str] = (1, "crash-primary")


def nothing(*_: object, **__: object) -> None:
    """Stands for a function that ought to do something."""
