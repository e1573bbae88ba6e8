"""Rules of other programs: what the rules script says becomes concerns, without ever holding the loop."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.firewall.script import RulesError
from nfq_failover.shell.selfcheck.checks import SelfChecks
from nfq_failover.shell.selfcheck.foreign_rules import LATE_S, ForeignRules, Hint, TakenMark, findings


@dataclass
class Look:
    """A run of the script that ends when it is told to."""

    said: str | None
    done: bool = False
    closed: bool = False

    def finish_check(self) -> str | None:
        if self.said == "refused":
            raise RulesError(2, "no")
        return self.said

    def close(self) -> None:
        self.closed = True


def test_what_the_script_finds_is_a_concern() -> None:
    look = Look("mark-set\tdegraded\ta rule: -A x\tgive it a mask\nnoise\nx\theavy\twhat\tcure\n")
    check = ForeignRules(lambda: look)
    assert check.run(0.0) is None
    assert check.run(1.0) is None
    look.done = True
    assert check.run(2.0) == (Concern("mark-set", Weight.DEGRADED, "a rule: -A x", "give it a mask"),)
    assert findings("") == ()


def test_rules_that_may_drop_the_service_are_hints_and_no_concerns() -> None:
    look = Look("path-out\thint\t-A OUTPUT -j DROP\taccept it\nunguarded\thint\tno guard\t-\n", done=True)
    looks = [look, Look(None, done=True)]
    check = ForeignRules(lambda: looks.pop(0))
    assert (check.hints, check.guarded) == (None, False), "nobody has looked yet"
    assert check.run(0.0) == ()
    assert (check.hints, check.guarded) == ((Hint("out", "-A OUTPUT -j DROP", "accept it"),), False)
    assert check.run(60.0) == ()
    assert (check.hints, check.guarded) == ((), True)


def test_the_next_look_is_a_new_one_and_finds_what_is_well_again() -> None:
    looks = [Look("a\twarning\tb\tc", done=True), Look(None, done=True)]
    check = ForeignRules(lambda: looks.pop(0))
    assert len(check.run(0.0) or ()) == 1
    assert check.run(60.0) == ()


@pytest.mark.parametrize("said", ["refused", "never"])
def test_a_look_that_fails_or_does_not_end_is_said_and_tried_again(said: str) -> None:
    looks = [Look(said, done=said == "refused"), Look(None, done=True)]
    first = looks[0]
    checks = SelfChecks([ForeignRules(lambda: looks.pop(0))])
    found = checks.tick(0.0) or checks.tick(LATE_S)
    assert found is not None
    assert [each.code for each in found.concerns] == ["check-failed-foreign-rules"]
    assert first.closed == (said == "never")
    over = checks.tick(1000.0)
    assert over is not None
    assert over.concerns == ()


def test_our_bit_on_a_packet_of_the_service_is_a_concern_while_it_goes_on() -> None:
    count = 0
    check = TakenMark(0x10000000, lambda: count)
    assert check.run(0.0) == ()
    count = 3
    assert [each.code for each in check.run(1.0)] == ["mark-taken"]
    assert "0x10000000" in check.run(2.0)[0].what
    assert check.run(1.0 + TakenMark.quiet_s) == ()
    count = 4
    assert len(check.run(200.0)) == 1
