"""Other machines that have the service address, and the peer, which is none of them."""

from __future__ import annotations

from nfq_failover.shell.host.conflicts import Conflicts

PEER, STRANGER = bytes.fromhex("027700000003"), bytes.fromhex("020000000066")
PEERS = frozenset({PEER})
NOBODY: frozenset[bytes] = frozenset()


def test_a_stranger_is_a_conflict_at_once_and_forgotten_when_it_is_silent() -> None:
    conflicts = Conflicts()
    conflicts.heard(STRANGER, PEERS, 100.0)
    assert conflicts.present(100.0) == [("02:00:00:00:00:66", True)]
    assert conflicts.present(160.0)
    assert conflicts.present(180.0) == []


def test_the_address_is_defended_every_ten_seconds_and_only_by_the_one_that_serves() -> None:
    conflicts = Conflicts()
    assert not conflicts.heard(STRANGER, PEERS, 0.0)
    conflicts.serve(True, 1.0)
    defended = [at for at in range(1, 60) if conflicts.heard(STRANGER, PEERS, float(at))]
    assert defended == [1, 11, 21, 31, 41, 51]


def test_the_peer_that_serves_or_takes_over_is_no_conflict() -> None:
    conflicts = Conflicts()
    assert not conflicts.heard(PEER, PEERS, 0.0)  # it serves
    conflicts.serve(True, 10.0)
    for at in (10.0, 10.5, 12.9):  # what it had said before, and what waited on the way
        assert not conflicts.heard(PEER, PEERS, at)
    assert conflicts.present(13.0) == []
    conflicts.heard(PEER, PEERS, 50.0)  # it takes over: this host is off, or will have stopped in a moment
    conflicts.heard(PEER, PEERS, 50.5)
    assert conflicts.present(50.6) == []
    conflicts.serve(False, 50.7)
    conflicts.heard(PEER, PEERS, 52.0)
    assert conflicts.present(52.0) == []


def test_a_peer_that_goes_on_being_heard_while_we_serve_is_one_and_is_not_defended_against() -> None:
    conflicts = Conflicts()
    conflicts.serve(True, 0.0)
    assert not any(conflicts.heard(PEER, PEERS, at) for at in (30.0, 31.5, 33.0))
    assert conflicts.present(33.0) == [("02:77:00:00:00:03", False)]


def test_where_the_peer_is_not_known_anybody_may_be_it() -> None:
    conflicts = Conflicts()
    conflicts.heard(STRANGER, NOBODY, 0.0)  # we don't serve: it is the one that does
    assert conflicts.present(1.0) == []
    conflicts.serve(True, 10.0)
    assert not any(conflicts.heard(STRANGER, NOBODY, at) for at in (20.0, 21.5))
    assert conflicts.present(22.0) == [("02:00:00:00:00:66", False)]


def test_the_memory_is_bounded() -> None:
    conflicts = Conflicts()
    for number in range(1000):
        conflicts.heard(number.to_bytes(6), PEERS, 0.0)
    assert len(conflicts.present(0.0)) == 8
