"""Other machines that have the service address, and the peer, which is none of them."""

from __future__ import annotations

from nfq_failover.shell.host.conflicts import PROBE_EVERY_S, Conflicts

PEER, STRANGER = bytes.fromhex("027700000003"), bytes.fromhex("020000000066")
PEERS = frozenset({PEER})
NOBODY: frozenset[bytes] = frozenset()
CONFLICT = [("02:00:00:00:00:66", True)]


def heard(conflicts: Conflicts, mac: bytes, peers: frozenset[bytes], begin: float, end: float) -> list[float]:
    """It is heard every half second. Returns when the address was defended."""
    times = [begin + step / 2 for step in range(int((end - begin) * 2) + 1)]
    return [at for at in times if conflicts.heard(mac, peers, at)]


def test_a_stranger_that_is_heard_again_is_a_conflict_and_forgotten_when_it_is_silent() -> None:
    conflicts = Conflicts()
    heard(conflicts, STRANGER, PEERS, 100.0, 101.5)
    assert conflicts.present(PEERS, 101.5) == []
    assert conflicts.probe_every_s < 2.0, "it is asked again soon"
    heard(conflicts, STRANGER, PEERS, 102.0, 103.0)
    assert conflicts.present(PEERS, 103.0) == CONFLICT
    assert conflicts.present(PEERS, 117.0) == CONFLICT
    assert conflicts.present(PEERS, 118.0) == []
    assert conflicts.probe_every_s == PROBE_EVERY_S


def test_the_address_is_defended_every_ten_seconds_and_only_by_the_one_that_serves() -> None:
    conflicts = Conflicts()
    assert heard(conflicts, STRANGER, PEERS, 0.0, 0.5) == []
    conflicts.serve(True, 1.0)
    assert heard(conflicts, STRANGER, PEERS, 1.0, 60.0) == [1.0, 11.0, 21.0, 31.0, 41.0, 51.0]


def test_the_peer_that_serves_or_takes_over_is_no_conflict() -> None:
    conflicts = Conflicts()
    heard(conflicts, PEER, PEERS, 0.0, 9.0)  # it serves
    assert conflicts.present(PEERS, 9.0) == []
    conflicts.serve(True, 10.0)
    heard(conflicts, PEER, PEERS, 10.0, 12.5)  # what it had said before, and what waited on the way
    assert conflicts.present(PEERS, 13.0) == []
    heard(conflicts, PEER, PEERS, 50.0, 51.0)  # it takes over: this host is off, or will have stopped in a moment
    assert conflicts.present(PEERS, 51.0) == []
    conflicts.serve(False, 51.1)
    heard(conflicts, PEER, PEERS, 51.5, 60.0)
    assert conflicts.present(PEERS, 60.0) == []


def test_a_peer_that_goes_on_being_heard_while_we_serve_is_one_and_is_not_defended_against() -> None:
    conflicts = Conflicts()
    conflicts.serve(True, 0.0)
    assert heard(conflicts, PEER, PEERS, 30.0, 33.0) == []
    assert conflicts.present(PEERS, 33.0) == [("02:77:00:00:00:03", False)]


def test_a_peer_with_a_new_interface_is_no_stranger_once_it_has_told_us() -> None:
    conflicts = Conflicts()
    heard(conflicts, STRANGER, PEERS, 0.0, 1.5)
    assert conflicts.present(PEERS | {STRANGER}, 1.5) == []
    heard(conflicts, STRANGER, PEERS | {STRANGER}, 2.0, 9.0)
    assert conflicts.present(PEERS | {STRANGER}, 9.0) == []
    assert conflicts.probe_every_s == PROBE_EVERY_S


def test_where_the_peer_is_not_known_anybody_may_be_it() -> None:
    conflicts = Conflicts()
    heard(conflicts, STRANGER, NOBODY, 0.0, 9.0)  # we don't serve: it is the one that does
    assert conflicts.present(NOBODY, 9.0) == []
    conflicts.serve(True, 10.0)
    assert heard(conflicts, STRANGER, NOBODY, 20.0, 23.0) == []
    assert conflicts.present(NOBODY, 23.0) == [("02:00:00:00:00:66", False)]


def test_the_memory_is_bounded() -> None:
    conflicts = Conflicts()
    for at in (0.0, 3.0):
        for number in range(1000):
            conflicts.heard(number.to_bytes(6), PEERS, at)
    assert len(conflicts.present(PEERS, 3.0)) == 8
