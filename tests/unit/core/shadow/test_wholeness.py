"""Whether the application behind the replicas has got everything, and what makes it whole again."""

from __future__ import annotations

import pytest

from nfq_failover.core.application import Application
from nfq_failover.core.concerns import Weight
from nfq_failover.core.events import ListenersSeen, Sockets
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.wholeness import ANEW_CODE, ANSWER_S, CODE, LOOK_WITHIN_S, Wholeness
from nfq_failover.wire.records import Anew, BegunAnew, Believed, Close, InputMissed, Lives, Whole, WholeSaid
from tests.support.shadow import Shadowing, from_client
from tests.support.transcript import FLOW, After

A, B = 7000, 7010
OLD, NEW, NEWER = (frozenset(((A, 10 * n), (B, 10 * n + 1))) for n in (1, 2, 3))
NONE: Sockets = frozenset()
KEPT_ONE = frozenset(((B, 11), (A, 20)))
LATER = ANSWER_S + 1


class Behind:
    """An application, its sockets as they are seen, and what the primary is told of it."""

    def __init__(self, shared: bool = True, first: Sockets = OLD, watched: bool = True) -> None:
        self.out = Outbox()
        self.whole = Wholeness(self.out, shared)
        self.application = Application()
        self.watched = watched
        self.now = 10.0
        self.surprised = False
        self.see(first, 0.0)
        self.life = self.whole.instance

    def see(self, sockets: Sockets, after_s: float = 1.0) -> None:
        """As the node does it."""
        self.now += after_s
        begun = self.application.seen(ListenersSeen(sockets, after_s), self.now)
        inodes = frozenset(inode for _, inode in sockets)
        self.whole.sockets(inodes, self.now)
        if begun is not None:
            life, anew = self.application.life, bool(begun.anew)
            self.surprised = self.whole.begun(life, inodes, anew, self.watched, self.now)
        self.whole.looked(self.now)

    def believe(self, seen: Sockets) -> None:
        """An operator says here that it is whole; its sockets are looked at soon after that."""
        self.whole.said(self.now)
        assert self.whole.wants_look
        self.see(seen, 0.05)

    def miss(self, seen: Sockets | None = None) -> None:
        """It misses input; its sockets are looked at soon after that."""
        self.whole.lacks(1, FLOW, "the replica reset the connection")
        self.whole.review(self.now)
        if seen is not None:
            self.see(seen, 0.05)

    @property
    def concerned(self) -> bool:
        return CODE in self.out.concerns.codes()

    @property
    def differs(self) -> bool:
        return ANEW_CODE in self.out.concerns.codes()

    def believed(self) -> bool:
        """Whether the primary is told that an operator has said so here."""
        self.said()
        return Believed(self.whole.instance) in self.out.records

    def said(self) -> tuple[Lives, Whole]:
        self.out.records.clear()
        self.now += 2.0
        self.whole.on_timer(self.now)
        *_, lives, whole = self.out.records
        assert isinstance(whole, Whole) and isinstance(lives, Lives) and lives.instance == whole.instance
        return lives, whole

    def told(self) -> Whole:
        return self.said()[1]


def test_whole_application_is_told_with_its_number() -> None:
    behind = Behind()
    assert behind.life and behind.told() == Whole(behind.life, 0, 0)
    assert not behind.concerned


def test_nothing_is_said_before_its_sockets_were_looked_at() -> None:
    out = Outbox()
    Wholeness(out, True).on_timer(1.0)
    assert not out.records


def test_missed_input_degrades_everything() -> None:
    behind = Behind()
    behind.miss()
    assert behind.told() == Whole(behind.life, 0, 1)
    (concern,) = behind.out.concerns.own
    assert (concern.code, concern.weight) == (CODE, Weight.DEGRADED)
    assert "missed input of 1 connections (the replica reset the connection)" in concern.what
    assert "replica-is-whole" in concern.cure


def test_application_that_serves_has_nothing_to_become_equal_to() -> None:
    """After a takeover: what it lacks is lost, or the other host's has it, and the pair is no worse for that."""
    behind = Behind()
    behind.miss()
    behind.whole.serve(True, behind.now)
    (concern,) = behind.out.concerns.own
    assert (concern.code, concern.weight) == (CODE, Weight.WARNING)
    assert "lacks input of 1 connections of before the takeover" in concern.what
    assert "one that serves" not in concern.cure and "replica-is-whole" in concern.cure
    behind.whole.lacks(2, FLOW, "bytes were lost at the takeover")  # found out later
    behind.whole.review(behind.now)
    (concern,) = behind.out.concerns.own
    assert concern.weight is Weight.WARNING and "of 2 connections" in concern.what
    behind.whole.serve(False, behind.now)
    (concern,) = behind.out.concerns.own
    assert concern.weight is Weight.DEGRADED
    behind.whole.serve(True, behind.now)
    behind.believe(OLD)
    assert not behind.concerned


def test_application_that_was_started_anew_and_serves_now_may_lack_what_the_other_one_knew() -> None:
    behind = Behind()
    behind.see(NEW)
    behind.whole.serve(True, behind.now)
    (concern,) = behind.out.concerns.own
    assert (concern.code, concern.weight) == (ANEW_CODE, Weight.WARNING)
    assert "before this host took over" in concern.what and "while nobody sends" not in concern.cure
    assert not Behind().out.concerns.own


def test_state_that_no_other_connection_needs_is_no_concern() -> None:
    behind = Behind(shared=False)
    behind.miss()
    assert behind.told().missed == 1 and not behind.concerned


def test_primary_tells_what_it_has_seen() -> None:
    behind = Behind()
    behind.whole.on_missed(InputMissed(behind.life, 3), 1.0)
    assert behind.told() == Whole(behind.life, 3, 3) and behind.concerned
    behind.whole.on_missed(InputMissed(behind.life, 2), 1.0)  # overtaken
    assert behind.told() == Whole(behind.life, 3, 3)


def test_its_sockets_are_to_be_looked_at_when_it_has_missed_something() -> None:
    behind = Behind()
    assert not behind.whole.wants_look
    for _ in range(2):
        behind.miss()
        assert behind.whole.wants_look
        behind.see(OLD)
        assert not behind.whole.wants_look
        behind.whole.on_missed(InputMissed(behind.life, behind.whole.missed + 1), behind.now)
        assert behind.whole.wants_look
    behind.see(OLD)
    behind.see(NEW, LATER)
    assert not behind.concerned and not behind.whole.wants_look


def test_what_another_life_has_missed_is_no_matter() -> None:
    behind = Behind()
    behind.whole.on_missed(InputMissed(behind.life + 1, 3), 1.0)
    assert behind.told() == Whole(behind.life, 0, 0) and not behind.concerned


@pytest.mark.parametrize(("sockets", "whole"), [(OLD, False), (NONE, False), (OLD | NEW, False), (NEW, True)])
def test_restart_makes_it_whole_and_a_reload_does_not(sockets: Sockets, whole: bool) -> None:
    behind = Behind()
    behind.miss(OLD)
    behind.see(sockets, LATER)
    assert behind.concerned is not whole and not behind.differs and not behind.surprised
    assert (behind.told().missed == 0) is whole and (behind.told().instance != behind.life) is whole


def test_one_program_of_several_that_is_started_anew_makes_nothing_whole() -> None:
    behind = Behind()
    behind.miss(OLD)
    behind.see(KEPT_ONE, LATER)
    assert behind.differs and behind.told().missed == 1


def test_restart_in_steps_makes_it_whole() -> None:
    behind = Behind()
    behind.miss(OLD)
    for sockets in (frozenset(((B, 11),)), NONE, NEW):
        behind.see(sockets, LATER)
    assert not behind.concerned and not behind.differs


def test_restarted_application_may_miss_input_again() -> None:
    behind = Behind()
    behind.miss(OLD)
    behind.see(NEW, LATER)
    assert not behind.concerned
    behind.miss(NEW)
    behind.see(NEW, LATER)
    assert behind.concerned and behind.told().missed == 1


@pytest.mark.parametrize("how", ["restarted", "said"])
def test_start_that_follows_when_missed_input_is_no_matter_any_more_is_no_answer_to_it(how: str) -> None:
    behind = Behind()
    behind.miss(OLD)
    if how == "restarted":
        behind.see(NEW, LATER)
    else:
        behind.believe(OLD)
    assert not behind.concerned
    behind.see(NEWER, LATER)
    assert behind.differs


def test_application_that_was_not_there_and_starts_is_whole() -> None:
    """Whether both have the same state when a backup joins is for people to say."""
    behind = Behind(first=NONE)
    behind.miss(NONE)
    behind.see(NEW)
    assert not behind.concerned and not behind.differs


def test_application_that_began_before_it_missed_something_is_not_whole() -> None:
    """Its sockets are looked at now and then: none may have been seen before it missed something."""
    behind = Behind(first=NONE)
    behind.miss(NEW)
    behind.see(NEW)
    assert behind.concerned


def test_application_that_is_started_anew_though_it_has_missed_nothing_may_have_lost_its_state() -> None:
    behind = Behind()
    behind.see(NEW)
    assert behind.differs and behind.surprised
    lives, whole = behind.said()
    assert lives.anew is Anew.REPLICA and whole.missed == 1 and whole.instance != behind.life
    (concern,) = behind.out.concerns.own
    assert concern.weight is Weight.DEGRADED and "replica-is-whole" in concern.cure
    behind.see(NEWER, 60.0)
    assert behind.differs, "it may have lost it again"
    behind.believe(NEWER)
    assert not behind.differs and behind.said()[0].anew is Anew.NONE


def test_application_that_has_ended_before_it_missed_input_was_restarted_by_nobody_who_knew() -> None:
    behind = Behind()
    behind.see(NONE)
    behind.miss(NONE)
    behind.see(NEW, LATER)
    assert behind.differs and not behind.concerned


def test_application_that_is_back_sooner_than_anybody_could_have_read_that_it_missed_input() -> None:
    behind = Behind()
    behind.miss(OLD)
    behind.see(NEW, ANSWER_S / 2)
    assert behind.differs


def test_application_that_was_back_before_it_was_looked_at() -> None:
    behind = Behind()
    behind.miss(NEW)
    assert behind.differs and not behind.concerned


@pytest.mark.parametrize("changes", [{"shared": False}, {"watched": False}])
def test_restart_that_is_no_matter(changes: dict[str, bool]) -> None:
    """Its connections have no state in common; or it was no replica of anything."""
    behind = Behind(**changes)  # type: ignore[arg-type]
    behind.see(NEW)
    assert not behind.differs and not behind.surprised
    assert behind.said()[0].anew is Anew.NONE and behind.told().missed == 0
    behind.miss(NEW)
    behind.see(NEWER)
    assert behind.told().missed == 0, "as ever"


def test_primary_whose_application_was_started_anew_tells_so() -> None:
    behind = Behind()
    behind.whole.on_anew(BegunAnew(behind.life + 1), behind.now)
    assert not behind.differs, "that was about another life"
    behind.whole.on_anew(BegunAnew(behind.life), behind.now)
    assert behind.differs
    lives, whole = behind.said()
    assert lives.anew is Anew.SERVER and whole == Whole(behind.life, 0, 1)
    behind.whole.on_said(WholeSaid(behind.life), behind.now)
    behind.see(OLD, 0.05)
    assert not behind.differs and behind.told().missed == 0


def test_replica_that_follows_the_server_that_was_started_anew() -> None:
    """The primary knows whether anything was sent between."""
    behind = Behind()
    behind.whole.on_anew(BegunAnew(behind.life), behind.now)
    life = behind.said()[0].life
    behind.see(NEW, LATER)
    lives = behind.said()[0]
    assert lives.anew is Anew.REPLICA and lives.life != life


def test_operator_says_so() -> None:
    behind = Behind()
    behind.miss()
    behind.believe(OLD)
    assert not behind.concerned
    assert behind.told() == Whole(behind.whole.instance, 0, 0) and behind.whole.instance != behind.life
    assert behind.believed()
    behind.see(NEW)
    assert behind.differs and not behind.believed(), "that was about what had been started until then"


def test_primary_that_has_not_heard_of_this_life_hears_what_the_word_is_about() -> None:
    """A start of its own application, which it has not seen yet, was before the word."""
    behind = Behind()
    behind.believe(OLD)
    assert behind.out.records[-1] == Whole(behind.life, 0, 0)
    assert behind.believed() and behind.told().instance != behind.life


def test_operator_says_so_on_the_primary_of_this_life_only() -> None:
    behind = Behind()
    behind.miss(OLD)
    behind.whole.on_said(WholeSaid(behind.life + 1), behind.now)
    assert behind.concerned and not behind.whole.wants_look
    behind.whole.on_said(WholeSaid(behind.life), behind.now)
    behind.see(OLD, 0.05)
    assert not behind.concerned and not behind.believed()


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("missed", [False, True])
def test_what_an_operator_says_is_about_a_start_that_nobody_has_seen_so_far(where: str, missed: bool) -> None:
    """The sockets are looked at once a second: who restarts it and says so at once knows of it, we don't."""
    behind = Behind()
    if missed:
        behind.see(NONE)
        behind.miss(NONE)
    if where == "here":
        behind.whole.said(behind.now)
    else:
        behind.whole.on_said(WholeSaid(behind.life), behind.now)
    assert behind.whole.wants_look and behind.concerned is missed
    behind.see(NEW, 0.05)
    assert not behind.out.concerns.own and not behind.out.counters["application-anew"]
    assert behind.surprised, "what was opened between is answered from another state all the same"
    lives, whole = behind.said()
    assert lives.anew is Anew.NONE and whole.missed == 0 and whole.instance != behind.life
    assert not behind.whole.wants_look
    behind.see(NEWER)
    assert behind.differs, "that was after it"


def test_what_an_operator_says_does_not_wait_for_a_kernel_that_can_not_be_asked() -> None:
    behind = Behind()
    behind.miss(OLD)
    behind.whole.said(behind.now)
    behind.whole.review(behind.now + LOOK_WITHIN_S / 2)
    assert behind.concerned
    behind.whole.review(behind.now + LOOK_WITHIN_S)
    assert not behind.concerned and not behind.whole.wants_look


def test_number_of_a_life_is_the_same_after_a_restart_of_the_daemon() -> None:
    assert Behind().life == Behind().life


def test_bytes_that_the_replica_could_not_be_given_are_missed_input() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100)
        t.effects.clear()
        t >> Close(1, "closed")
        t.effects.clear()
        for _ in range(300):
            t >> After(0.05)
            t.effects.clear()
        assert t.side.wholeness.missed == 1


def test_hole_at_the_takeover_of_what_is_reset_is_missed_input() -> None:
    from nfq_failover.wire.records import Fed

    with Shadowing() as t:
        t >> Fed(1, "diverged")
        t.effects.clear()
        t >> from_client(100, 100)
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        assert t.side.wholeness.missed == 1
