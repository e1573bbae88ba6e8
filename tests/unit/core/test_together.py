"""Parts that were made one by one, where they meet: acceptance, comparison, takeover, and clients that are odd."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from nfq_failover.core.gate.connection import NOT_READY, Gate
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.records import (
    BytesAsked,
    BytesSent,
    Digest,
    Missing,
    Opened,
    Progress,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import HELD, TS, Digesting, Gated, ack, digest, seen
from tests.support.shadow import EDGE, SILENT, Shadowing, answer, from_client, replica
from tests.support.transcript import (
    FLOW,
    OFFER,
    OWN_TS,
    SEEN_TS,
    After,
    Copy,
    GateTranscript,
    ShadowTranscript,
    client,
    client_seq,
    confirmed,
    opening,
    server,
    server_bytes,
    server_seq,
    syn,
    syn_ack,
)
from tests.unit.core.shadow.test_divergence import Comparing, changed, lost

DAYS_25 = 25 * 86400


@pytest.fixture(autouse=True)
def no_endless_loop() -> Iterator[None]:
    """A loop that never ends is a failure, not a test that never ends."""

    def stop(*_: object) -> None:
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------ odd clients


def test_reset_of_the_syn_itself_before_the_replica_has_answered() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> client(-1, ack=None, flags="R") << "drop rst-elsewhere"
        t >> client(-1, ack=0, flags="R.") << "drop rst-elsewhere"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))


@pytest.mark.parametrize("mss", [0, 11, 12, 13])
def test_client_with_a_tiny_mss_stops_nobody(mss: int) -> None:
    with ShadowTranscript() as t:
        offer = OFFER[:2] + mss.to_bytes(2, "big") + OFFER[4:]
        t >> opening(syn_options=offer) << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> from_client() << f"pass [.] 0 ack 0 wnd 500 ts 1001/{OWN_TS}" << confirmed(0, 5000)
        t >> replica(0, 200) << SILENT << confirmed(0, EDGE)
        t >> "takeover"
        got = [str(effect) for effect in t.effects]
        assert got[0].startswith("client [.] 0:")  # something of it, at least
        t.effects.clear()
        t >> from_client(0, 0, ack=100)  # in the middle of what our TCP sends again
        t.effects.clear()
        t >> replica(0, 200)
        t.effects.clear()
        t >> from_client(0, 0, ack=200)
        t.effects.clear()


def test_acknowledgement_far_below_the_window_is_not_believed() -> None:
    """TCP refuses it (RFC 9293 section 3.10.7.4, first); a blind attacker would have to guess less."""
    with Shadowing() as t:
        size = 30_000
        for at in range(0, 120_000, size):
            t >> from_client(at, size)
            t.effects.clear()
            t >> replica(0, 0, ack=at + size, edge=at + size + EDGE)
            t.effects.clear()
        t >> replica(0, 1000, ack=120_000, edge=160_000) << SILENT
        t >> from_client(100, 0, ack=1000) << "drop outdated"
        t >> from_client(100, 50, ack=1000) << "drop outdated" << confirmed(120_000, 160_000)
        assert (t.shadow.output.snd_una, t.shadow.inward.own_una) == (0, 0)
        t >> "takeover"
        assert str(t.effects[0]).startswith("client [P.] 0:1000 ")
        t.effects.clear()
        t >> from_client(100, 0, ack=1000)  # our TCP answers it, and does not take it
        assert [str(effect)[:4] for effect in t.effects] == ["pass"]
        assert t.shadow.output.snd_una == 0
        t.effects.clear()
        t >> from_client(119_999, 0, ack=500)
        assert t.shadow.output.snd_una == 500
        t.effects.clear()


# ------------------------------------------------------------------------------------ bounds


def test_hole_that_a_client_leaves_is_asked_for_less_and_less() -> None:
    """A thousand connections with one each must not keep both daemons busy."""

    def asked(seconds: float) -> int:
        count = 0
        for _ in range(round(seconds / 0.005)):
            t >> After(0.005)
            count += sum(isinstance(effect, Missing) for effect in t.effects)
            t.effects.clear()
        return count

    with Shadowing() as t:
        t >> from_client(1000, 500)
        t.effects.clear()
        assert asked(2.0) <= 12
        assert 8 <= asked(10.0) <= 12
        t >> Progress(1, client_seq(1000), True)  # the primary has it: the tap has lost it
        t.effects.clear()
        assert asked(0.02) >= 1 and asked(1.0) >= 15


def test_bytes_of_a_connection_that_is_not_protected_are_not_kept() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        assert t.gate.retained.inbound.size == 1000
        t >> Unprotected(1, "diverged") << "log warning: connection unprotected" << UnprotectedSeen(1)
        assert t.gate.retained.inbound.size == 0
        for at in range(1000, 30_000, 1000):
            t >> Copy(client(at, 1000))
            t >> ack(at + 1000) << "pass"
        assert t.gate.retained.inbound.size == 0


class Late(GateTranscript):
    """A connection whose replica was not ready in time."""

    def __init__(self) -> None:
        super().__init__()
        self >> syn() << "pass"
        self >> syn_ack() << "drop syn-ack-held" << opening()
        for _ in range(3):
            self >> After(0.5)
            self.effects.clear()
        self.gate = self.side.flows[FLOW]
        assert (self.gate.state, self.gate.reason) == (Gate.UNPROTECTED, NOT_READY)
        self.effects.clear()
        self >> server(0, wnd=10000) << "pass"


def test_bytes_for_replicas_that_are_not_ready_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfq_failover.core.gate.copies.MAX_LATE_BYTES", 5000)
    with Late() as t:
        for at in range(0, 5000, 1000):
            t >> Copy(client(at, 1000))
            t >> ack(at + 1000) << "pass"
        assert (t.gate.retained.inbound.size, t.gate.reason) == (5000, NOT_READY)
        t >> Copy(client(5000, 1000))
        assert Unprotected(1, t.gate.reason) in t.effects and "no more room" in t.gate.reason
        t.effects.clear()
        t >> Copy(client(6000, 1000))
        assert t.gate.retained.inbound.size == 0


def test_room_for_late_replicas_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfq_failover.core.gate.copies.MAX_LATE_BYTES", 5000)
    with Late() as t:
        for at in range(0, 5000, 1000):
            t >> Copy(client(at, 1000))
            t >> ack(at + 1000) << "pass"
        t.gate.retained.forget()  # as if they had been another connection's, which is over
        t >> After(5.1)
        t.effects.clear()
        t >> Copy(client(5000, 1000))
        assert (t.gate.retained.inbound.size, t.gate.reason) == (1000, NOT_READY)


def test_backup_is_told_that_a_late_replica_will_never_be_ready() -> None:
    """It would wait, ask for ever, and continue the connection with a hole."""
    with Late() as t:
        t >> ack(1000) << "pass"  # no copy of it was read
        missing = Missing(1, client_seq(0), client_seq(1000))
        t >> missing
        t.now += 1.1
        t >> missing << "log warning: connection unprotected"
        t << Unprotected(1, "bytes that the backup misses were not retained")


# ------------------------------------------------------------------------------------ comparison and takeover


def test_digest_that_was_lost_just_before_the_takeover_does_not_end_an_idle_connection() -> None:
    with Comparing(hole_deadline_ms=500) as t:
        t >> replica(0, 200) << SILENT
        t >> digest(100, 100)  # the one before it was lost with the primary
        t >> from_client(0, 0, ack=200) << f"pass [.] 0 ack 200 wnd 500 ts 1001/{OWN_TS}"
        t >> "takeover"
        t.effects.clear()
        for _ in range(5):
            t >> After(0.6)
            t.effects.clear()
        assert t.shadow.state is Shadow.ACTIVE, t.shadow.reason


def test_digest_that_was_lost_just_before_the_takeover_delays_nothing() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t >> digest(100, 100)
        t >> "takeover"
        assert [str(effect)[:18] for effect in t.effects] == ["client [P.] 0:200 "]
        t.effects.clear()


def test_difference_behind_a_lost_digest_is_found_at_the_takeover() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t >> digest(100, 100, bytes(100))
        t >> "takeover"
        assert t.shadow.state is Shadow.FED
        assert not any(":" in str(e) for e in t.effects if str(e).startswith("client"))
        t.effects.clear()


# ------------------------------------------------------------------------------------ strict


def test_strict_tells_how_far_a_replica_is_that_can_not_go_on() -> None:
    """Its window is full, or it waits for the acknowledgement of a small segment (Nagle): that comes only if the client
    gets what both have sent."""
    with Comparing("strict") as t:
        t >> digest(0, 3000)
        t >> replica(0, 1280) << SILENT << seen(1280)
        t >> replica(1280, 100) << SILENT
        t >> After(0.2)
        asked = [effect for effect in t.effects if isinstance(effect, BytesAsked)]
        assert asked[:1] == [BytesAsked(1, server_seq(1280), server_seq(1380))]
        t.effects.clear()
        t >> BytesSent(1, server_seq(1280), server_bytes(1280, 100)) << seen(1380)
        t >> replica(1380, 1620) << SILENT
        for _ in range(3):
            for effect in list(t.effects):
                if isinstance(effect, BytesAsked):
                    start, end = (t.shadow.mapping.seen.offset(seq) for seq in (effect.start, effect.end))
                    t.effects.clear()
                    t >> BytesSent(1, effect.start, server_bytes(start, end - start))
        t << seen(3000)
        assert t.shadow.output.compare is not None and t.shadow.output.compare.compared == 3000


def test_what_can_not_be_digested_is_told_until_it_is_seen() -> None:
    with Digesting() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t.flush()
        t << digest(0, 100)
        t >> seen(100)
        t >> server(1100, 100, wnd=10000, ts=TS) << "pass" << Digest(1, server_seq(100), 1000)
        t >> After(0.005) << digest(1100, 100)
        for seconds in (0.1, 0.3, 1.0):
            t >> After(seconds) << Digest(1, server_seq(100), 1000) << digest(1100, 100)
        t >> seen(1200)
        t >> After(3.0)


def test_part_that_differs_ends_strict() -> None:
    with Comparing("strict") as t:
        t >> digest(0, 3000)
        t >> replica(0, 100) << SILENT
        t >> After(0.1) << BytesAsked(1, server_seq(0), server_seq(100))
        t >> BytesSent(1, server_seq(0), changed(0, 100, 50))
        lost(t, "differs at byte 50 (policy: strict)")


def test_part_is_told_again_if_the_primary_has_not_heard_of_it() -> None:
    with Comparing("strict") as t:
        t >> digest(0, 3000)
        t >> replica(0, 100) << SILENT
        t >> After(0.1) << BytesAsked(1, server_seq(0), server_seq(100))
        t >> After(0.1) << BytesAsked(1, server_seq(0), server_seq(100))
        t >> BytesSent(1, server_seq(0), server_bytes(0, 100)) << seen(100)
        t >> After(0.1)
        t >> digest(0, 3000) << seen(100)
        t >> "takeover"
        assert t.shadow.state is Shadow.ACTIVE
        t.effects.clear()


def test_strict_forgets_no_digest_that_was_not_seen() -> None:
    """The backup would pass over what it has no hashes of."""
    with Digesting("strict") as t:
        for at in range(0, 5000, 100):
            t >> server(at, 100, wnd=10000, ts=TS)
            t.effects.clear()
        for _ in range(10):
            t.flush()
            t.effects.clear()
        unseen = t.side.digests._streams[1].unseen
        assert unseen[0] == digest(0, 100)
        assert len(unseen) <= 33
        t >> seen(3000)
        t.effects.clear()
        t.flush()
        assert sum(record.length for record in unseen) == 2000
        t.effects.clear()


def test_strict_passes_over_nothing() -> None:
    with Comparing("strict") as t:
        t >> replica(0, 5000) << SILENT
        for at in range(100, 5000, 100):
            t >> digest(at, 100)
            t.effects.clear()
        assert t.shadow.output.compare is not None and t.shadow.output.compare.compared == 0
        t >> digest(0, 100) << seen(5000)


# ------------------------------------------------------------------------------------ long silence


def test_client_that_was_silent_for_longer_than_its_timestamps_reach_is_believed() -> None:
    """RFC 7323 section 5.5: after 24 days nothing can be told from an old timestamp."""
    with Shadowing() as t:
        t.now += DAYS_25
        late = (1001 + DAYS_25 * 1000) % 2**32
        t >> from_client(0, 100, ts=(late, SEEN_TS))
        assert "drop old-timestamp" not in t.effects and confirmed(100, EDGE) in t.effects
        t.effects.clear()
        assert t.shadow.header.tsval == late


def test_acknowledgements_after_a_long_silence_have_the_newest_timestamps() -> None:
    with Gated() as t:
        t >> ack(0) << "pass"
        t.now += DAYS_25
        tsval, tsecr = (TS[0] + DAYS_25 * 1000) % 2**32, (TS[1] + DAYS_25 * 1000) % 2**32
        t >> Copy(client(0, 1000, ts=(tsecr, TS[0])))
        assert t.gate.retained.inbound.size == 1000
        t >> ack(1000, ts=(tsval, tsecr)) << HELD
        t >> confirmed(1000, 40000) << f"client [.] 0 ack 1000 wnd 9750 ts {tsval}/{tsecr}"
        assert t.gate.state is Gate.PROTECTED
