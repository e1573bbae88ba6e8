"""A server that does what each client's first line tells it: the same on both hosts, so both streams are the same.

    python scripted_server.py [--fork] --port 7000 --port 7001/fastopen ...

The line is JSON: {"id": TEXT, "steps": [[NAME, ARGUMENT...], ...]}; the steps are the `_do_` methods. When it ends, a
line of JSON on standard output says how: {"node", "id", "end", "sha256" of all that was taken, "notes"}. `end` is
"done", "end-of-stream" (the client had ended before a step was through), "reset", "broken-pipe", or another error.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nfq_failover.lab.topology import TWO_HOSTS

IPPROTO_MPTCP: Final = 262
TCP_MD5SIG: Final = 14  # linux/tcp.h, struct tcp_md5sig
MD5_KEY: Final = b"a shared secret"
KINDS: Final = ("tcp", "mptcp", "fastopen", "md5")
_GATE_DEADLINE_S: Final = 60.0
_print_lock = threading.Lock()
listeners: list[socket.socket] = []


def content(seed: int, size: int) -> bytes:
    """`size` bytes that only this seed gives."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def md5_option(peer: str) -> bytes:
    """The value of TCP_MD5SIG for a peer: struct tcp_md5sig of linux/tcp.h."""
    address = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(peer)).ljust(128, b"\0")
    return address + struct.pack("=BBHi80s", 0, 0, len(MD5_KEY), 0, MD5_KEY)


def linger_zero(connection: socket.socket) -> None:
    """From now on closing means RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def which_node() -> str:
    """The server that this is: `a` or `b`."""
    for node in TWO_HOSTS.hosts:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((TWO_HOSTS.address(node), 0))
            return node
    raise RuntimeError("this is not a server of a lab")


class Conversation:
    """One connection."""

    def __init__(self, connection: socket.socket, node: str) -> None:
        self._connection = connection
        self._node = node
        self._taken = hashlib.sha256()
        self._notes: list[Any] = []

    def run(self) -> None:
        """Do the steps, then close."""
        plan: dict[str, Any] = {"id": "", "steps": []}
        try:
            plan = json.loads(self._line())
            for name, *arguments in plan["steps"]:
                step: Callable[..., None] = getattr(self, f"_do_{name}")
                step(*arguments)
            end = "done"
        except ConnectionResetError:
            end = "reset"
        except BrokenPipeError:
            end = "broken-pipe"
        except EOFError:
            end = "end-of-stream"
        except OSError as error:
            end = str(error)
        self._connection.close()
        said = {"node": self._node, "id": plan["id"], "end": end, "sha256": self._taken.hexdigest()}
        with _print_lock:
            print(json.dumps(said | {"notes": self._notes}), flush=True)

    def _line(self) -> str:
        # Not a byte more than the line is taken, or a later close would find nothing unread.
        while b"\n" not in (seen := self._connection.recv(65536, socket.MSG_PEEK)):
            if not seen:
                raise EOFError
            time.sleep(0.001)
        return self._connection.recv(seen.index(b"\n") + 1).decode()

    def _take(self, limit: int) -> bytes:
        data = self._connection.recv(min(limit, 1 << 18))
        self._taken.update(data)
        return data

    def _do_send(self, size: int, seed: int, chunk: int = 1 << 18) -> None:
        data = content(seed, size)
        for at in range(0, size, chunk):
            self._connection.sendall(data[at : at + chunk])

    def _do_take(self, size: int) -> None:
        while size:
            data = self._take(size)
            if not data:
                raise EOFError
            size -= len(data)

    def _do_take_all(self) -> None:
        while self._take(1 << 18):
            pass

    def _do_digest(self) -> None:
        self._connection.sendall(self._taken.hexdigest().encode())

    def _do_echo(self, size: int, chunk: int) -> None:
        """Send back `size` bytes, each `chunk` of them once it is complete."""
        while size:
            piece = b""
            while len(piece) < min(chunk, size):
                data = self._take(min(chunk, size) - len(piece))
                if not data:
                    raise EOFError
                piece += data
            self._connection.sendall(piece)
            size -= len(piece)

    def _do_echo_all(self) -> None:
        while data := self._take(1 << 18):
            self._connection.sendall(data)

    def _do_die(self, node: str) -> None:
        """On that server, the whole process ends here."""
        if node == self._node:
            os._exit(9)

    def _do_kill(self, node: str) -> None:
        """On that server, this process is killed: with --fork that is this connection's."""
        if node == self._node:
            os.kill(os.getpid(), signal.SIGKILL)

    def _do_refuse(self, node: str) -> None:
        """On that server, no more connections are accepted."""
        for listener in listeners if node == self._node else ():
            listener.shutdown(socket.SHUT_RDWR)

    def _do_nodelay(self) -> None:
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _do_cork(self, on: int) -> None:
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)

    def _do_gate(self, path: str) -> None:
        """Wait until the file exists; `{node}` in its name is this server's."""
        gate = Path(path.replace("{node}", self._node))
        give_up = time.monotonic() + _GATE_DEADLINE_S
        while not gate.exists():
            if time.monotonic() > give_up:
                raise TimeoutError("the gate did not open")
            time.sleep(0.005)

    def _do_shutdown(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)

    def _do_reset(self) -> None:
        linger_zero(self._connection)
        self._connection.close()

    def _do_dial(self, source_port: int, target_port: int, size: int) -> None:
        """Open a connection from the service address to the client, and exchange `size` bytes both ways."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as out:
            out.settimeout(5.0)
            out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                out.bind((TWO_HOSTS.service, source_port))
                out.connect((TWO_HOSTS.address("client"), target_port))
                out.sendall(content(target_port, size))
                got = b""
                while len(got) < size and (data := out.recv(size - len(got))):
                    got += data
                self._notes.append("dialled" if got == content(target_port + 1, size) else "wrong bytes")
            except OSError as error:
                self._notes.append(f"not dialled: {type(error).__name__}")


def listen(port: int, kind: str) -> socket.socket:
    """A listening socket of that kind."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP if kind == "mptcp" else 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == "fastopen":
        # Client and server side, and data in a SYN is taken without a cookie (ip-sysctl, tcp_fastopen).
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(0x1 | 0x2 | 0x200))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    if kind == "md5":
        listener.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, md5_option(TWO_HOSTS.address("client")))
    elif kind == "device":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    listener.bind(("0.0.0.0", port))
    listener.listen(256)
    return listener


def serve(listener: socket.socket, node: str, fork: bool) -> None:
    """Accept for ever, a thread or a process for each connection."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it has been told to refuse
            listener.close()
            return
        if not fork:
            threading.Thread(target=Conversation(connection, node).run, daemon=True).start()
        elif os.fork():
            connection.close()
        else:
            for inherited in listeners:
                inherited.close()
            Conversation(connection, node).run()
            os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", action="append", required=True, metavar="PORT[/KIND]")
    parser.add_argument("--fork", action="store_true", help="a process for each connection")
    options = parser.parse_args()
    node = which_node()
    if options.fork:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for text in options.port:
        port, _, kind = text.partition("/")
        listeners.append(listen(int(port), kind or "tcp"))
    threads = [threading.Thread(target=serve, args=(listener, node, options.fork)) for listener in listeners]
    for thread in threads:
        thread.start()
    threading.Event().wait()  # a server that refuses goes on with what it has


if __name__ == "__main__":
    main()
