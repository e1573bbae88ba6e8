"""An nginx worker is killed in mid-response on the primary: its connections go on from the backup's nginx, one by one,
and the service stays where it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
from pathlib import Path

from nfq_failover.constants import RST
from nfq_failover.errors import CommandError
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import read_capture
from nfq_failover.lab.nodes import ask_daemon
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.netns.connections.test_divergence import NGINX, NGINX_CONFIG, Client
from tests.support.client_capture import senders
from tests.support.connection_world import CALM
from tests.support.lab_world import eventually, fresh_name

SIZE = 30_000_000  # more than the two kernels' buffers take: the worker has not sent all of it when it is killed
BEGUN = 100_000


def take_down(lab: Lab) -> None:
    """Whatever has come up."""
    with contextlib.suppress(CommandError):
        lab.down()


def workers(lab: Lab, node: str) -> set[int]:
    """The worker processes of the nginx on the node."""
    command = ["ip", "netns", "pids", namespace(lab.name, node)]
    found = set()
    for pid in map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()):
        with contextlib.suppress(OSError):
            if b"nginx: worker process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def test_worker_is_killed_in_mid_response(tmp_path: Path) -> None:
    file = hashlib.shake_128(b"file").digest(SIZE)
    (tmp_path / "file").write_bytes(file)
    (tmp_path / "nginx.conf").write_text(NGINX_CONFIG.format(port=NGINX, root=tmp_path))
    run = f'run=$(mktemp -d {tmp_path}/run-XXXXXX) && exec nginx -p "$run" -c {tmp_path}/nginx.conf -e "$run/error.log"'
    settings = ('[application]\non_failure = "connection"',)
    lab = Lab(fresh_name())
    with contextlib.ExitStack() as stack:
        stack.callback(take_down, lab)
        lab.up(Options(ports=(f"{NGINX}",), heartbeat_ms=CALM, settings=settings), seed=73)
        lab.serve(["sh", "-c", run])
        enter = ["ip", "netns", "exec", namespace(lab.name, TWO_HOSTS.client)]
        capture = stack.enter_context(Capture(tmp_path / "client.pcap", TWO_HOSTS.service, enter))
        primary = lab.resolve("primary")
        clients = [Client(lab, NGINX) for _ in range(3)]
        for client in clients:
            stack.callback(client.socket.close)
            client.becomes(lambda row: bool(row["protected"]))
        idle, *downloads = clients
        assert idle.http("/nginx.conf")
        begun = []
        for client in downloads:
            client.http("/file", read=False)
            begun.append(client.take(BEGUN))

        old = workers(lab, primary)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        for client, first in zip(downloads, begun, strict=True):
            head, _, body = first.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            body += client.take(SIZE - len(body))
            assert hashlib.sha256(body).digest() == hashlib.sha256(file).digest()
        assert idle.http("/nginx.conf")  # on a connection that had nothing under way
        for client in clients:
            client.becomes(lambda row: "handed over to the backup" in row["reason"])
            assert "handed over by the primary" in client.shadow()["reason"]
            assert client.http("/nginx.conf")

        assert eventually(lambda: bool(workers(lab, primary) - old))  # nginx has made itself another one
        new = Client(lab, NGINX)
        stack.callback(new.socket.close)
        assert new.http("/nginx.conf")
        new.becomes(lambda row: bool(row["protected"]))
        states = {
            node: (ask_daemon(lab.store, node) or {}).get("state") for node in (primary, TWO_HOSTS.other(primary))
        }
        assert states == {primary: "protected", TWO_HOSTS.other(primary): "shadowing"}

        assert capture.stop().missing == 0
        packets = read_capture(tmp_path / "client.pcap", TWO_HOSTS.service)
        assert not [packet for packet in packets if packet.flags & RST]
        heard = senders(tmp_path / "client.pcap")
        both = [TWO_HOSTS.hardware(primary), TWO_HOSTS.hardware(TWO_HOSTS.other(primary))]
        ports = [client.socket.getsockname()[1] for client in (*clients, new)]
        assert [heard[port] for port in ports] == [both, both, both, both[:1]]
