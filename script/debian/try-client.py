"""A client that downloads one file slowly, through a crash: tells when half of it is there, and whether all came."""

from __future__ import annotations

import hashlib
import socket
import sys
import time
from pathlib import Path


def main() -> int:
    """Arguments: address, port, the file's path here, the file to make at half. 0: all came by one connection."""
    address, port, original, half = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    wanted = original.read_bytes()
    longest = 0.0
    body = bytearray()
    with socket.create_connection((address, port), 10) as connection:
        connection.settimeout(30)
        connection.sendall(f"GET /{original.name} HTTP/1.0\r\n\r\n".encode())
        head = b""
        # Ends: the server's head does, or the server hangs up.
        while b"\r\n\r\n" not in head:
            if not (more := connection.recv(1)):
                print("no answer")
                return 1
            head += more
        # Ends: the file does, or a receive takes 30 s.
        while len(body) < len(wanted):
            began = time.monotonic()
            more = connection.recv(65536)
            longest = max(longest, time.monotonic() - began)
            if not more:
                break
            body += more
            if len(body) > len(wanted) // 2:
                half.touch()
            time.sleep(len(more) / 8e6)  # at 8 MB/s
    print(
        f"{len(body)} of {len(wanted)} bytes, SHA-256 {hashlib.sha256(body).hexdigest()[:16]}, silence {longest:.2f} s"
    )
    return 0 if body == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
