"""Each workload over loopback: right when the path is right, and every kind of damage on the path is noticed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from nfq_failover.lab.workloads.__main__ import main
from nfq_failover.lab.workloads.client import Plan, run_client
from nfq_failover.lab.workloads.content import Content, Kind
from nfq_failover.lab.workloads.report import ConnectionReport
from nfq_failover.lab.workloads.server import Server

KINDS = list(Kind)
SIZE = 300_000
DOWNLOADS = [Kind.ECHO, Kind.INTERACTIVE, Kind.BULK]

Damage = Callable[[bytearray, int], bytes | None]
"""Gets a chunk and its offset in its direction; what it returns goes on; None ends the connection with a FIN."""


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server("127.0.0.1", [0])) as running:
        running.start()
        yield running


class DamagingProxy:
    """A TCP proxy on loopback that does `down` to what the server sends and `up` to what the client sends."""

    def __init__(self, target: int, down: Damage | None = None, up: Damage | None = None, reset: bool = False) -> None:
        self._target = target
        self._damage = {"down": down, "up": up}
        self._reset = reset
        self.released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            upstream = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(client, upstream, "up"), daemon=True).start()
            self._pump(upstream, client, "down")

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        offset = 0
        damage = self._damage[direction]
        with contextlib.suppress(OSError):
            while chunk := bytearray(source.recv(65_536)):
                length = len(chunk)
                out = damage(chunk, offset) if damage else bytes(chunk)
                if out is None:
                    if self._reset:
                        sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        sink.shutdown(socket.SHUT_RD)  # wakes the other thread's recv, so that close is the last
                        sink.close()
                        return
                    break
                sink.sendall(out)
                offset += length
            sink.shutdown(socket.SHUT_WR)
            while source.recv(65_536):  # a socket that is closed with bytes unread resets the other direction
                pass


def plan(port: int, kind: Kind) -> Plan:
    exchanges = 100 if kind in (Kind.ECHO, Kind.INTERACTIVE) else 1
    return Plan([kind], "127.0.0.1", [port], size=SIZE, count=exchanges, stall_timeout_s=0.6)


def run_damaged(
    server: Server, kind: Kind, *, up: Damage | None = None, down: Damage | None = None
) -> ConnectionReport:
    with contextlib.closing(DamagingProxy(server.ports[0], down, up)) as proxy:
        (report,) = run_client(plan(proxy.port, kind))
    return report


def flip(at: int) -> Damage:
    def damage(chunk: bytearray, offset: int) -> bytes:
        if offset <= at < offset + len(chunk):
            chunk[at - offset] ^= 0x01
        return bytes(chunk)

    return damage


def drop(at: int) -> Damage:
    """Takes one byte out of the stream."""

    def damage(chunk: bytearray, offset: int) -> bytes:
        if offset <= at < offset + len(chunk):
            del chunk[at - offset]
        return bytes(chunk)

    return damage


def end(at: int) -> Damage:
    return lambda chunk, offset: bytes(chunk) if offset + len(chunk) < at else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_path_gets_a_good_verdict(server: Server, kind: Kind) -> None:
    (report,) = run_client(plan(server.ports[0], kind))
    assert (report.ok, report.error, report.wrong_bytes) == (True, None, 0)
    exchanges, body = {
        Kind.ECHO: (100, 150),
        Kind.INTERACTIVE: (100, 10_000),
        Kind.BULK: (1, SIZE),
        Kind.UPLOAD: (1, SIZE),
    }[kind]
    assert (report.exchanges, report.bytes, len(report.latencies_s)) == (exchanges, exchanges * body, exchanges)
    assert 0 < report.longest_silence_ms < 600


@pytest.mark.parametrize("kind", [Kind.BULK, Kind.UPLOAD])
def test_the_digest_is_that_of_the_content(server: Server, kind: Kind) -> None:
    (report,) = run_client(plan(server.ports[0], kind))
    assert report.sha256 == hashlib.sha256(Content(100_003).read(0, SIZE)).hexdigest()
    (report,) = run_client(replace(plan(server.ports[0], kind), digest=False))
    assert report.ok
    assert report.sha256 is None


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_one_wrong_byte_down_is_noticed(server: Server, kind: Kind) -> None:
    report = run_damaged(server, kind, down=flip(9_999))
    assert (report.ok, report.wrong_bytes, report.first_wrong_offset) == (False, 1, 9_999)
    assert report.error == "1 wrong bytes"


def test_one_wrong_byte_in_an_upload_is_noticed(server: Server) -> None:
    report = run_damaged(server, Kind.UPLOAD, up=flip(150 + 77_777))
    assert (report.ok, report.wrong_bytes) == (False, 1)
    assert "SHA-256 differs" in str(report.error)


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_byte_in_a_request_is_noticed(server: Server, kind: Kind) -> None:
    report = run_damaged(server, kind, up=flip(149))
    assert not report.ok
    assert report.error


def test_a_wrong_receipt_is_noticed(server: Server) -> None:
    report = run_damaged(server, Kind.UPLOAD, down=flip(149))
    assert not report.ok
    assert "receipt is wrong" in str(report.error)


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_a_lost_byte_is_noticed(server: Server, kind: Kind) -> None:
    report = run_damaged(server, kind, down=drop(9_999))
    assert not report.ok
    assert report.error


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_stream_is_noticed(server: Server, kind: Kind) -> None:
    report = run_damaged(server, kind, down=end(0 if kind is Kind.UPLOAD else 9_999))
    assert not report.ok
    assert "short" in str(report.error)


def test_a_short_upload_is_noticed(server: Server) -> None:
    report = run_damaged(server, Kind.UPLOAD, up=end(100_000))
    assert not report.ok
    assert "of 300000 bytes" in str(report.error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_is_noticed(server: Server, kind: Kind) -> None:
    with contextlib.closing(DamagingProxy(server.ports[0], down=end(0), reset=True)) as proxy:
        (report,) = run_client(plan(proxy.port, kind))
    assert not report.ok
    assert "broken" in str(report.error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stall_is_noticed_and_counts_as_silence(server: Server, kind: Kind) -> None:
    proxy: DamagingProxy

    def stall(chunk: bytearray, offset: int) -> bytes | None:
        if offset + len(chunk) < 140:
            return bytes(chunk)
        proxy.released.wait(30)
        return None

    with contextlib.closing(DamagingProxy(server.ports[0], down=stall)) as proxy:
        (report,) = run_client(plan(proxy.port, kind))
    assert not report.ok
    assert "stalled" in str(report.error)
    assert report.longest_silence_ms >= 600


@pytest.mark.parametrize("kind", [Kind.ECHO, Kind.BULK])
def test_a_pause_is_measured(server: Server, kind: Kind) -> None:
    paused = threading.Event()

    def pause(chunk: bytearray, offset: int) -> bytes:
        if offset >= 140 and not paused.is_set():
            paused.wait(0.25)
            paused.set()
        return bytes(chunk)

    report = run_damaged(server, kind, down=pause)
    assert report.ok
    assert 240 <= report.longest_silence_ms < 600


def test_bytes_after_the_last_reply_are_noticed(server: Server) -> None:
    report = run_damaged(server, Kind.BULK, down=lambda chunk, offset: bytes(chunk) + b"x" * (offset == 0))
    assert not report.ok


def test_a_refused_connection_is_a_report_and_no_exception() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    (report,) = run_client(plan(port, Kind.ECHO))
    assert not report.ok
    assert "refused" in str(report.error)


def test_many_mixed_connections(server: Server) -> None:
    reports = run_client(
        Plan(KINDS, "127.0.0.1", server.ports, connections=40, size=50_000, count=3, stall_timeout_s=20)
    )
    assert [report.error for report in reports] == [None] * 40
    assert len({report.sha256 for report in reports}) == 40


def test_the_command_line_reports_json(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--host", "127.0.0.1", "--port", str(server.ports[0]), "--json"]
    assert main(["client", "interactive", "--seconds", "0.3", "--rate", "50", "--announce", *common]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["ok"]
    assert 5 <= summary["exchanges"] <= 16
    assert json.loads(err)["event"] == "started"


def test_the_command_line_fails_when_the_workload_does(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    assert main(["client", "echo", "--host", "127.0.0.1", "--port", port]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_port_in_use_is_a_clear_error(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "--host", "127.0.0.1", "--port", str(server.ports[0])]) == 2
    assert "Choose another --port" in capsys.readouterr().err
