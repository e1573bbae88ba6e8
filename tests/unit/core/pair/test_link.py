"""The link to one peer: what it sends and when, and what of the peer's heartbeats it passes on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nfq_failover.core.events import Log, PublishHeartbeat, SendDatagram
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.link import Link, Links
from nfq_failover.core.pair.membership import Membership
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.heartbeat import HeartbeatTemplate
from nfq_failover.wire.records import Closed
from tests.support import configured
from tests.support.transcript import settings

NOW = 100.0


class Ends:
    """The links of `a` to `b` and of `b` to `a`, whose datagrams the test carries."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.outs = {name: Outbox() for name in "ab"}
        self.links: dict[str, Link] = {}
        self.members: dict[str, Membership] = {}
        for name, other in ("ab", "ba"):
            conf = settings(name=name, peers=(configured.peer(other, f"host-{other}", 7),))
            self.links[name] = Link(conf, conf.peers[0], rng.randbytes, self.outs[name], NOW)
            self.members[name] = Membership(conf, self.links[name].view, 0, False, NOW)

    def carry(self, name: str) -> None:
        """Bring the datagrams of a host to the other, until neither has more to say."""
        other = "b" if name == "a" else "a"
        sent = [effect.data for effect in self.outs[name].effects if isinstance(effect, SendDatagram)]
        self.outs[name].effects.clear()
        for data in sent:
            self.links[other].receive(data, NOW)
            self.links[other].send_handshake()
            self.carry(other)

    def agree(self) -> Ends:
        """Bring a session about."""
        self.links["a"].on_timer(NOW)
        self.carry("a")
        assert all(link.session.established for link in self.links.values())
        return self

    def published(self, name: str) -> list[PublishHeartbeat]:
        """What the heartbeat sender was told since the last look."""
        found = [effect for effect in self.outs[name].effects if isinstance(effect, PublishHeartbeat)]
        self.outs[name].effects.clear()
        return found

    def template(self, name: str) -> HeartbeatTemplate:
        """What a host says in its heartbeats."""
        self.links[name].republish(self.members[name])
        (effect,) = self.published(name)
        return HeartbeatTemplate.decode(effect.template)


def test_beginning_of_a_session_is_logged_and_makes_the_peer_count_as_alive() -> None:
    ends = Ends()
    assert ends.links["b"].view.lost(NOW)
    ends.links["a"].on_timer(NOW)
    hello, waiting = ends.outs["a"].effects
    assert waiting == Log("info", "waiting for the peer", {"peer": "b", "address": "host-b:7"})
    assert isinstance(hello, SendDatagram) and hello.destination == ("host-b", 7)
    ends.carry("a")
    assert not ends.links["b"].view.lost(NOW)
    other = Ends()
    other.links["a"].on_timer(NOW)
    other.links["b"].receive(other.outs["a"].effects.popleft().data, NOW)  # type: ignore[union-attr]
    other.links["b"].send_handshake()
    reply = other.outs["b"].effects.popleft()
    assert other.links["a"].receive(reply.data, NOW).session_started  # type: ignore[union-attr]
    assert Log("info", "session established", {"peer": "b"}) in other.outs["a"].effects


def test_lane_goes_into_one_datagram_in_order_and_is_empty_then() -> None:
    ends = Ends().agree()
    a = ends.links["a"]
    a.lane.extend((Closed(1), Closed(2)))
    a.seal(5)
    assert a.lane == []
    (effect,) = ends.outs["a"].effects
    assert isinstance(effect, SendDatagram) and effect.destination == ("host-b", 7)
    received = ends.links["b"].receive(effect.data, NOW)
    assert (received.epoch, received.records) == (5, [Closed(1), Closed(2)])


def test_records_without_a_session_are_dropped_and_counted() -> None:
    ends = Ends()
    a = ends.links["a"]
    a.lane.extend((Closed(1), Closed(2)))
    a.seal(5)
    assert a.lane == [] and not ends.outs["a"].effects
    assert ends.outs["a"].counters["record-without-session"] == 2


def test_state_is_published_once_per_change_and_again_for_a_sender_that_has_forgotten_it() -> None:
    ends = Ends()
    link, members = ends.links["a"], ends.members["a"]
    link.publish(members)
    assert ends.published("a") == [], "there is no session to say it in"
    ends.agree()
    link.publish(members)
    link.publish(members)
    assert [effect.peer for effect in ends.published("a")] == ["b"]
    link.republish(members)
    assert len(ends.published("a")) == 1
    members.epoch = 9
    link.publish(members)
    (effect,) = ends.published("a")
    assert HeartbeatTemplate.decode(effect.template).epoch == 9


def test_clock_of_the_peer_is_echoed_only_while_its_loop_makes_progress() -> None:
    ends = Ends().agree()
    template, b = ends.template("a"), ends.links["b"]
    assert b.receive(template.datagram(1, 1000, 0), NOW).heartbeat is not None
    assert ends.template("b").body.echo_ms == 1000
    stalled = b.receive(template.datagram(2, 2000, b.settings.loop_stall_ms), NOW)
    assert stalled.heartbeat is not None, "what it says is true all the same"
    assert ends.template("b").body.echo_ms == 1000
    assert ends.outs["b"].counters["heartbeat-of-stalled-peer"] == 1


def test_heartbeat_that_was_overtaken_or_is_of_a_later_version_reaches_no_one() -> None:
    ends = Ends().agree()
    template, b = ends.template("a"), ends.links["b"]
    b.receive(template.datagram(1, 2000, 0), NOW)
    said = b.view.said
    assert b.receive(template.datagram(2, 1000, 0), NOW).heartbeat is None
    unknown = replace(template, body=replace(template.body, state=200))
    assert b.receive(unknown.datagram(3, 3000, 0), NOW).heartbeat is None
    assert b.view.said is said and b.view.monitor.received == 1
    counters = ends.outs["b"].counters
    assert (counters["heartbeat-overtaken"], counters["heartbeat-unknown-state"]) == (1, 1)


def test_refused_datagram_is_counted_in_its_session_and_raised() -> None:
    ends = Ends().agree()
    a = ends.links["a"]
    before = a.session.refused
    with pytest.raises(MalformedDatagram, match="truncated"):
        a.receive(b"garbage", NOW)
    assert a.session.refused == before + 1


def test_host_needs_a_peer() -> None:
    with pytest.raises(ValueError, match="unpack"):
        Links(settings(peers=()), random.Random(1).randbytes, Outbox(), NOW)


def test_a_record_of_the_peer_is_a_sign_of_life() -> None:
    ends = Ends().agree()
    monitor = ends.links["b"].view.monitor
    before = monitor.last_alive
    ends.links["a"].lane.append(Closed(7))
    ends.links["a"].seal(0)
    (sent,) = [effect.data for effect in ends.outs["a"].effects if isinstance(effect, SendDatagram)]
    ends.links["b"].receive(sent, NOW + 0.1)
    assert (before, monitor.last_alive) == (NOW, NOW + 0.1)
    with pytest.raises(MalformedDatagram):
        ends.links["b"].receive(sent, NOW + 0.2)
    assert monitor.last_alive == NOW + 0.1, "a recording is none"
