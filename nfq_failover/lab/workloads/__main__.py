"""Command line of the workloads; the exit code of `client` is 0 only if every byte was right and every end clean."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.workloads.client import Plan, run_client
from nfq_failover.lab.workloads.content import Kind
from nfq_failover.lab.workloads.report import describe, summarize
from nfq_failover.lab.workloads.server import run_server

_UNITS: Final = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_KINDS: Final = {kind.name.lower(): [kind] for kind in Kind} | {"mixed": list(Kind)}


def parse_size(text: str) -> int:
    """Bytes: `150`, `10k`, `20M`, `1G` (powers of 1000). Raises ValueError."""
    factor = _UNITS.get(text[-1:], 1)
    size = int(text[:-1] if factor > 1 else text) * factor
    if size < 0:
        raise ValueError(text)
    return size


def parse_ports(texts: Sequence[str]) -> list[int]:
    """Ports from `7000`, `7000-7003` or several of these. Raises ValueError."""
    ports: list[int] = []
    for text in texts:
        first, _, last = text.partition("-")
        ports += range(int(first), int(last or first) + 1)
    if not ports or not all(0 <= port <= 65_535 for port in ports):
        raise ValueError(f"no usable port in {' '.join(texts)}")
    return ports


def make_parser() -> argparse.ArgumentParser:
    """The parser of both sides."""
    parser = argparse.ArgumentParser(prog="python -m nfq_failover.lab.workloads", description=__doc__)
    sides = parser.add_subparsers(dest="side", required=True)
    server = sides.add_parser("server", help="serve all workloads until SIGTERM")
    server.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    server.add_argument("--port", action="append", default=[], metavar="P[-Q]", help="may be repeated (default 7000)")
    client = sides.add_parser("client", help="run one workload and report")
    client.add_argument("kind", choices=sorted(_KINDS), help="mixed deals the four kinds out to the connections")
    client.add_argument("--host", required=True)
    client.add_argument("--port", action="append", default=[], metavar="P[-Q]", help="dealt out to the connections")
    client.add_argument("--connections", type=int, default=1)
    client.add_argument("--size", type=parse_size, default=1_000_000, help="body of bulk and upload, like 20M")
    client.add_argument("--count", type=int, help="exchanges per connection (default 1, or no limit with --seconds)")
    client.add_argument("--seconds", type=float, help="start no new exchange after this time")
    client.add_argument("--rate", type=float, help="at most this many exchanges per second and connection")
    client.add_argument("--seed", type=int, default=1)
    client.add_argument("--no-digest", action="store_true", help="compare the bytes, but compute no SHA-256")
    client.add_argument("--stall-timeout", type=float, default=30.0, metavar="S", help="give a silent connection up")
    client.add_argument("--announce", action="store_true", help="say on standard error when all connections are open")
    client.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one side; returns the exit code: 0 right, 1 wrong, 2 misuse."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        ports = parse_ports(arguments.port or ["7000"])
    except ValueError as error:
        parser.error(f"--port: {error}")
    if arguments.side == "server":
        try:
            run_server(arguments.host, ports)
        except CommandError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    if arguments.connections < 1:
        parser.error("--connections: at least 1")
    return _client(arguments, ports)


def _client(arguments: argparse.Namespace, ports: list[int]) -> int:
    count = arguments.count if arguments.count or arguments.seconds else 1
    plan = Plan(
        kinds=_KINDS[arguments.kind],
        host=arguments.host,
        ports=ports,
        connections=arguments.connections,
        size=arguments.size,
        count=count,
        seconds=arguments.seconds,
        rate=arguments.rate,
        seed=arguments.seed,
        digest=not arguments.no_digest,
        stall_timeout_s=arguments.stall_timeout,
    )

    def on_started() -> None:
        if arguments.announce:
            print(json.dumps({"event": "started", "time": time.time()}), file=sys.stderr, flush=True)

    summary = summarize(arguments.kind, run_client(plan, on_started))
    print(json.dumps(summary) if arguments.json else describe(summary))
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
