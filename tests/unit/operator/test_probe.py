"""The probe: what it makes of two applications' answers, how it asks them, and how it fails."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import wrpcap

from nfq_failover.cli import main
from nfq_failover.config import schema
from nfq_failover.errors import CommandError
from nfq_failover.operator.probe import compare as probe_compare
from nfq_failover.operator.probe import recording
from nfq_failover.operator.probe.compare import Relation, compare
from nfq_failover.operator.probe.fetch import Answer, encode_job, fetch, read_answers
from nfq_failover.operator.probe.verdict import describe, judge

SERVICE = ("10.77.0.100", 80)


def answer(data: bytes, end: str = "idle") -> Answer:
    return Answer(data, end)


def http(date: str, body: str = "hello") -> Answer:
    head = f"HTTP/1.1 200 OK\r\nServer: x\r\nDate: {date} GMT\r\nContent-Length: {len(body)}\r\n\r\n"
    return answer((head + body).encode())


# ---------------------------------------------------------------------------------------------- judging


def test_run_length_is_the_daemons() -> None:
    assert schema.find("run_bytes", "divergence").default == probe_compare.RUN_BYTES


@pytest.mark.parametrize(
    ("one", "other", "relation"),
    [
        (answer(b"same"), answer(b"same"), Relation.EQUAL),
        (http("Tue, 01 Jan 2030 10:00:01"), http("Tue, 01 Jan 2030 10:00:02"), Relation.COUNTED),
        (http("Tue, 01 Jan 2030 10:00:01"), http("Tue, 01 Jan 2030 10:00:02", "hello!"), Relation.OUT_OF_STEP),
        (answer(os.urandom(500)), answer(os.urandom(500)), Relation.RANDOM),
        (answer(b"count 1\r\n"), answer(b"count 2\r\n"), Relation.RANDOM),  # nothing behind it agrees long enough
        (answer(os.urandom(2000) + bytes(50)), answer(os.urandom(2000) + bytes(50)), Relation.RANDOM),
        (answer(b"OK"), answer(b"OK more"), Relation.OUT_OF_STEP),
        (answer(b"same", "closed"), answer(b"same", "idle"), Relation.OUT_OF_STEP),
    ],
)
def test_relations(one: Answer, other: Answer, relation: Relation) -> None:
    assert compare(one, other).relation is relation
    assert compare(other, one).relation is relation


def test_places_say_where_and_what() -> None:
    finding = compare(http("Tue, 01 Jan 2030 10:00:01"), http("Tue, 01 Jan 2030 10:00:02"))
    (place,) = finding.places
    assert place.stop - place.start == 1
    assert "10:00:01 GMT\\r\\nContent-Le" in place.one and "10:00:02 GMT\\r\\nContent-Le" in place.other
    shorter = compare(answer(b"OK"), answer(b"OK\xff more"))
    assert [(p.start, p.one, p.other) for p in shorter.places] == [(2, "OK", "OK\\xff more")]


def test_verdict_is_the_worst_and_compares_each_with_itself() -> None:
    first, later = http("Tue, 01 Jan 2030 10:00:01"), http("Tue, 01 Jan 2030 10:00:02")
    verdict = judge(("a", "b"), [first, later], [first, later])
    assert verdict.relation is Relation.EQUAL and verdict.exit_code == 0
    assert verdict.within[0][0].relation is Relation.COUNTED
    verdict = judge(("a", "b"), [first, first], [first, later])
    assert verdict.relation is Relation.COUNTED and verdict.exit_code == 3
    noise = [answer(os.urandom(100)) for _ in range(4)]
    verdict = judge(("a", "b"), noise[:2], noise[2:])
    assert verdict.exit_code == 4
    assert "differs from itself" in describe(verdict)
    assert verdict.as_json()["protectable"] is False


# ---------------------------------------------------------------------------------------------- asking


@contextmanager
def server(respond: Callable[[bytes, int], bytes | None]) -> Iterator[tuple[str, int]]:
    """An application on lo. `respond(data, number)`: None closes; `number` counts the connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    numbers = itertools.count()

    def talk(connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                out = respond(data, number)
                if out is None:
                    return
                connection.sendall(out)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection, next(numbers)), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_fetch_takes_turns() -> None:
    with server(lambda data, _: data.upper()) as address:
        got = fetch(address, [b"one ", b"two"], idle_s=0.2, timeout_s=10, limit=1 << 20)
        assert got == Answer(b"ONE TWO", "idle")
        assert fetch(address, [b"longer"], idle_s=0.2, timeout_s=10, limit=4) == Answer(b"LONG", "limit")
        closed = fetch(address, [b"x"], idle_s=5, timeout_s=10, limit=100, close=True)
        assert closed == Answer(b"X", "closed")
    with server(lambda data, _: b"") as address:
        assert fetch(address, [b"x"], idle_s=0.05, timeout_s=0.3, limit=100) == Answer(b"", "timeout")


def _words(one: tuple[str, int], other: str, *more: str) -> list[str]:
    service = f"{one[0]}:{one[1]}"
    return [
        "probe",
        "--service",
        service,
        "--host",
        "local",
        "--host",
        other,
        "--idle-ms",
        "100",
        "--times",
        "2",
        *more,
    ]


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    request = tmp_path / "request"
    request.write_bytes(b"hello")
    more = ("--request", str(request), "--json")
    with server(lambda data, _: data * 10) as one, server(lambda data, _: data * 11) as other:
        assert main(_words(one, f"{one[0]}:{one[1]}", *more)) == 0
        assert json.loads(capsys.readouterr().out)["relation"] == "equal"
        assert main(_words(one, f"{other[0]}:{other[1]}", *more)) == 4
        told = json.loads(capsys.readouterr().out)
        assert told["relation"] == "out_of_step" and told["between"][0]["lengths"] == [50, 55]
        # By a command that runs the other half "there": here it is this program itself.
        via = "env PATH=/usr/bin:/bin"
        program = f"{sys.executable} -m nfq_failover"
        assert main(_words(one, via, "--program", program, *more[:2])) == 0
        said = capsys.readouterr().out
        assert "request 2: equal: 50 bytes (idle), 50 bytes (idle)" in said and "are protected" in said


def test_http_asks_for_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    def respond(data: bytes, number: int) -> bytes:
        assert data.startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:")
        return http(f"Tue, 01 Jan 2030 10:00:{number:02}").data

    with server(respond) as one, server(lambda d, n: respond(d, n + 1)) as other:
        assert main(_words(one, f"{other[0]}:{other[1]}", "--http", "/x")) == 3
    assert "10:00:01 GMT" in capsys.readouterr().out


def test_job_goes_through_text_unharmed() -> None:
    answers = [Answer(bytes(range(256)), "closed"), Answer(b"", "idle")]
    job = json.loads(encode_job(("127.0.0.1", 80), [bytes(range(256))], 3, idle_s=0.1))
    assert job["times"] == 3 and job["port"] == 80
    lines = [f'{{"data": "{__import__("base64").b64encode(a.data).decode()}", "end": "{a.end}"}}' for a in answers]
    assert read_answers("a banner\n" + "\n".join(lines)) == answers


# ---------------------------------------------------------------------------------------------- recorded


def _segment(by_client: bool, seq: int, data: bytes = b"", flags: str = "A", port: int = 40000) -> Ether:
    client, service = ("10.77.0.1", port), SERVICE
    source, target = (client, service) if by_client else (service, client)
    return (
        Ether()
        / IP(src=source[0], dst=target[0])
        / TCP(sport=source[1], dport=target[1], seq=seq, flags=flags)
        / Raw(data)
    )


def test_turns_of_a_recorded_client(tmp_path: Path) -> None:
    path = tmp_path / "live.pcap"
    start = 2**32 - 3
    wrpcap(
        str(path),
        [
            _segment(True, 7, b"of an older connection", port=39999),
            _segment(True, start - 1, flags="S"),
            _segment(True, start, b"GET "),
            _segment(True, 1, b"/ twice"),
            _segment(True, 1, b"/ twice"),
            _segment(False, 500, b"answer"),
            _segment(True, 8, b"next"),
        ],
    )
    assert recording.read(path, SERVICE).turns == (b"GET / twice", b"next")


def test_what_a_person_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"no capture")
    base = ["probe", "--service", "127.0.0.1:1", "--http", "/"]
    cases = [
        ([*base, "--host", "local"], "give two hosts, not 1"),
        ([*base, "--host", "local", "--host", "local"], "twice"),
        ([*base, "--host", "local", "--host", "127.0.0.1:2"], "does it listen there?"),
        ([*base, "--host", "no-such-program x", "--host", "127.0.0.1:2"], "no program 'no-such-program'"),
        ([*base, "--host", "false", "--host", "true"], "'false probe-fetch' has failed"[:5]),
        (["probe", "--service", "here", "--http", "/", "--host", "local"], "is not ADDRESS:PORT"),
        ([*base[:3], "--http", "x", "--host", "local", "--host", "true"], "is not a path"),
        ([*base[:3], "--request", "/no", "--host", "local", "--host", "true"], "/no: No such file"),
        ([*base[:3], "--recorded", str(path), "--host", "local", "--host", "true"], "can't be read"),
    ]
    for words, told in cases:
        if "true" in words and "--program" not in words:
            words = [*words, "--program", "x"]
        assert main(words) == 2, words
        assert told in capsys.readouterr().err, words
    with pytest.raises(CommandError, match="begins in"):
        empty = tmp_path / "e.pcap"
        wrpcap(str(empty), [_segment(True, 7, b"x")])
        recording.read(empty, SERVICE)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    text = capsys.readouterr().out
    for word in ("ssh root@", "--recorded", "Exit code"):
        assert word in text
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "probe " in text and "probe-fetch" not in text
