"""The doctor: what it makes of what it finds, and what it learns by greeting a peer."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_failover.cli import main
from nfq_failover.config import Config, load
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import ClockRead, HostFacts, SendDatagram, StrangerHeard
from nfq_failover.core.node import Node
from nfq_failover.core.pair.session import Session
from nfq_failover.errors import CommandError, MalformedDatagram
from nfq_failover.operator.doctor import host, network, other, running
from nfq_failover.operator.doctor.report import Result, Subject, exit_code, lines, summary
from nfq_failover.shell.host.listeners import Look
from nfq_failover.shell.peer.delivery import Delivery
from tests.support.session_pair import drain, make
from tests.unit.operator.test_status import row, status

BAD = Concern("bad", Weight.UNPROTECTED, "the disk is gone", "mend it")
ODD = Concern("odd", Weight.WARNING, "the name is odd")


# ------------------------------------------------------------------------------------ the report


def test_a_finding_has_what_why_and_the_cure() -> None:
    shown = list(lines(Result("disk", "a takeover writes to it", "", (BAD, ODD))))
    assert [line.strip() for line in shown] == [
        "unprotected   disk: the disk is gone",
        "why: a takeover writes to it",
        "do:  mend it",
        "warning       disk: the name is odd",
    ]
    assert list(lines(Result("disk", "a takeover writes to it", "it has room"))) == ["ok            disk: it has room"]


@pytest.mark.parametrize(
    ("findings", "code", "said"),
    [
        ((), 0, "1 subjects looked at: nothing found"),
        ((ODD,), 0, "1 subjects looked at: 1 warning, which does not keep the protection from holding"),
        ((Concern("half", Weight.DEGRADED, "so so"),), 1, "1 subjects looked at: 1 degraded"),
        ((ODD, BAD, ODD), 1, "1 subjects looked at: 1 unprotected, 2 warning"),
    ],
)
def test_exit_code_says_whether_something_limits_the_protection(
    findings: tuple[Concern, ...], code: int, said: str
) -> None:
    results = [Result("x", "", "fine", findings)]
    assert exit_code(results) == code
    assert summary(results) == said


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), CommandError("no"), ValueError("no")])
def test_what_cannot_be_looked_at_is_a_finding(error: Exception) -> None:
    def look() -> tuple[str, list[Concern]]:
        raise error

    result = Subject("disk", "", look).examine()
    assert [each.code for each in result.findings] == ["unchecked-disk"]
    assert result.as_dict()["looked"] is False
    results = [Result("x", "", "", (BAD,)), result]
    assert exit_code(results) == 2
    assert summary(results) == "1 subjects looked at: 1 unprotected, 1 warning; 1 could not be looked at"
    assert str(error) in result.findings[0].what


# ------------------------------------------------------------------------------------ what the daemon says


def test_a_daemon_that_waits_for_its_restart_after_an_upgrade_is_told() -> None:
    found = status(row(1000), state="protected", concerns=[], versions={"own": "0.0.9", "peer": "0.0.9"})
    found["peer"]["lost"] = False
    [result] = [each for each in running.results(found) if each.subject == "version"]
    assert [each.code for each in result.findings] == ["restart-due"]
    assert exit_code(running.results(found)) == 0


def test_the_status_of_a_healthy_pair_has_no_findings() -> None:
    found = status(row(1000), state="protected", concerns=[])
    found["peer"]["lost"] = False
    results = running.results(found)
    assert [result.subject for result in results] == ["pair", "a", "b", "connections"]
    assert exit_code(results) == 0


def test_a_backup_shows_how_many_probes_have_come_by_the_tap() -> None:
    found = status(state="shadowing", concerns=[], counters={"tap-probes-sent": 7, "tap-probes-came": 6})
    tap = next(result for result in running.results(found) if result.subject == "tap")
    assert tap.seen.startswith("6 of 7 probes have come") and not tap.findings


def test_the_concerns_of_both_hosts_are_findings_of_the_host_that_has_them() -> None:
    own = {"code": "rules-lost", "weight": "unprotected", "what": "no rules", "cure": "wait", "host": "", "for_s": 1.0}
    its = {**own, "code": "fence-fails", "what": "no fence", "host": "b"}
    shown = status(row(1000, protected=False, reason="old"), row(1001, protected=False, reason="old"))
    results = {each.subject: each for each in running.results({**shown, "concerns": [own, its]})}
    assert [each.code for each in results["a"].findings] == ["rules-lost"]
    assert [each.code for each in results["b"].findings] == ["fence-fails", "peer-silent"]
    assert [each.what for each in results["connections"].findings] == ["2 of 2 are not protected: old"]
    assert exit_code(list(results.values())) == 1


def test_a_peer_is_not_called_well_for_what_both_hosts_say_in_the_same_words() -> None:
    own = {"code": "witness-silent", "weight": "unprotected", "what": "silent", "cure": "", "host": "", "for_s": 1.0}
    shown = status()
    for concerns, said in ([own], "finds nothing wrong but what this one does"), ([], "finds nothing wrong"):
        well = {**shown, "peer": {**shown["peer"], "lost": False}, "concerns": concerns}
        [its] = [each for each in running.results(well) if each.subject == "b"]
        assert not its.findings and its.seen.endswith(said)


# ------------------------------------------------------------------------------------ the command


def run(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Exit code and output of the doctor with the configuration at `path`."""
    code = main(["doctor", "--config", str(path), *options])
    return code, "".join(capsys.readouterr())


def test_wrong_use_and_a_wrong_configuration_are_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = tmp_path / "config.toml"
    path.write_text("name = 7\n")
    code, said = run(path, capsys)
    assert code == 2
    assert said.splitlines()[-1].startswith("0 subjects looked at") and "1 could not be looked at" in said
    code, said = run(path, capsys, "--json")
    examined = json.loads(said)
    assert code == examined["exit"] == 2
    assert [result["looked"] for result in examined["results"]] == [False]
    config_of(tmp_path, 7766, 7766)
    assert run(path, capsys, "--compare", str(tmp_path / "nothing"))[0] == 2
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(path, capsys)[0] == 2


# ------------------------------------------------------------------------------------ the peer


def config_of(tmp_path: Path, listen: int, peer: int, name: str = "b") -> Config:
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(0o600)
    path = tmp_path / "config.toml"
    path.write_text(
        f'name = "a"\nservice = "10.77.0.100"\nports = [80]\ninterface = "lo"\nlisten = "127.0.0.1:{listen}"\n'
        f'key_file = "{key}"\nstate_dir = "{tmp_path}/state"\n'
        f'[[peer]]\nname = "{name}"\naddress = "127.0.0.2"\nport = {peer}\n'
    )
    return load(path)


def test_a_bound_listener_and_a_port_without_one_are_both_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, 7766, 7766)
    config = replace(config, settings=replace(config.settings, ports=((80, 80), (443, 443))))
    seen = Look(frozenset({(80, 5), (443, 6)}))
    monkeypatch.setattr(host, "look", lambda service, serves: seen)
    assert host._application(config) == ("it listens at the service's ports", [])
    seen = Look(frozenset({(80, 5)}), ((80, "eth0"),))
    bound, missing = host._application(config)[1]
    assert ("80 is bound to eth0" in bound.what, missing.what.endswith("on: 443")) == (True, True)


@contextmanager
def answering(udp: socket.socket, answer: Callable[[bytes], list[bytes]]) -> Iterator[None]:
    """Answers each datagram with those that `answer` makes, until the end."""
    over = threading.Event()
    udp.settimeout(0.05)

    def serve() -> None:
        while not over.is_set():
            try:
                data, source = udp.recvfrom(4096)
            except TimeoutError:
                continue
            for each in answer(data):
                udp.sendto(each, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def talked(tmp_path: Path, answer: Callable[[bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch) -> list[Concern]:
    """What the doctor says of a peer that answers like that; empty for one that is well."""
    monkeypatch.setattr(network, "TALK_S", 2.0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as its,
    ):
        own.bind(("127.0.0.1", 0))
        own.setblocking(False)
        its.bind(("127.0.0.2", 0))
        config = config_of(tmp_path, own.getsockname()[1], its.getsockname()[1])
        peer, *_ = config.settings.peers
        delivery = Delivery(own, config.listen, [(peer.address, peer.port)])
        try:
            with answering(its, answer):
                seen, found = network.Talk(config, peer, own, delivery).hold()
        finally:
            delivery.close()
    assert bool(seen) is not bool(found)
    return found


def session_answers(session: Session) -> Callable[[bytes], list[bytes]]:
    def answer(data: bytes) -> list[bytes]:
        try:
            session.receive(data, 0.0)
        except MalformedDatagram:  # refused, as a daemon would
            session.on_timer(1e9)  # it says HELLO by itself, too
        return drain(session)

    return answer


def test_a_peer_that_answers_with_our_key_is_well_and_in_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = make("b", "a")
    assert talked(tmp_path, session_answers(its), monkeypatch) == []
    assert not its.established


@pytest.mark.parametrize(
    ("its", "words"),
    [
        (make("b", "a", key=b"x" * 32), "with another key"),
        (make("gamma", "a"), "they call themselves 'gamma', this host expects 'b'"),
        (make("b", "zeta"), "they are meant for 'zeta', this host is 'a'"),
    ],
    ids=["key", "its name", "our name"],
)
def test_another_key_or_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, its: Session, words: str) -> None:
    [found] = talked(tmp_path, session_answers(its), monkeypatch)
    assert words in found.what
    assert found.weight is Weight.UNPROTECTED


def test_a_peer_that_is_heard_and_does_not_hear_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = make("b", "a")

    def deaf(data: bytes) -> list[bytes]:
        del data
        its.on_timer(1e9)
        return drain(its)

    [found] = talked(tmp_path, deaf, monkeypatch)
    assert "arrive here, but those to" in found.what


def test_another_version_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = talked(tmp_path, lambda data: [bytes([9]) + data[1:]], monkeypatch)
    assert "they speak version 9" in found.what


def test_a_recorded_answer_to_another_greeting_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its, other = make("b", "a"), make("a", "b", life=7)
    other.on_timer(0.0)
    its.receive(drain(other)[0], 0.0)
    recorded = drain(its)
    assert len(recorded) == 1
    [found] = talked(tmp_path, lambda data: recorded, monkeypatch)
    assert "arrive here, but those to" in found.what


def test_silence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = talked(tmp_path, lambda data: [], monkeypatch)
    assert "nothing has arrived" in found.what


# ------------------------------------------------------------------------------------ the other host's settings


def free_port() -> int:
    """A port of this host's that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port: int = udp.getsockname()[1]
        return port


def asked(
    tmp_path: Path, answers: bool, monkeypatch: pytest.MonkeyPatch, runs: bool = False, **changes: object
) -> dict[str, Result]:
    """What the doctor says of a host `b`, whose settings are those of `a` but for `changes`, and whose daemon runs."""
    monkeypatch.setattr(other, "ASK_S", 2.0 if answers else 0.2)
    monkeypatch.setattr(other, "host_facts", lambda config: (("mtu", "1500"),))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as its:
        its.bind(("127.0.0.2", 0))
        config = config_of(tmp_path, free_port(), its.getsockname()[1])
        back = replace(config.settings.peers[0], name="a", address="127.0.0.1")
        theirs = replace(config.settings, name="b", peers=(back,))
        there = Node(replace(theirs, **changes), os.urandom, 0, False, time.monotonic())  # type: ignore[arg-type]
        there.handle(HostFacts((("mtu", "1500"),)), time.monotonic())
        there.handle(ClockRead(time.time() + 100 - time.monotonic()), time.monotonic())
        for concern in (BAD, Concern("peer-unheard", Weight.UNPROTECTED, "nothing comes from a")):
            there.out.concerns.raised(concern.code, concern, time.monotonic())

        def answer(data: bytes) -> list[bytes]:
            there.handle(StrangerHeard(("127.0.0.1", 9), data), time.monotonic())
            effects = list(iter(there.poll_effect, None))
            return [each.data for each in effects if isinstance(each, SendDatagram)] if answers else []

        with answering(its, answer):
            return {result.subject: result for result in other.results(config, runs)}


def test_hosts_that_are_set_up_alike_and_what_the_daemon_there_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(tmp_path, True, monkeypatch)
    assert not found["settings"].findings
    assert {"bad", "peer-unheard"} & {each.code for each in found["b"].findings} == {"bad"}
    [clocks] = found["clocks"].findings
    assert clocks.what.startswith("the clock of b is 100 s ahead of that of a")


@pytest.mark.parametrize("runs", [False, True])
def test_a_firewall_may_let_the_sync_ports_alone_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """The doctor takes that port where no daemon has it."""
    monkeypatch.setattr(other, "ASK_S", 0.3)
    sources = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as its:
        its.bind(("127.0.0.2", 0))
        its.settimeout(1)
        config = config_of(tmp_path, free_port(), its.getsockname()[1])
        list(other.results(config, runs))
        sources.append(its.recvfrom(4096)[1])
    assert (sources == [("127.0.0.1", config.listen[1])]) is not runs


def test_a_daemon_that_does_not_hear_ours_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(tmp_path, True, monkeypatch, runs=True)
    assert "peer-unheard" in {each.code for each in found["b"].findings}


def test_settings_that_differ_are_found_while_only_one_daemon_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(tmp_path, True, monkeypatch, ports=((80, 80), (443, 443)), divergence="off")
    assert {"differs-ports", "differs-divergence"} <= {each.code for each in found["settings"].findings}
    assert exit_code(list(found.values())) == 1


def test_a_host_without_a_daemon_is_said_plainly_with_what_that_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [result] = asked(tmp_path, False, monkeypatch).values()
    [found] = result.findings
    assert (found.code, found.weight) == ("settings-unchecked", Weight.WARNING)
    assert "no daemon answers at 127.0.0.2" in found.what and "are not compared" in found.what
    assert "--facts" in found.cure


def test_another_key_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other, "ASK_S", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as its:
        its.bind(("127.0.0.2", 0))
        config = config_of(tmp_path, free_port(), its.getsockname()[1])
        back = replace(config.settings.peers[0], name="a", address="127.0.0.1")
        theirs = replace(config.settings, name="b", peers=(back,), key=b"x" * 32)
        there = Node(theirs, os.urandom, 0, False, time.monotonic())

        def answer(data: bytes) -> list[bytes]:
            there.handle(StrangerHeard(("127.0.0.1", 9), data), time.monotonic())
            return [each.data for each in iter(there.poll_effect, None) if isinstance(each, SendDatagram)]

        with answering(its, answer):
            [result] = other.results(config, runs=True)
    assert [each.code for each in result.findings] == ["settings-unchecked"]
    assert there.out.counters["question-bad-mac"] >= 1


def test_facts_of_a_host_without_a_daemon_are_compared_from_a_file(tmp_path: Path) -> None:
    config = config_of(tmp_path, 7766, 7766)
    told = json.loads(json.dumps(other.describe(config)))
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({**told, "name": "b"}))
    assert not other.from_file(config, other.read(str(path))).findings
    path.write_text(json.dumps({"name": "b", "facts": {**told["facts"], "service": "192.0.2.7"}}))
    [found] = other.from_file(config, other.read(str(path))).findings
    assert (found.code, found.weight) == ("differs-service", Weight.UNPROTECTED)
    path.write_text(json.dumps(told))  # our own
    [found] = other.from_file(config, other.read(str(path))).findings
    assert found.code == "peer-name"
    for text in ("", "[]", '{"name": "b"}', '{"name": "b", "facts": 3}'):
        path.write_text(text)
        with pytest.raises(CommandError, match="doctor --facts"):
            other.read(str(path))


# ------------------------------------------------------------------------------------ the host


def test_what_is_seen_of_a_host_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, 7766, 7766)
    results = {subject.name: subject.examine() for subject in host.subjects(config)}
    assert [each.code for each in results["application"].findings] == ["application-absent"]
    assert "80" in results["application"].findings[0].what
    assert not results["interface"].findings
    assert not results["disk"].findings
    assert any("without 'fence'" in each.what for each in results["advice"].findings)
