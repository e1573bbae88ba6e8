"""The way back: every step, in reverse, once."""

from __future__ import annotations

import structlog

from nfq_failover.shell.undo import Undo


class Thing:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def close(self) -> None:
        self.said.append("closed")


def test_steps_are_run_last_things_first_and_once() -> None:
    said: list[str] = []
    undo = Undo()
    undo.add(lambda: said.append("first"))
    thing = undo.closing(Thing(said))
    undo.add(lambda: said.append("last"))
    assert isinstance(thing, Thing)
    undo.run()
    undo.run()
    assert said == ["last", "closed", "first"]


def test_a_step_that_fails_keeps_no_other_from_being_run() -> None:
    said: list[str] = []
    undo = Undo()
    undo.closing(Thing(said))

    def breaks() -> None:
        raise OSError("no such thing")

    undo.add(breaks)
    with structlog.testing.capture_logs() as logged:
        undo.run()
    assert said == ["closed"]
    (row,) = logged
    assert (row["log_level"], row["error"]) == ("error", "no such thing")
    assert "breaks" in row["step"]
