"""Servers that do not answer the same, on real kernels: the status says so, and no client gets a mixture of both."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.cli import main
from nfq_failover.core.shadow.vanished import QUERY_EVERY_S
from nfq_failover.errors import CommandError
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.nodes import ask_daemon
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support import diverging_server
from tests.support.lab_world import connect, eventually, fresh_name
from tests.support.namespaces import run

SERVER_PROGRAM = diverging_server.__name__
DATE, NOISE, LENGTHS, TAIL, TLS = range(7000, 7005)
REDIS, NGINX = 7005, 7006
CALM = 200  # ms between heartbeats: a busy machine must not look like a crash
SIZE = 3_000_000
NGINX_CONFIG = """
user root; daemon off; worker_processes 1; pid nginx.pid; error_log error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path client_body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{ listen {port}; root {root}; }}
}}
"""


def content(size: int) -> bytes:
    """What the servers have to say."""
    return hashlib.shake_128(b"content").digest(size)


class Client:
    """A connection to one of the servers."""

    def __init__(self, lab: Lab, port: int) -> None:
        self.lab = lab
        self.socket = connect(lab, port, 20.0)
        self.name = "{}:{}".format(*self.socket.getsockname())
        self.port = port

    def row(self) -> dict[str, Any]:
        """The primary's row of it, empty for none."""
        return next((row for row in self.lab.status()["connections"] if row["client"] == self.name), {})

    def becomes(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the row is so."""
        assert eventually(lambda: bool(row := self.row()) and condition(row), 20), (self.port, self.row())
        return self.row()

    def shadow(self) -> dict[str, Any]:
        """The backup's row of it, empty for none."""
        said = ask_daemon(self.lab.store, TWO_HOSTS.other(self.lab.resolve("primary"))) or {}
        return next((row for row in said.get("connections", []) if row["client"] == self.name), {})

    def get(self, size: int, request: bytes = b"%d\n") -> bytes:
        """Ask for so many bytes, and take as many."""
        self.socket.sendall(request % size if b"%" in request else request)
        return self.take(size)

    def take(self, size: int) -> bytes:
        """So many bytes."""
        data = bytearray()
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, f"the stream ended {size - len(data)} bytes early"
            data += piece
        return bytes(data)

    def http(self, path: str, read: bool = True) -> bytes:
        """The body of a response."""
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return self.response() if read else b""

    def response(self) -> bytes:
        """Take a whole response; its body."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.take(1)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        return self.take(int(length[1]))

    def redis(self, *words: str) -> bytes:
        """A command, and the first line of its answer."""
        parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)]
        self.socket.sendall(b"".join(parts))
        line = b""
        while not line.endswith(b"\r\n"):
            line += self.take(1)
        return line + (self.take(int(line[1:]) + 2) if line.startswith(b"$") else b"")

    def is_reset(self) -> bool:
        """Not a byte comes any more, only a reset."""
        with pytest.raises(ConnectionResetError):
            for _ in range(100):
                self.socket.sendall(b"5\n")
                self.socket.settimeout(20.0)
                assert self.socket.recv(1) == b"never"
        return True


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("diverge")
    subject = ["-subj", "/CN=service", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    keys = ["-keyout", str(made / "key.pem"), "-out", str(made / "cert.pem")]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", *subject, *keys]
    subprocess.run(command, check=True, capture_output=True)
    (made / "both.pem").write_bytes((made / "key.pem").read_bytes() + (made / "cert.pem").read_bytes())
    (made / "file").write_bytes(content(SIZE))
    (made / "nginx.conf").write_text(NGINX_CONFIG.format(port=NGINX, root=made))
    return made


def start(lab: Lab, scratch: Path) -> None:
    """All servers, on both hosts."""
    lab.serve([sys.executable, "-m", SERVER_PROGRAM, "--certificate", str(scratch / "both.pem")])
    redis = "--save '' --appendonly no --protected-mode no --bind 0.0.0.0"
    lab.serve(["sh", "-c", f"cd $(mktemp -d {scratch}/redis-XXXXXX) && exec redis-server --port {REDIS} {redis}"])
    run = f'run=$(mktemp -d {scratch}/nginx-XXXXXX) && exec nginx -p "$run" -c {scratch}/nginx.conf -e "$run/error.log"'
    lab.serve(["sh", "-c", run])


@contextlib.contextmanager
def lab_of(scratch: Path, **options: Any) -> Iterator[Lab]:
    """A lab with all servers."""
    lab = Lab(fresh_name())
    try:
        lab.up(Options(ports=("7000-7009",), heartbeat_ms=CALM, **options), seed=71)
        start(lab, scratch)
        yield lab
    finally:
        with contextlib.suppress(CommandError):
            lab.down()


def secure(client: Client) -> ssl.SSLSocket:
    """TLS on a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(client.socket)


def hello() -> bytes:
    """What a TLS client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def probe(lab: Lab, port: int, scratch: Path, *words: str, request: bytes = b"") -> int:
    """The probe's exit code, with the request sent on each host itself."""
    if request:
        (scratch / "request").write_bytes(request)
        words = (*words, "--request", str(scratch / "request"))
    hosts = [w for node in "ab" for w in ("--host", f"ip netns exec {namespace(lab.name, node)}")]
    program = ["--program", f"{sys.executable} -m nfq_failover", "--times", "2", "--idle-ms", "150"]
    return main(["probe", "--service", f"{TWO_HOSTS.service}:{port}", *hosts, *program, *words])


def test_status_and_takeover_of_servers_that_differ(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lab_of(scratch, out_of_step_ms=1000) as lab:
        assert probe(lab, NGINX, scratch, "--http", "/nginx.conf") in (0, 3)
        assert probe(lab, DATE, scratch, "--http", "/100") == 3
        assert " GMT" in capsys.readouterr().out
        assert probe(lab, REDIS, scratch, request=b"PING\r\nECHO hello\r\n") == 0
        assert probe(lab, NOISE, scratch, request=b"500\n") == 4
        assert probe(lab, LENGTHS, scratch, request=b"500\n") == 4
        assert probe(lab, TLS, scratch, request=hello()) == 4
        assert "encrypted" in capsys.readouterr().out

        with contextlib.ExitStack() as stack:
            made = {}
            for name, port in [
                *(("date", DATE), ("noise", NOISE), ("whisper", NOISE), ("lengths", LENGTHS), ("tail", TAIL)),
                *(("tls", TLS), ("redis", REDIS), ("nginx", NGINX), ("download", NGINX)),
            ]:
                made[name] = Client(lab, port)
                stack.callback(made[name].socket.close)
            every = list(made.values())
            for client in every:
                client.becomes(lambda row: bool(row["protected"]))

            # Of equal length, and agreeing again: counted, and protected.
            for _ in range(3):
                assert made["date"].http("/200") == content(200)
            made["date"].becomes(lambda row: row["differences"] == 3 and row["protected"])
            assert made["nginx"].http("/file") == content(SIZE)
            assert [made["redis"].redis(*w.split()) for w in ("SET k v", "INCR n", "GET k")] == [
                *(b"+OK\r\n", b":1\r\n", b"$1\r\nv\r\n")
            ]
            # Out of step: unprotected at once, and the service goes on.
            assert len(made["noise"].get(5000)) == 5000
            row = made["noise"].becomes(lambda row: not row["protected"])
            assert "diverged" in row["reason"] and "encrypted or random" in row["reason"]
            assert len(made["noise"].get(5000)) == 5000
            made["lengths"].get(3000)
            row = made["lengths"].becomes(lambda row: not row["protected"])
            assert "diverged" in row["reason"]
            assert made["tail"].get(50) == content(50)
            row = made["tail"].becomes(lambda row: not row["protected"])
            assert "12 bytes more than the server" in row["reason"]
            assert made["tail"].get(60) == content(60)
            stream = stack.enter_context(secure(made["tls"]))
            stream.sendall(b"100\n")
            assert stream.recv(100) == content(100)
            row = made["tls"].becomes(lambda row: not row["protected"])
            # A replica that can't read what the client has encrypted may give up before anything was compared.
            assert "encrypted or random" in row["reason"] or "not compared yet: see" in row["reason"]
            # Too little to tell, but no agreement: nothing for a takeover, and not called protected.
            assert len(made["whisper"].get(40)) == 40
            made["whisper"].becomes(lambda row: row["differences"] == 1 and not row["protected"])
            for name in ("nginx", "redis", "date"):
                assert made[name].row()["protected"], name

            made["download"].http("/file", read=False)
            begun = made["download"].take(100_000)
            made["download"].becomes(lambda row: bool(row["protected"]))
            survivor = TWO_HOSTS.other(str(lab.crash("primary")["node"]))
            assert eventually(lambda: lab.status()["nodes"][survivor]["state"] == "unprotected", 20)

            assert made["date"].http("/300") == content(300)
            assert made["redis"].redis("INCR", "n") == b":2\r\n"
            assert made["nginx"].http("/file") == content(SIZE)
            head, _, body = begun.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert body + made["download"].take(SIZE - len(body)) == content(SIZE)
            for name in ("noise", "whisper", "lengths", "tail"):
                assert made[name].is_reset(), name
            with pytest.raises((ConnectionResetError, ssl.SSLError)):
                stream.sendall(b"100\n")
                assert not stream.recv(100)
                raise AssertionError("the stream has ended in order")


def test_client_that_only_listens_is_told_long_after_its_servers_fell_out_of_step(scratch: Path) -> None:
    """It would never find out by itself that its connection is gone."""
    with lab_of(scratch) as lab:
        client, ended = Client(lab, NOISE), Client(lab, NOISE)
        with contextlib.closing(client.socket):
            for each in (client, ended):
                each.becomes(lambda row: bool(row["protected"]))
                assert len(each.get(5000)) == 5000
                each.becomes(lambda row: not row["protected"])
            ended.socket.close()
            backup = TWO_HOSTS.other(lab.resolve("primary"))
            time.sleep(QUERY_EVERY_S)
            assert client.name in lab_connections(lab, backup)  # its replica is fed on
            assert "diverged" in client.shadow()["reason"]
            assert eventually(lambda: not ended.shadow(), 5)
            lab.crash("primary")
            client.socket.settimeout(20.0)
            with pytest.raises(ConnectionResetError):
                client.socket.recv(1)


def test_another_date_in_a_response_that_the_replica_is_late_with_is_no_divergence(scratch: Path) -> None:
    """The primary can't tell the bytes any more when the replica comes to them; the rest of the response agrees."""
    with lab_of(scratch) as lab:
        client = Client(lab, DATE)
        with contextlib.closing(client.socket):
            client.becomes(lambda row: bool(row["protected"]))
            backup = TWO_HOSTS.other(lab.resolve("primary"))
            pids = [int(pid) for pid in run("ip", "netns", "pids", namespace(lab.name, backup)).split()]
            late = [pid for pid in pids if SERVER_PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
            assert late
            try:
                for pid in late:
                    os.kill(pid, signal.SIGSTOP)
                assert client.http(f"/{SIZE}") == content(SIZE)
            finally:
                for pid in late:
                    os.kill(pid, signal.SIGCONT)
            row = client.becomes(lambda row: row["differences"] == 1)
            assert row["protected"]
            assert (ask_daemon(lab.store, backup) or {})["counters"]["difference-unknown"] == 1
            assert eventually(lambda: client.shadow()["lag_bytes"] == 0, 10)
            lab.crash("primary")
            assert client.http("/300") == content(300)


def lab_connections(lab: Lab, node: str) -> str:
    """The connections that a server's own TCP has."""
    return run("ip", "netns", "exec", namespace(lab.name, node), "ss", "-tnH", "state", "established")


def test_strict_waits_for_the_replica(scratch: Path) -> None:
    with lab_of(scratch, out_of_step_ms=3000, divergence="strict") as lab, contextlib.ExitStack() as stack:
        made = {name: Client(lab, port) for name, port in (("redis", REDIS), ("nginx", NGINX), ("date", DATE))}
        for client in made.values():
            stack.callback(client.socket.close)
            client.becomes(lambda row: bool(row["protected"]))
        began = time.monotonic()
        assert [made["redis"].redis("INCR", "n") for _ in range(50)] == [b":%d\r\n" % i for i in range(1, 51)]
        assert time.monotonic() - began < 5
        assert made["redis"].row()["protected"]
        assert made["date"].http("/200") == content(200)  # released when its protection ends
        row = made["date"].becomes(lambda row: not row["protected"])
        assert "policy: strict" in row["reason"]
        survivor = TWO_HOSTS.other(str(lab.crash("primary")["node"]))
        assert eventually(lambda: lab.status()["nodes"][survivor]["state"] == "unprotected", 20)
        assert made["redis"].redis("INCR", "n") == b":51\r\n"
        assert made["date"].is_reset()
