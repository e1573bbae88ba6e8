"""The primary's part for a replica that is only fed: it keeps what is sent, and holds the client back for a while."""

from __future__ import annotations

from nfq_failover.core.gate.connection import FED_HOLD_S, FEED_LINGER_S, Gate
from nfq_failover.core.gate.table import LAST_WORDS_S
from nfq_failover.core.outbox import Outbox
from nfq_failover.wire.records import Close, Data, Fed, FedSeen, Missing, Record, Unprotected, UnprotectedSeen
from tests.support.gate import TS, Gated, ack
from tests.support.transcript import FLOW, ISS, After, Copy, client, client_bytes, client_seq, confirmed, server


def after(t: Gated, seconds: float) -> list[str]:
    """Time passes, in small steps; what has come out."""
    found = []
    for _ in range(round(seconds / 0.05)):
        t >> After(0.05)
        found += [str(effect) for effect in t.effects]
        t.effects.clear()
    return found


def fed() -> Gated:
    """The backup has said that the replica's output differs."""
    t = Gated()
    t >> Fed(1, "diverged") << "log warning: connection unprotected" << FedSeen(1)
    assert t.gate.state is Gate.FED
    return t


def written(t: Gated, start: int, length: int) -> None:
    """The client has sent something, and our TCP has taken it."""
    t >> Copy(client(start, length, ts=TS)) >> ack(start + length)


def records(t: Gated, kind: type[Record]) -> list[Record]:
    """The records of a kind that have come out; all effects are taken."""
    found = [effect for effect in t.effects if isinstance(effect, kind)]
    t.effects.clear()
    return found


def test_bytes_are_kept_for_the_replica() -> None:
    with fed() as t:
        written(t, 0, 100)
        t.effects.clear()
        t >> Missing(1, client_seq(0), client_seq(100)) << Data(1, client_seq(0), client_bytes(0, 100), False)


def test_client_waits_for_the_replica_and_not_for_ever() -> None:
    with fed() as t:
        written(t, 0, 100)
        assert str(t.effects.popleft()) == "drop ack-held"
        assert not any(each.startswith("client") for each in after(t, FED_HOLD_S - 0.2))
        assert any(each.startswith("client [.] 0 ack 100") for each in after(t, 0.6))
        written(t, 100, 100)
        assert str(t.effects.popleft()).startswith("pass")
        t.effects.clear()
        t >> Missing(1, client_seq(0), client_seq(200)) << Data(1, client_seq(0), client_bytes(0, 200), False)
        t >> confirmed(200, 90000)
        t.effects.clear()
        written(t, 200, 100)  # it has caught up: it is waited for again
        assert str(t.effects.popleft()) == "drop ack-held"
        t.effects.clear()


def test_acknowledgement_follows_the_confirmation() -> None:
    with fed() as t:
        written(t, 0, 100)
        t.effects.clear()
        t >> confirmed(100, 90000)
        assert any(str(effect).startswith("client [.] 0 ack 100") for effect in t.effects)
        t.effects.clear()


def test_refusal_of_a_syn_from_the_same_port_is_none_of_the_connection() -> None:
    """Our TCP has given the connection up and listens no more. The client believes only what acknowledges its SYN."""
    with fed() as t:
        written(t, 0, 100)
        t.effects.clear()
        t >> server(-1 - ISS, ack=70000, flags="R.", wnd=0) << "pass"
        assert FLOW in t.side.flows and t.gate.own.rcv_nxt == 100
        t.effects.clear()


def test_end_of_the_server_is_not_held() -> None:
    with fed() as t:
        t >> server(0, flags="F.", wnd=10000, ts=TS)
        assert str(t.effects.popleft()).startswith("pass")
        t.effects.clear()


def test_ended_connection_is_remembered_until_the_replica_has_all() -> None:
    with fed() as t:
        written(t, 0, 100)
        t.effects.clear()
        after(t, 2.0)
        t >> server(0, flags="R.", ack=100, wnd=0, ts=TS)
        assert not records(t, Close)
        t.side.flows_gone([FLOW], t.now)
        t.drain()
        assert not records(t, Close)
        t.now += 2 * LAST_WORDS_S
        t >> Missing(1, client_seq(0), client_seq(100)) << Data(1, client_seq(0), client_bytes(0, 100), False)
        t >> confirmed(100, 90000)
        t.effects.clear()
        t.side.flows_gone([FLOW], t.now)
        t.drain()
        assert records(t, Close) and FLOW not in t.side.flows


def test_ended_connection_is_not_remembered_for_ever() -> None:
    with fed() as t:
        written(t, 0, 100)
        t.effects.clear()
        after(t, 2.0)
        t.side.flows_gone([FLOW], t.now)
        after(t, FEED_LINGER_S + 0.1)
        t.side.flows_gone([FLOW], t.now)
        t.effects.clear()
        assert FLOW not in t.side.flows


def test_replica_that_can_not_be_fed_any_more() -> None:
    with fed() as t:
        t >> Unprotected(1, "the replica reset the connection") << "log warning: connection unprotected"
        t << UnprotectedSeen(1)
        assert t.gate.state is Gate.UNPROTECTED
        written(t, 0, 100)
        t.effects.clear()
        t >> Missing(1, client_seq(0), client_seq(100))
        assert not records(t, Data)


def test_replica_that_was_given_up_can_not_be_fed() -> None:
    with Gated() as t:
        t >> Unprotected(1, "the replica reset the connection") << "log warning: connection unprotected"
        t << UnprotectedSeen(1)
        t >> Fed(1, "diverged") << Unprotected(1, "the replica reset the connection") << FedSeen(1)


def test_backup_gone_for_good_lets_everything_go() -> None:
    with fed() as t:
        written(t, 0, 100)
        t.effects.clear()
        t.side.stop_protecting("backup gone", t.now)
        assert t.gate.state is Gate.UNPROTECTED and isinstance(t.side.out, Outbox)
        t.drain()
        assert any(str(effect).startswith("client [.] 0 ack 100") for effect in t.effects)
        t.effects.clear()
