"""Servers that do not send the same on both hosts, each on a port of its own: see `KINDS`.

    python -m tests.support.diverging_server --certificate FILE     (PEM, with its key)

A request is a line: a number of bytes, but for `date`, which speaks just enough HTTP.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Final

from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.scripted_server import which_node

DATE, NOISE, LENGTHS, TAIL, TLS = range(7000, 7005)
HOUR_S: Final = 3600


@functools.cache
def odd() -> bool:
    """Whether this is the host whose answers differ from the other one's."""
    return which_node() == TWO_HOSTS.hosts[1]


def content(size: int) -> bytes:
    """The bytes that are the same on every host."""
    return hashlib.shake_128(b"content").digest(size)


def date(line: bytes) -> bytes:
    """An HTTP response; the two hosts' clocks are hours apart."""
    size = int(line.split()[1].strip(b"/"))
    when = formatdate(time.time() + HOUR_S * odd(), usegmt=True)
    return f"HTTP/1.1 200 OK\r\nDate: {when}\r\nContent-Length: {size}\r\n\r\n".encode() + content(size)


def noise(line: bytes) -> bytes:
    """Bytes that differ each time."""
    return os.urandom(int(line))


def lengths(line: bytes) -> bytes:
    """Three bytes more on one of the hosts, in the middle."""
    size = int(line)
    return content(size // 2) + b"xyz" * odd() + content(size)[size // 2 :]


def tail(line: bytes) -> bytes:
    """Something more behind the same bytes on one of the hosts."""
    return content(int(line)) + b" and no more" * odd()


def plain(line: bytes) -> bytes:
    """What is the same everywhere."""
    return content(int(line))


KINDS: Final[dict[int, Callable[[bytes], bytes]]] = {
    DATE: date,
    NOISE: noise,
    LENGTHS: lengths,
    TAIL: tail,
    TLS: plain,
}


def talk(connection: socket.socket, respond: Callable[[bytes], bytes], context: ssl.SSLContext | None) -> None:
    """Answer lines until the client has had enough."""
    try:
        with connection if context is None else context.wrap_socket(connection, server_side=True) as stream:
            got = b""
            while data := stream.recv(65536):
                got += data
                *lines, got = got.split(b"\n")
                for line in lines:
                    if respond is not date or line.startswith(b"GET "):
                        stream.sendall(respond(line))
    except OSError:
        pass


def serve(port: int, context: ssl.SSLContext | None) -> None:
    """Accept without end."""
    listener = socket.create_server(("0.0.0.0", port), backlog=64)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=talk, args=(connection, KINDS[port], context), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--certificate", required=True, type=Path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(parser.parse_args().certificate)
    for port in KINDS:
        threading.Thread(target=serve, args=(port, context if port == TLS else None)).start()


if __name__ == "__main__":
    main()
