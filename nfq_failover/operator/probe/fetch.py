"""The half of `probe` that runs on or beside a host: sends a request to one application, and takes its answer.

Standard library only, so that it starts fast on a server. The request comes in turns: each is sent when the answer to
the one before has come to rest.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from nfq_failover.errors import CommandError

CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What one connection has brought. `end`: closed, idle, reset, timeout or limit; empty `data` may be an answer.
    `sent`: how many turns the client has come to send."""

    data: bytes
    end: str
    sent: int = field(default=0, compare=False)


def fetch(
    address: tuple[str, int],
    turns: list[bytes],
    idle_s: float,
    timeout_s: float,
    limit: int,
    close: bool = False,
    expected: list[int] | None = None,
    patience_s: float = 0.0,
) -> Answer:
    """One connection: send the turns, and read until the server closes or is silent for `idle_s`.

    `close`: end our direction after the last turn. `expected`: how many bytes each turn is answered with, as far as
    that is known; until they are there, a silence may last for `patience_s`. An empty turn only waits for the server.
    Raises `CommandError` if nobody listens.
    """
    got = bytearray()
    deadline = time.monotonic() + timeout_s
    try:
        connection = socket.create_connection(address, timeout=timeout_s)
    except OSError as error:
        raise CommandError(
            f"no connection to {address[0]}:{address[1]} ({error.strerror or error}): does it listen there?"
        ) from None
    with connection:
        for number, turn in enumerate(turns, 1):
            wanted = None if expected is None else expected[number - 1]
            try:
                connection.sendall(turn)
                if close and number == len(turns):
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                return Answer(bytes(got), "reset", number - 1)
            end = _rest(connection, got, (idle_s, max(idle_s, patience_s)), deadline, limit, wanted)
            if end != "idle":
                return Answer(bytes(got), end, number)
        return Answer(bytes(got), "idle", len(turns))


def _rest(
    connection: socket.socket,
    got: bytearray,
    silences_s: tuple[float, float],
    deadline: float,
    limit: int,
    wanted: int | None,
) -> str:
    """Read until the answer has come to rest; says how. `silences_s`: how long a silence ends it, and how long it takes
    as long as it has not `wanted` bytes."""
    silent = wanted == 0  # otherwise the first byte may take as long as the timeout allows
    begun = len(got)
    while len(got) < limit:
        idle_s = silences_s[len(got) - begun < (wanted or 0)]
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout"
        connection.settimeout(min(idle_s, left) if silent else left)
        try:
            data = connection.recv(min(CHUNK, limit - len(got)))
        except TimeoutError:
            return "idle" if silent and time.monotonic() < deadline else "timeout"
        except OSError:
            return "reset"
        if not data:
            return "closed"
        got += data
        silent = True
    return "limit"


def encode_job(address: tuple[str, int], turns: list[bytes], times: int, **how: Any) -> str:
    """What `serve_job` reads, one line of JSON."""
    coded = [base64.b64encode(turn).decode() for turn in turns]
    return json.dumps({"address": address[0], "port": address[1], "turns": coded, "times": times, **how})


def serve_job(source: TextIO, sink: TextIO) -> None:
    """Carry out a job: a line of JSON for each answer, at once. Raises `CommandError`."""
    try:
        job = json.loads(source.readline())
        address, times = (job.pop("address"), job.pop("port")), job.pop("times")
        turns = [base64.b64decode(turn) for turn in job.pop("turns")]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"this is started by 'nfq-failover probe' on the other host, not by hand ({error!r})"
        ) from None
    for _ in range(times):
        answer = fetch(address, turns, **job)
        row = {"data": base64.b64encode(answer.data).decode(), "end": answer.end, "sent": answer.sent}
        print(json.dumps(row), file=sink, flush=True)


def read_answers(text: str) -> list[Answer]:
    """The answers of a job, from what it printed."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [Answer(base64.b64decode(row["data"]), row["end"], row.get("sent", 0)) for row in rows]


def main() -> int:
    """`nfq-failover probe-fetch`: a job from standard input."""
    serve_job(sys.stdin, sys.stdout)
    return 0
