"""What is known to be wrong: said once, shown until it is over, told to the peer, and weighed by the host's part."""

from __future__ import annotations

from nfq_failover.core.concerns import MAX_OF_A_PEER, Concern, Concerns, Part, Weight
from nfq_failover.core.pair.told import Telling, Told

DISK = Concern("disk-full", Weight.UNPROTECTED, "no room", "make room")
TAP = Concern("tap-lossy", Weight.DEGRADED, "half of it is lost")
RULE = Concern("foreign-rule", Weight.WARNING, "a rule")


class Registry:
    """A registry, and the lines that it has logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.concerns = Concerns(self._log)

    def _log(self, level: str, event: str, **fields: object) -> None:
        self.lines.append(f"{level} {event} {fields}")

    def said(self) -> list[str]:
        """Returns the lines since the last time."""
        said, self.lines = self.lines, []
        return said


def test_it_is_said_once_and_again_when_it_weighs_more() -> None:
    registry = Registry()
    registry.concerns.raised("tap", TAP, 1.0)
    registry.concerns.raised("tap", TAP, 2.0)
    registry.concerns.raised("tap", Concern("tap-lossy", Weight.DEGRADED, "a third of it is lost"), 3.0)
    assert registry.said() == ["error concern: degraded {'code': 'tap-lossy', 'what': 'half of it is lost'}"]
    registry.concerns.raised("tap", Concern("tap-lossy", Weight.UNPROTECTED, "all is lost", "look"), 4.0)
    assert registry.said() == [
        "error concern: unprotected {'code': 'tap-lossy', 'what': 'all is lost', 'cure': 'look'}"
    ]
    assert [standing.since for standing in registry.concerns.standing()] == [1.0]
    registry.concerns.over("tap", "tap-lossy", 9.0)
    registry.concerns.over("tap", "tap-lossy", 9.5)
    assert registry.said() == ["info concern is over {'code': 'tap-lossy', 'after_s': 8.0}"]
    assert registry.concerns.own == []


def test_the_heaviest_comes_first_and_a_code_is_told_once() -> None:
    registry = Registry()
    registry.concerns.raised("a", RULE, 1.0)
    registry.concerns.raised("a", DISK, 3.0)
    registry.concerns.raised("b", DISK, 2.0)
    assert registry.concerns.own == [DISK, RULE]
    registry.concerns.over("a", "disk-full", 4.0)
    assert registry.concerns.own == [DISK, RULE], "the other source has not taken it back"


def test_a_source_replaces_what_it_has_found() -> None:
    registry = Registry()
    registry.concerns.raised("core", TAP, 0.0)
    registry.concerns.replace("host", [DISK, RULE], 1.0)
    registry.concerns.replace("host", [RULE], 2.0)
    assert registry.concerns.own == [TAP, RULE]
    version = registry.concerns.version
    registry.concerns.replace("host", [RULE], 3.0)
    assert registry.concerns.version == version, "nothing new is told"


def test_what_hinders_the_other_part_is_a_warning() -> None:
    registry = Registry()
    registry.concerns.act_as(Part.PRIMARY)
    fence = Concern("fence-missing", Weight.UNPROTECTED, "no fence", bears=Part.BACKUP)
    registry.concerns.raised("host", fence, 1.0)
    assert [line.split(" {")[0] for line in registry.said()] == ["warning concern: warning"]
    assert [each.weight for each in registry.concerns.own] == [Weight.WARNING]
    version = registry.concerns.version
    registry.concerns.act_as(Part.BACKUP)
    assert [line.split(" {")[0] for line in registry.said()] == ["error concern: unprotected"]
    assert registry.concerns.version != version, "the peer must hear how much it matters now"
    assert [each.weight for each in registry.concerns.own] == [Weight.UNPROTECTED]
    registry.concerns.act_as(Part.PRIMARY)
    assert registry.said() == []


def test_the_peers_are_shown_with_its_name_and_not_told_back() -> None:
    registry = Registry()
    registry.concerns.act_as(Part.PRIMARY)
    version = registry.concerns.version
    registry.concerns.told("b", [Concern("fence-missing", Weight.UNPROTECTED, "no fence", bears=Part.BACKUP)], 1.0)
    (standing,) = registry.concerns.standing()
    assert (standing.host, standing.concern.weight) == ("b", Weight.UNPROTECTED)
    assert (registry.concerns.own, registry.concerns.version) == ([], version)
    assert "'host': 'b'" in registry.said()[0]
    registry.concerns.told("b", [], 2.0)
    assert registry.concerns.worst is None


def test_what_both_hosts_have_is_said_once_but_never_lighter_than_it_is() -> None:
    registry = Registry()
    registry.concerns.act_as(Part.PRIMARY)
    same = Concern("rule", Weight.UNPROTECTED, "a rule", bears=Part.BACKUP)
    registry.concerns.told("b", [same], 1.0)
    registry.concerns.raised("host", same, 2.0)
    assert [(each.host, each.concern.weight) for each in registry.concerns.standing()] == [
        ("b", Weight.UNPROTECTED),
        ("", Weight.WARNING),
    ]
    registry.concerns.told("b", [Concern("rule", Weight.WARNING, "a rule")], 3.0)
    assert [each.host for each in registry.concerns.standing()] == [""]


def test_a_peer_that_tells_too_much_is_cut_short() -> None:
    registry = Registry()
    registry.concerns.told("b", (Concern(str(n), Weight.WARNING, "") for n in range(1000)), 1.0)
    assert len(registry.concerns.standing()) == MAX_OF_A_PEER


def test_a_concern_may_hinder_some_clients_only() -> None:
    registry = Registry()
    route = Concern("route", Weight.DEGRADED, "no route", bears=Part.BACKUP, clients=(b"aaaa", b"bbbb"))
    registry.concerns.raised("host", route, 1.0)
    registry.concerns.told("b", [Concern("other", Weight.DEGRADED, "b says so", clients=(b"cccc",))], 2.0)
    assert registry.concerns.hindered() == {b"aaaa": "no route", b"bbbb": "no route", b"cccc": "b says so"}
    registry.concerns.act_as(Part.PRIMARY)
    assert registry.concerns.hindered() == {b"cccc": "b says so"}, "this host answers nobody but its own clients"


def test_the_peer_learns_which_clients_a_concern_hinders() -> None:
    here, there = Registry().concerns, Registry().concerns
    telling, told = Telling(here, ()), Told("a", there)
    here.raised("host", Concern("route", Weight.DEGRADED, "no route", clients=(b"aaaa",)), 1.0)
    here.raised("host", DISK, 1.0)
    for record in telling.due(1.0):
        told.take(record, 1.0)
    assert there.hindered() == {b"aaaa": "no route"}
    assert [each.concern.clients for each in there.standing()] == [(), (b"aaaa",)]
    here.replace("host", [DISK], 2.0)
    for record in telling.due(2.0):
        told.take(record, 2.0)
    assert there.hindered() == {}
