"""What a node shows of itself: a program that reads the control socket's JSON finds each key where it was."""

from __future__ import annotations

import json

from nfq_failover import __version__
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import HostChecked
from nfq_failover.core.gate.digests import SentStream
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.mishaps import MOST, Mishaps
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import State
from nfq_failover.core.status import connections_of
from nfq_failover.wire.records import DigestSeen, Unprotected
from tests.support.gate import digest
from tests.support.shadow import SILENT, replica
from tests.support.transcript import SERVER, server_seq, settings
from tests.unit.core.shadow.test_divergence import Comparing, changed
from tests.unit.core.test_node_packets import LoneNode, Protected, shadowing

KEYS = [
    *("name", "alive", "role", "state", "reason", "epoch", "generation", "witness", "peer", "connections"),
    *("protected_connections", "pace", "application", "bounds", "counters", "membership", "concerns", "mishaps"),
    *("versions", "happenings", "takeover"),
]

PRIMARY = (
    '{"name":"a","alive":true,"role":"primary","state":"protected","reason":"waiting for the peer",'
    '"epoch":0,"generation":0,"witness":null,"peer":{"name":"b","address":"10.77.0.3:7766",'
    '"session":false,"lost":true,"said":"","heartbeat":{"interval_ms":50,"count":3,"detection_ms":150,'
    '"datagram_bytes":113,"bandwidth_bps":18080,"received":0,"missed":0,"largest_gap_ms":0.0,'
    '"silent_ms":null}},"connections":[{"client":"10.77.0.1:40000","server":"10.77.0.100:80",'
    '"protected":true,"reason":"","logged_bytes":0,"confirmed_bytes":0,"lag_bytes":1000,"differences":0,"lag_out_bytes":0,"lag_ms":0,"slowed":false}'
    '],"protected_connections":1,"pace":{"worst_ms":0,"slowed":0,"let_go":0,"wait_ms":0.0,"fetched_percent":0.0},"application":{"checked":false,"well":true,"failed_checks":0,'
    '"detail":""},"counters":{"ack-held":1,"record-without-session":1,"syn-ack-held":1},'
    '"membership":"protected","concerns":[],"mishaps":[],"versions":{"own":"VERSION","peer":""},"happenings":['
    '{"role":"primary","state":"protected","epoch":0,"reason":"waiting for the peer","ago_s":0.0},'
    '{"role":"joining","state":"waiting","epoch":0,"reason":"waiting for the peer","ago_s":0.0}],"takeover":null}'
)
"""A primary with one protected connection, of which 1000 bytes are not confirmed; without `bounds`."""


def text(value: object) -> str:
    """As it goes over the control socket, without the spaces."""
    return json.dumps(value, separators=(",", ":"))


def shown(host: LoneNode) -> list[str]:
    """The connections of a host."""
    return [text(connection.as_dict()) for connection in host.node.status(host.now).connections]


def row(protected: bool, reason: str) -> str:
    """One connection without any bytes."""
    ends = '"client":"10.77.0.1:40000","server":"10.77.0.100:80"'
    counts = (
        '"logged_bytes":0,"confirmed_bytes":0,"lag_bytes":0,"differences":0,"lag_out_bytes":0,"lag_ms":0,"slowed":false'
    )
    return f'{{{ends},"protected":{str(protected).lower()},"reason":"{reason}",{counts}}}'


def test_keys_and_their_order_are_what_operators_read() -> None:
    host = Protected()
    found = host.node.status(host.now).as_dict()
    assert list(found) == KEYS
    bounds = found.pop("bounds")
    assert text(found) == PRIMARY.replace("VERSION", __version__)
    assert isinstance(bounds, dict)
    assert text(bounds["connections"]) == '{"now":1,"limit":20000,"full":0}'


def test_connection_that_is_handed_over_is_shown() -> None:
    host = Protected()
    (connection,) = host.node.gate.flows.values()
    host.node.gate.handovers.start(connection, "it has failed", host.now)
    assert shown(host) == [row(False, "being handed over to the backup")]


def test_shadow_connection_is_shown_before_and_after_a_takeover() -> None:
    host, _ = shadowing()
    assert shown(host) == [row(True, "")]
    host.node.members.state = State.PROTECTED
    host.node.shadow.take_over(host.now)
    assert shown(host) == [row(False, "taken over: an open connection survives one failure")]


def test_witness_is_shown_where_there_is_one() -> None:
    host = LoneNode(State.SHADOWING)
    conf = host.node.settings
    values = {name: getattr(conf, name) for name in conf.__dataclass_fields__} | {"has_witness": True}
    node = Node(type(conf)(**values), lambda count: bytes(count), 0, False, host.now)
    assert text(node.status(host.now).as_dict()["witness"]) == (
        '{"pact":0,"confirmed":false,"asked":false,"granted":false}'
    )


def test_nothing_is_called_protected_that_a_takeover_would_lose() -> None:
    host = Protected()
    gone = Concern("address-missing", Weight.UNPROTECTED, "the service address is gone", "put it back")
    host.node.handle(HostChecked((gone,)), host.now)
    found = host.node.status(host.now + 2).as_dict()
    assert (found["state"], found["membership"]) == ("unprotected", "protected")
    assert found["reason"] == "the service address is gone"
    assert found["protected_connections"] == 0
    assert text(found["connections"]).count('"protected":false,"reason":"the service address is gone"') == 1
    assert text(found["concerns"]) == (
        '[{"code":"address-missing","weight":"unprotected","what":"the service address is gone",'
        '"cure":"put it back","host":"","for_s":2.0}]'
    )
    host.node.handle(HostChecked(()), host.now)
    assert host.node.status(host.now).state == "protected"


def test_a_limit_degrades_and_a_warning_does_not() -> None:
    host = Protected()
    host.node.handle(HostChecked((Concern("rule", Weight.WARNING, "a rule"),)), host.now)
    assert host.node.status(host.now).state == "protected"
    host.node.handle(HostChecked((Concern("tap-lossy", Weight.DEGRADED, "half is lost"),)), host.now)
    found = host.node.status(host.now)
    assert (found.state, found.reason, found.protected_connections) == ("degraded", "half is lost", 1)
    host.node.members.state = State.UNPROTECTED
    assert host.node.status(host.now).reason == host.node.members.reason, "there is no pair that could be degraded"


def test_what_hinders_one_client_leaves_the_others_protected() -> None:
    host = Protected()
    for client, protected in ((bytes((10, 77, 0, 9)), 1), (bytes((10, 77, 0, 1)), 0)):
        route = Concern("no-way", Weight.DEGRADED, "no way to a client", clients=(client,))
        host.node.handle(HostChecked((route,)), host.now)
        found = host.node.status(host.now)
        assert (found.state, found.protected_connections) == ("degraded", protected)
    assert shown(host)[0].count('"protected":false,"reason":"no way to a client"') == 1


def test_what_went_wrong_is_remembered_when_its_connection_is_gone() -> None:
    host = Protected()
    host.node.gate.take(Unprotected(1, "diverged"), host.now)
    host.node.gate.clear(host.now)
    missed, mishap = host.node.status(host.now + 2).mishaps
    assert (missed.what, mishap.what) == ("input missed by the replica", "connection unprotected")
    assert (mishap.reason, mishap.client, mishap.count, mishap.ago_s) == ("diverged", "10.77.0.1:40000", 1, 2.0)


def test_what_went_wrong_for_the_same_reason_is_counted_and_the_oldest_forgotten() -> None:
    mishaps = Mishaps()
    for number in range(MOST + 5):
        mishaps.note("lost", f"reason {number}", None, number)
        mishaps.note("lost", "always the same", None, number)
    found = mishaps.latest()
    assert len(found) == MOST
    assert (found[0].reason, found[0].count, found[0].at) == ("always the same", MOST + 5, MOST + 4)
    assert found[1].reason == f"reason {MOST + 4}"


def test_difference_that_has_not_ended_is_not_called_protected() -> None:
    host = Protected()
    (connection,) = host.node.gate.flows.values()
    host.node.gate.digests._streams[connection.conn] = SentStream(connection)
    for is_open in (True, False):
        host.node.gate.take(DigestSeen(connection.conn, server_seq(0), 1, is_open), host.now)
        found = host.node.status(host.now)
        assert found.protected_connections == (not is_open)
        assert ("has not ended" in found.connections[0].reason) is is_open


def test_difference_that_has_not_ended_is_not_called_protected_by_the_backup() -> None:
    t = Comparing()
    t >> replica(0, 40) << SILENT
    t.differ(0, changed(0, 40, *range(40)))
    t.effects.clear()
    (row,) = connections_of(GateTable(settings(), t.out), t.side)
    assert not row.protected and "has not ended" in row.reason
    t >> replica(40, 40) << SILENT
    t >> digest(40, 40)
    t.effects.clear()
    (row,) = connections_of(GateTable(settings(), t.out), t.side)
    assert row.protected and not row.reason


def test_host_that_could_never_act_at_a_crash_is_not_called_protected() -> None:
    node = Node(settings(service=SERVER[0], has_fence=False), lambda count: bytes(count), 0, False, 100.0)
    assert [each.code for each in node.out.concerns.own] == ["never-acts"]
    for able in ("has_fence", "has_witness", "split_brain_accepted"):
        changes = {"has_fence": False, able: True}
        assert not Node(
            settings(service=SERVER[0], **changes), lambda count: bytes(count), 0, False, 1.0
        ).out.concerns.own
