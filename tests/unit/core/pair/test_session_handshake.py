"""How two daemons come to a session, and what can't take them out of it."""

from __future__ import annotations

import pytest

from nfq_failover.core.pair.session import HELLO_MAX_S, HELLO_MIN_S, MAX_OUTGOING, Received
from nfq_failover.errors import InternalError
from nfq_failover.wire.datagram import Kind, read_header
from nfq_failover.wire.records import Closed
from tests.support.session_pair import SessionPair, agreed_pair, drain, hello, make, refusal

INTERVAL = 0.05


def kinds(datagrams: list[bytes]) -> list[Kind]:
    return [read_header(data).kind for data in datagrams]


def say(pair: SessionPair, sender: str, receiver: str, conn: int, now: float = 1.0) -> Received | None:
    """One record from one end to the other."""
    [data] = pair.ends[sender].seal([Closed(conn)], 1)
    return pair.deliver(receiver, data, now)


def assert_both_talk(pair: SessionPair, now: float = 1.0) -> None:
    for sender, receiver in (("a", "b"), ("b", "a")):
        received = say(pair, sender, receiver, 77, now)
        assert received is not None
        assert received.records == [Closed(77)]


def test_hello_reply_reply() -> None:
    a, b = make("a", "b"), make("b", "a")
    first = hello(a, 0.0)
    assert kinds([first]) == [Kind.HELLO]

    assert b.receive(first, 0.0) == Received()
    assert not b.established  # a HELLO proves nothing: it may be a recording
    [second] = drain(b)
    assert kinds([second]) == [Kind.REPLY]

    assert a.receive(second, 0.0) == Received(session_started=True)
    assert a.established
    third = drain(a)
    assert kinds(third) == [Kind.REPLY, Kind.RECORDS]

    assert b.receive(third[0], 0.0) == Received(session_started=True)
    assert b.session_id == a.session_id is not None
    assert b.receive(third[1], 0.0) == Received()  # no record in it: it only says that `a` has arrived
    fourth = drain(b)
    assert kinds(fourth) == [Kind.RECORDS]
    assert a.receive(fourth[0], 0.0) == Received()
    assert drain(a) == drain(b) == []


def test_crossing_hellos_make_one_session() -> None:
    pair = SessionPair(make("a", "b"), make("b", "a"))
    pair.ends["a"].on_timer(0.0)
    pair.ends["b"].on_timer(0.0)
    pair.exchange(0.0)
    assert pair.agreed
    assert pair.started == {"a": 1, "b": 1}
    assert_both_talk(pair)


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("lost", range(8))
def test_any_datagram_of_the_handshake_may_be_lost(lost: int, crossing: bool) -> None:
    pair = SessionPair(make("a", "b"), make("b", "a"))
    count, now = 0, 0.0
    while now <= 2.5 * INTERVAL:
        for name in ("a", "b") if crossing or now else ("a",):
            pair.ends[name].on_timer(now)
        while waiting := pair.collect():
            for name, data in waiting:
                if count != lost:
                    pair.deliver(name, data, now)
                count += 1
        now += INTERVAL / 5
    assert count > lost or not crossing, "the handshake was shorter than this test thinks"
    assert pair.agreed
    assert pair.started == {"a": 1, "b": 1}
    assert_both_talk(pair)


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_duplicated_and_reversed_handshake(copies: int, reverse: bool) -> None:
    pair = SessionPair(make("a", "b"), make("b", "a"))
    for step in range(3):
        now = step * INTERVAL
        pair.ends["a"].on_timer(now)
        pair.ends["b"].on_timer(now)
        hops = 0
        while waiting := pair.collect() * copies:
            for name, data in reversed(waiting) if reverse else waiting:
                pair.deliver(name, data, now)
            hops += 1
            assert hops < 20, "duplicates keep the handshake going for ever"
    assert pair.agreed
    assert pair.started == {"a": 1, "b": 1}
    assert_both_talk(pair)


@pytest.mark.parametrize("restarted", ["a", "b"])
def test_a_restarted_peer_has_its_session_at_once_though_the_old_one_looks_alive(restarted: str) -> None:
    pair = agreed_pair()
    other = "b" if restarted == "a" else "a"
    old = pair.ends[other].session_id
    assert_both_talk(pair, now=1.0)
    [stale] = pair.ends[restarted].seal([Closed(1)], 1)

    pair.ends[restarted] = make(restarted, other, life=2)
    pair.ends[restarted].on_timer(1.0)
    pair.exchange(1.0)  # not a moment later
    assert pair.agreed
    assert pair.ends[other].session_id != old
    assert pair.started == {"a": 2, "b": 2}
    assert refusal(pair.ends[other], stale, 1.0) == "wrong-session"
    assert_both_talk(pair)


def test_a_survivor_that_speaks_first_finds_the_restarted_peer() -> None:
    pair = agreed_pair()
    pair.ends["b"] = make("b", "a", life=2)
    pair.ends["a"].on_timer(10.0)  # long silent by now
    pair.exchange(10.0)
    assert pair.agreed
    assert pair.started == {"a": 2, "b": 2}


def test_lost_last_reply_is_made_good_within_an_interval() -> None:
    """`b` has restarted and is in the new session; `a` does not know, and still hears nothing wrong."""
    pair = agreed_pair()
    pair.ends["b"] = make("b", "a", life=2)
    assert pair.deliver("a", hello(pair.ends["b"], 1.0), 1.0) is not None
    [reply] = drain(pair.ends["a"])
    assert pair.deliver("b", reply, 1.0) == Received(session_started=True)
    assert len(drain(pair.ends["b"])) == 2  # both lost
    assert not pair.agreed
    pair.ends["b"].on_timer(1.0 + INTERVAL)
    pair.exchange(1.0 + INTERVAL)
    assert pair.agreed


# ------------------------------------------------------------------------------------ recordings


def test_replayed_hello_of_a_dead_life_disturbs_nothing() -> None:
    old = make("b", "a", life=1)
    recorded = hello(old, 0.0)
    pair = SessionPair(make("a", "b"), make("b", "a", life=2)).agree()
    session = pair.ends["a"].session_id
    for _ in range(3):
        assert pair.deliver("a", recorded, 1.0) == Received()
        [answer] = drain(pair.ends["a"])
        assert refusal(pair.ends["b"], answer, 1.0) is None  # from the session it is in: nothing to do
        assert drain(pair.ends["b"]) == []
    assert pair.ends["a"].session_id == pair.ends["b"].session_id == session
    assert_both_talk(pair)


def test_replayed_replies_disturb_nothing() -> None:
    pair = agreed_pair()
    session = pair.ends["a"].session_id
    for name, data in list(pair.sent):
        pair.deliver(name, data, 1.0)
    pair.exchange(1.0)
    assert pair.started == {"a": 1, "b": 1}
    assert pair.ends["a"].session_id == pair.ends["b"].session_id == session


def test_replies_of_a_dead_life_are_stale_whether_they_were_delivered_or_not() -> None:
    pair = SessionPair(make("a", "b"), make("b", "a"))
    assert pair.deliver("b", hello(pair.ends["a"], 0.0), 0.0) is not None
    [withheld] = drain(pair.ends["b"])  # answers the challenge of `a`, and is never delivered
    pair.agree(INTERVAL)
    delivered = [data for name, data in pair.sent if name == "a" and read_header(data).kind is Kind.REPLY]
    assert delivered

    pair.ends["b"] = make("b", "a", life=2)
    pair.ends["b"].on_timer(1.0)
    pair.exchange(1.0)
    assert pair.agreed
    for recorded in (withheld, *delivered):
        assert refusal(pair.ends["a"], recorded, 1.0) == "stale-reply"
    assert pair.agreed
    assert_both_talk(pair)


def test_a_whole_recorded_handshake_with_its_proof_can_not_lead_back_into_a_dead_life() -> None:
    """The first life of `b` finished the handshake on its side only; all that it sent comes after its restart."""
    pair = SessionPair(make("a", "b"), make("b", "a"))
    late = [hello(pair.ends["b"], 0.0)]
    assert pair.deliver("a", late[0], 0.0) is not None
    [reply] = drain(pair.ends["a"])
    assert pair.deliver("b", reply, 0.0) is not None
    late += drain(pair.ends["b"])  # REPLY and the first datagram of the session, delayed
    late += pair.ends["b"].seal([Closed(1)], 1)

    pair.ends["b"] = make("b", "a", life=2)
    pair.ends["b"].on_timer(1.0)
    pair.exchange(1.0)
    assert pair.agreed
    for data in late:
        pair.deliver("a", data, 1.1)
    pair.exchange(1.1)
    assert pair.agreed
    assert pair.started["a"] == 1
    assert_both_talk(pair, 1.1)


def test_a_withheld_reply_that_does_get_through_is_healed_by_the_living_peer() -> None:
    pair = SessionPair(make("a", "b"), make("b", "a"))
    assert pair.deliver("b", hello(pair.ends["a"], 0.0), 0.0) is not None
    [withheld] = drain(pair.ends["b"])
    pair.ends["b"] = make("b", "a", life=2)
    assert pair.deliver("a", withheld, 1.0) == Received(session_started=True)  # nothing newer is known
    drain(pair.ends["a"])
    pair.ends["b"].on_timer(1.0)
    pair.exchange(1.0)
    assert pair.agreed
    assert pair.started == {"a": 2, "b": 1}


def test_a_session_that_was_left_never_comes_back() -> None:
    """Two daemons under one name: the later one stays."""
    pair = agreed_pair()
    older = pair.ends["b"]
    pair.ends["b"] = make("b", "a", life=2)
    pair.ends["b"].on_timer(1.0)
    pair.exchange(1.0)
    assert pair.agreed
    older.receive(hello(pair.ends["a"], 10.0), 10.0)
    reasons = {refusal(pair.ends["a"], data, 10.0) for data in drain(older)}
    assert reasons == {"retired-session"}
    assert pair.agreed


# ------------------------------------------------------------------------------------ forgeries


def test_own_datagrams_sent_back_are_refused() -> None:
    pair = agreed_pair()
    pair.ends["a"].on_timer(10.0)
    pair.ends["b"].on_timer(10.0)
    pair.exchange(10.0)
    own = [data for name, data in pair.sent if name == "b"] + pair.ends["a"].seal([Closed(1)], 1)
    assert {read_header(data).kind for data in own} == {Kind.HELLO, Kind.REPLY, Kind.RECORDS}
    assert {refusal(pair.ends["a"], data) for data in own} == {"reflected"}


def test_another_key_never_comes_to_a_session() -> None:
    a, b = make("a", "b"), make("b", "a", key=b"x" * 32)
    assert refusal(b, hello(a, 0.0)) == "bad-mac"
    assert refusal(a, hello(b, 0.0)) == "bad-mac"
    assert drain(a) == drain(b) == []


def test_a_hello_for_another_host_is_refused() -> None:
    to_c = make("a", "c")
    from_a = make("b", "a")
    assert refusal(from_a, hello(to_c, 0.0)) == "wrong-name"
    assert drain(from_a) == []


@pytest.mark.parametrize("which", ["hello", "reply", "records"])
def test_every_flipped_bit_is_noticed_and_changes_nothing(which: str) -> None:
    pair = SessionPair(make("a", "b"), make("b", "a"))
    data = hello(pair.ends["b"], 0.0)
    if which == "reply":
        assert pair.deliver("b", hello(pair.ends["a"], 0.0), 0.0) is not None
        [data] = drain(pair.ends["b"])
    elif which == "records":
        pair.agree(INTERVAL)
        [data] = pair.ends["b"].seal([Closed(1)], 1)
    session = pair.ends["a"].session_id
    allowed = {"bad-mac", "bad-version", "unknown-kind", "of-no-session", "reflected", "wrong-session"}
    for bit in range(8 * len(data)):
        forged = bytearray(data)
        forged[bit >> 3] ^= 1 << (bit & 7)
        assert refusal(pair.ends["a"], bytes(forged)) in allowed
    assert pair.ends["a"].session_id == session
    assert drain(pair.ends["a"]) == []
    assert pair.deliver("a", data, 0.1) is not None  # the true one is still new


def test_what_needs_a_session_says_so() -> None:
    a = make("a", "b")
    assert not a.established
    assert a.session_id is None
    with pytest.raises(InternalError):
        a.seal([Closed(1)], 1)
    [data] = agreed_pair().ends["b"].seal([Closed(1)], 1)
    assert refusal(a, data) == "wrong-session"


def test_handshake_and_sessions_have_different_random_numbers() -> None:
    first, second = agreed_pair(), SessionPair(make("a", "b", life=2), make("b", "a")).agree()
    assert first.ends["a"].session_id != second.ends["a"].session_id
    greetings = {hello(make("a", "b", life=life), 0.0)[22:46] for life in range(20)}
    assert len(greetings) == 20


# ------------------------------------------------------------------------------------ time


@pytest.mark.parametrize(
    ("interval_ms", "pause"), [(10, HELLO_MIN_S), (50, 0.05), (700, 0.7), (1000, HELLO_MAX_S), (5000, HELLO_MAX_S)]
)
def test_hello_is_repeated_every_interval_within_bounds(interval_ms: int, pause: float) -> None:
    a = make("a", "b", interval_ms=interval_ms)
    now = 100.0
    for _ in range(5):
        hello(a, now)
        assert a.poll_timeout() == pytest.approx(now + pause)
        a.on_timer(now + 0.9 * pause)
        assert drain(a) == []
        now = a.poll_timeout()


def test_no_hello_while_the_peer_is_heard_and_again_when_it_is_silent() -> None:
    pair = agreed_pair()
    for step in range(1, 20):
        now = step * INTERVAL
        assert say(pair, "b", "a", step, now) is not None
        pair.ends["a"].on_timer(now)
        assert drain(pair.ends["a"]) == []
    heard = now
    pair.ends["a"].on_timer(heard + 0.14)  # not yet the detection time
    assert drain(pair.ends["a"]) == []
    assert kinds([hello(pair.ends["a"], heard + 0.21)]) == [Kind.HELLO]


def test_what_was_heard_in_the_old_session_does_not_count_in_the_new_one() -> None:
    pair = agreed_pair()
    assert say(pair, "b", "a", 1, now=1.0) is not None
    pair.ends["b"] = make("b", "a", life=2)
    assert pair.deliver("a", hello(pair.ends["b"], 1.0), 1.0) is not None
    pair.deliver("b", drain(pair.ends["a"])[0], 1.0)
    assert pair.deliver("a", drain(pair.ends["b"])[0], 1.0) == Received(session_started=True)
    drain(pair.ends["a"])
    assert kinds([hello(pair.ends["a"], 1.0 + INTERVAL)]) == [Kind.HELLO]


def test_refused_datagrams_do_not_count_as_heard() -> None:
    pair = agreed_pair()
    [data] = pair.ends["b"].seal([Closed(1)], 1)
    assert pair.deliver("a", data, 0.0) is not None
    for step in range(1, 10):
        assert refusal(pair.ends["a"], data, step * INTERVAL) == "replayed"
    assert kinds([hello(pair.ends["a"], 10 * INTERVAL)]) == [Kind.HELLO]


def test_a_hello_in_a_living_session_is_answered_and_ends_there() -> None:
    pair = agreed_pair()
    assert pair.deliver("b", hello(pair.ends["a"], 10.0), 10.0) == Received()
    [reply] = drain(pair.ends["b"])
    assert pair.deliver("a", reply, 10.0) == Received()
    assert drain(pair.ends["a"]) == []


def test_answers_that_nobody_fetches_are_bounded() -> None:
    a, b = make("a", "b"), make("b", "a")
    for step in range(100):
        assert refusal(b, hello(a, float(step))) is None
    assert len(drain(b)) == MAX_OUTGOING
