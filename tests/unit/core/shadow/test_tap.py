"""A tap that brings nothing, or not everything, is known: from what the backup has to fetch instead."""

from __future__ import annotations

from nfq_failover.core.concerns import Weight
from nfq_failover.core.shadow.tap import TapWatch
from nfq_failover.wire.records import Data, Progress
from tests.support.shadow import Shadowing, from_client, replica
from tests.support.transcript import After, client_bytes, client_seq


def seconds(t: Shadowing, count: int, tapped: int = 0, fetched: int = 0) -> None:
    """Seconds in each of which the tap brings some bytes and the primary others, in pieces of 1000."""
    inward = t.side.flows[next(iter(t.side.flows))].inward
    for _ in range(count):
        for size, by_tap in ((tapped, True), (fetched, False)):
            for _ in range(size // 1000):
                at = inward.held
                piece = Data(1, client_seq(at), client_bytes(at, 1000))
                for given in (from_client(at, 1000) if by_tap else piece, replica(ack=at + 1000, edge=at + 41000)):
                    t >> given
                    t.effects.clear()
        t >> After(1.0)
        t.effects.clear()


def codes(t: Shadowing) -> list[str]:
    """What is wrong with the tap."""
    return [each.code for each in t.out.concerns.own]


def test_tap_that_brings_everything_is_well() -> None:
    with Shadowing() as t:
        seconds(t, 8, tapped=20_000)
        assert codes(t) == [] and t.side.repair.tap.share == 0


def test_tap_that_brings_nothing_is_found_within_seconds_though_every_byte_is_there() -> None:
    with Shadowing() as t:
        seconds(t, 5, tapped=1000)
        seconds(t, 5, fetched=1000)
        assert codes(t) == ["tap-deaf"]
        (concern,) = t.out.concerns.own
        assert concern.weight is Weight.DEGRADED and "5000 bytes" in concern.what and "MAC" in concern.cure
        seconds(t, 1, tapped=1000)
        assert codes(t) == []


def test_deaf_tap_with_a_multicast_mac_is_no_protection() -> None:
    """What does not come now would not come after a takeover, when nobody can be asked."""
    with Shadowing(tap="multicast") as t:
        seconds(t, 5, tapped=1000)
        seconds(t, 1, fetched=2000)
        seconds(t, 4)
        (concern,) = t.out.concerns.own
        assert (concern.code, concern.weight) == ("tap-deaf", Weight.DEGRADED)  # two packets may have been lost
        seconds(t, 1, fetched=3000)
        (concern,) = t.out.concerns.own
        assert (concern.code, concern.weight) == ("tap-deaf", Weight.UNPROTECTED) and "tap_mac" in concern.cure
        seconds(t, 1, tapped=1000)
        assert codes(t) == []


def test_share_that_has_to_be_fetched_is_told() -> None:
    with Shadowing() as t:
        seconds(t, 5, tapped=40_000, fetched=10_000)
        assert codes(t) == ["tap-lossy"]
        assert "20% of the clients' bytes" in t.out.concerns.own[0].what
        seconds(t, 6, tapped=40_000)
        assert codes(t) == []


def test_lost_segment_now_and_then_is_nothing() -> None:
    with Shadowing() as t:
        seconds(t, 10, tapped=50_000, fetched=2000)
        seconds(t, 10, tapped=1000, fetched=1000)
        assert codes(t) == []


def test_what_was_found_stands_while_nobody_sends() -> None:
    with Shadowing() as t:
        seconds(t, 2, fetched=1000)
        seconds(t, 60)
        assert codes(t) == ["tap-deaf"]
        t.side.clear("a new generation of connections begins")
        t.drain()
        t.effects.clear()
        assert codes(t) == []


def test_tap_that_does_not_bring_the_acknowledgements_of_a_download_is_deaf() -> None:
    with Shadowing() as t:
        tap = TapWatch(t.out)
        tap.unheard()
        tap.on_timer(t.now)
        assert codes(t) == ["tap-deaf"] and "acknowledged data" in t.out.concerns.own[0].what
        t.drain()
        t.effects.clear()


def test_progress_of_the_primary_alone_shows_nothing() -> None:
    with Shadowing() as t:
        t >> Progress(1, client_seq(0), True)
        t.effects.clear()
        seconds(t, 6)
        assert codes(t) == []
