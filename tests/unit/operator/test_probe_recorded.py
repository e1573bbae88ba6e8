"""The probe with a recorded conversation: it reassures nobody by what it could not compare."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import wrpcap

from nfq_failover.cli import main
from nfq_failover.errors import CommandError
from nfq_failover.operator.probe import recording
from nfq_failover.operator.probe.compare import Relation, compare
from nfq_failover.operator.probe.fetch import Answer, fetch
from nfq_failover.operator.probe.protocol import encrypted, looks_random
from nfq_failover.operator.probe.recording import Recording
from nfq_failover.operator.probe.verdict import coverage, judge

CLIENT = ("10.77.0.1", 40000)
IRS, ISS = 2**32 - 3, 77

Talk = list[tuple[str, bytes, float]]
"""Who sends ("c", "s"; "cF", "sF": and ends), what, and how many seconds after the one before."""


def capture(path: Path, service: tuple[str, int], talk: Talk) -> Path:
    """A capture of one conversation."""
    at, sent = 1000.0, {"c": 0, "s": 0}

    def segment(who: str, seq: int, data: bytes, flags: str) -> Any:
        (src, sport), (dst, dport) = (CLIENT, service) if who == "c" else (service, CLIENT)
        packet = Ether() / IP(src=src, dst=dst) / TCP(sport=sport, dport=dport, seq=seq % 2**32, flags=flags)
        packet = packet / Raw(data) if data else packet
        packet.time = at
        return packet

    packets = [segment("c", IRS - 1, b"", "S"), segment("s", ISS - 1, b"", "SA")]
    for who, data, after in talk:
        at += after
        begin = {"c": IRS, "s": ISS}[who[0]]
        for start in range(0, max(len(data), 1), 1400):
            packets.append(
                segment(who[0], begin + sent[who[0]], data[start : start + 1400], "FA" if "F" in who else "A")
            )
            sent[who[0]] += len(data[start : start + 1400])
    wrpcap(str(path), packets)
    return path


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """An application on lo."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            talk(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def probe(
    one: tuple[str, int], other: tuple[str, int], path: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str]:
    """Exit code, and what was said."""
    words = ["probe", "--service", f"{one[0]}:{one[1]}", "--host", "local", "--host", f"{other[0]}:{other[1]}"]
    words += ["--times", "2", "--idle-ms", "100", "--timeout-s", "1", *more]
    code = main([*words, *(("--recorded", str(path)) if "--request" not in more else ())])
    return code, capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- the recording


def test_a_conversation_is_read_in_turns_with_its_pauses_and_its_end(tmp_path: Path) -> None:
    talk: Talk = [("s", b"hello", 0), ("c", b"list", 0.1), ("s", b"a" * 3000, 0.3), ("s", b"b", 0.4), ("c", b"bye", 0)]
    read = recording.read(
        capture(tmp_path / "x.pcap", ("10.77.0.100", 80), [*talk, ("sF", b"", 0)]), ("10.77.0.100", 80)
    )
    assert read.turns == (b"", b"list", b"bye")
    assert read.expected == (5, 3001, 0)
    assert (read.end, read.unasked, read.others) == ("closed", 0, 0)
    assert read.pause_s == pytest.approx(0.4)


def test_an_end_that_the_client_began_is_not_the_servers(tmp_path: Path) -> None:
    talk: Talk = [("c", b"x", 0), ("s", b"y", 2.0), ("s", b"later", 2.0), ("cF", b"", 0), ("sF", b"", 0)]
    read = recording.read(capture(tmp_path / "x.pcap", ("10.77.0.100", 80), talk), ("10.77.0.100", 80))
    assert read.end == "open"
    assert read.unasked == 1  # the first answer may take its time


def test_a_capture_that_lacks_bytes_is_refused(tmp_path: Path) -> None:
    service = ("10.77.0.100", 80)
    whole = capture(tmp_path / "x.pcap", service, [("c", b"x" * 100, 0), ("s", b"y" * 5000, 0)])
    from scapy.utils import rdpcap

    packets = list(rdpcap(str(whole)))
    wrpcap(str(tmp_path / "hole.pcap"), packets[:4] + packets[5:])
    with pytest.raises(CommandError, match="lacks packets"):
        recording.read(tmp_path / "hole.pcap", service)
    short = packets[2].copy()
    short[IP].len = short[IP].len or len(short[IP])
    cut = Ether(bytes(short)[:80])
    wrpcap(str(tmp_path / "short.pcap"), [packets[0], packets[1], cut])
    with pytest.raises(CommandError, match="tcpdump -s 0"):
        recording.read(tmp_path / "short.pcap", service)


# ---------------------------------------------------------------------------------------------- how far it got


def say(*parts: bytes, wait: float = 0.0) -> Callable[[socket.socket], None]:
    """A server that says one part for each of the client's turns; the first, if it is empty, at once."""

    def talk(connection: socket.socket) -> None:
        for part in parts:
            if not connection.recv(65536):
                return
            time.sleep(wait)
            connection.sendall(part)
        while connection.recv(65536):
            pass

    return talk


def test_a_server_that_stops_early_on_both_hosts_alike_is_no_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk: Talk = [("c", b"one", 0), ("s", b"a" * 91, 0), ("c", b"two", 0), ("s", b"b" * 48029, 0)]
    with server(say(b"a" * 91, b"")) as one, server(say(b"a" * 91, b"")) as other:
        path = capture(tmp_path / "x.pcap", one, talk)
        code, said = probe(one, other, path, capsys)
        assert code == 5
        assert (
            "compared 91 of 48,120 recorded bytes, then the server waited (--timeout-s ended it): not a proof" in said
        )
        assert "are protected" not in said
        code, said = probe(one, other, path, capsys, "--json")
        told = json.loads(said)
        assert (code, told["protectable"], told["recorded"]["compared"]) == (5, None, 91)


def test_the_whole_conversation_once_more_is_a_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk: Talk = [("c", b"one", 0), ("s", b"a" * 91, 0), ("c", b"two", 0.2), ("s", b"b" * 9000, 0.2), ("c", b"end", 0)]
    with server(say(b"a" * 91, b"b" * 9000, wait=0.15)) as one, server(say(b"a" * 91, b"b" * 9000)) as other:
        code, said = probe(one, other, capture(tmp_path / "x.pcap", one, talk), capsys)
    assert code == 0
    assert "compared 9,091 of 9,091 recorded bytes" in said and "are protected" in said


def test_the_greeting_is_waited_for() -> None:
    order: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        connection.setblocking(False)
        time.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            order.append(connection.recv(100))
        connection.setblocking(True)
        connection.sendall(b"hello")
        order.append(connection.recv(100))
        connection.sendall(b"yes")

    with server(talk) as address:
        got = fetch(address, [b"", b"name"], 0.05, 5, 1000, expected=[5, 3])
    assert order == [b"name"]
    assert (got.data, got.end, got.sent) == (b"helloyes", "closed", 2)


def test_a_pause_within_a_recorded_answer_does_not_end_it() -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"abc")
        time.sleep(0.4)
        connection.sendall(b"def")
        connection.recv(100)

    with server(talk) as address:
        assert fetch(address, [b"x"], 0.1, 5, 1000).data == b"abc"
        assert fetch(address, [b"x"], 0.1, 5, 1000, expected=[6], patience_s=1.0).data == b"abcdef"


REC = Recording((b"login", b"get"), (b"challenge 1234", b"x" * 400))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(b"challenge 1234" + b"x" * 400, "idle", 2), ""),
        (Answer(b"challenge 1235" + b"x" * 400, "idle", 2), ""),  # counted, as the daemon would
        (Answer(b"challenge 1234" + b"x" * 390, "idle", 2), "others than those recorded, from byte 404"),
        (Answer(b"challenge 1234" + b"y" * 400, "idle", 2), "others than those recorded, from byte 14"),
        (Answer(b"challenge 1234", "timeout", 2), "then the server waited"),
        (Answer(b"no", "closed", 1), "then the server closed the connection: 1 of the client's 2 turns"),
        (Answer(b"", "reset", 1), "then the server reset the connection"),
    ],
)
def test_what_is_a_proof(answer: Answer, why: str) -> None:
    found = coverage(REC, [answer, answer])
    assert (why in found.why_not) if why else not found.why_not
    verdict = judge(("a", "b"), [answer], [answer], REC.turns, REC)
    assert verdict.exit_code == (5 if why else 0)


def test_a_recorded_end_is_a_part_of_it() -> None:
    closed = Recording(REC.turns, REC.answers, "closed")
    data = closed.answered
    assert not coverage(closed, [Answer(data, "closed", 2)]).why_not
    assert "had closed" in coverage(closed, [Answer(data, "closed", 2), Answer(data, "idle", 2)]).why_not


def test_a_difference_counts_however_far_it_got() -> None:
    ones, others = [Answer(b"abcd", "timeout", 1)], [Answer(b"abXY", "timeout", 1)]
    assert judge(("a", "b"), ones, others, REC.turns, REC).exit_code == 4


# ---------------------------------------------------------------------------------------------- encrypted

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
SERVER_HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(32)


@pytest.mark.parametrize(
    ("turns", "answers", "name"),
    [
        ([HELLO], [SERVER_HELLO], "TLS"),
        ([b"\0\0\0\x08\x04\xd2\x16\x2f", HELLO], [b"S", SERVER_HELLO], "TLS"),  # PostgreSQL asks first
        ([b"EHLO x\r\n", b"STARTTLS\r\n", HELLO], [b"250 x\r\n", b"220 go\r\n", SERVER_HELLO], "TLS"),
        ([b"GET / HTTP/1.1\r\n\r\n"], [b"\x15\x03\x01\x00\x02\x02\x46"], "TLS"),
        ([b"GET /"], [b"HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port"], "TLS"),
        ([b"SSH-2.0-x\r\n"], [b"SSH-2.0-OpenSSH_9.2\r\n"], "SSH"),
        ([b"GET /"], [b"HTTP/1.1 200 OK\r\n\r\nhow to configure HTTPS and SSH-2.0-x\r\n"], ""),
        ([b"*1\r\n$4\r\nPING\r\n"], [b"+PONG\r\n"], ""),
        ([b"\x16\x03\x01"], [b"\x16\x03"], ""),
    ],
)
def test_encryption_is_recognized(turns: list[bytes], answers: list[bytes], name: str) -> None:
    assert encrypted(turns, answers) == name


def test_a_recorded_tls_connection_is_not_called_protected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk: Talk = [("c", HELLO, 0), ("s", SERVER_HELLO + os.urandom(2000), 0), ("c", os.urandom(90), 0)]
    alert = b"\x15\x03\x03\x00\x02\x02\x28"
    with server(say(alert)) as one, server(say(alert)) as other:
        code, said = probe(one, other, capture(tmp_path / "x.pcap", one, talk), capsys)
    assert code == 4
    assert "encrypted (TLS)" in said and "become unprotected" in said


def test_what_looks_random() -> None:
    assert looks_random(os.urandom(2000))
    assert not looks_random(b"GET / HTTP/1.1\r\nHost: x\r\n" * 40)
    assert not looks_random(os.urandom(20))  # too little to tell


# ---------------------------------------------------------------------------------------------- unasked


def ticking(every: float) -> Callable[[socket.socket], None]:
    """A chat: what others say comes at moments of its own."""

    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        for number in range(100):
            connection.sendall(b"somebody says: %02d\n" % number)
            time.sleep(every)

    return talk


def test_a_server_with_a_clock_of_its_own_raises_no_false_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request"
    request.write_bytes(b"join\n")
    with server(ticking(0.03)) as one, server(ticking(0.04)) as other:  # it never rests
        code, said = probe(one, other, request, capsys, "--request", str(request))
        assert code == 5
        assert "equal as far as both have come" in said
    with server(ticking(0.15)) as one, server(ticking(0.09)) as other:  # of one the first silence ends the answer
        code, said = probe(one, other, request, capsys, "--request", str(request))
        assert code == 5
        told = json.loads(probe(one, other, request, capsys, "--request", str(request), "--json")[1])
        assert told["protectable"] is None


def test_a_server_that_says_more_and_then_no_more_is_out_of_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request"
    request.write_bytes(b"hello\n")
    with server(say(b"OK")) as one, server(say(b"OK, with more")) as other:
        code, said = probe(one, other, request, capsys, "--request", str(request))
    assert code == 4
    assert "of different lengths" in said


def test_a_recording_in_which_the_server_speaks_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk: Talk = [("c", b"join\n", 0), ("s", b"welcome\n", 0), ("s", b"bob: hi\n", 3.0)]
    with server(say(b"welcome\n2 users\n")) as one, server(say(b"welcome\n")) as other:
        code, said = probe(one, other, capture(tmp_path / "x.pcap", one, talk), capsys)
    assert code == 5
    assert "without being asked" in said or "as both have come" in said


def test_one_that_is_further_is_asked_again_and_nothing_else() -> None:
    assert compare(Answer(b"abc", "idle"), Answer(b"abcd", "timeout")).one_is_further
    assert not compare(Answer(b"abc", "idle"), Answer(b"abXd", "idle")).one_is_further
    assert not compare(Answer(b"abc", "idle"), Answer(b"abc", "closed")).one_is_further
    assert not compare(Answer(b"abc", "closed"), Answer(b"abcd", "idle")).one_is_further


def test_answers_that_only_stopped_are_unfinished() -> None:
    assert compare(Answer(b"abc", "timeout"), Answer(b"abcd", "timeout")).relation is Relation.UNFINISHED
    assert compare(Answer(b"abc", "closed"), Answer(b"abcd", "timeout")).relation is Relation.OUT_OF_STEP
    assert compare(Answer(b"abc", "idle"), Answer(b"abcd", "idle")).relation is Relation.OUT_OF_STEP
    assert compare(Answer(b"abc", "idle"), Answer(b"abcd", "idle"), unasked=True).relation is Relation.UNFINISHED
    assert compare(Answer(b"abX", "timeout"), Answer(b"abcd", "timeout")).relation is Relation.OUT_OF_STEP
