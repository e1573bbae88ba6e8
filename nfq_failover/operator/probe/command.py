"""`nfq-failover probe`: do two hosts' applications answer the same request in the same way?"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nfq_failover.core.tcp.journal import Journal
from nfq_failover.errors import CommandError
from nfq_failover.operator.probe import fetch as probe_fetch
from nfq_failover.operator.probe.compare import describe, judge
from nfq_failover.operator.probe.fetch import Answer

LOCAL = "local"
_ADDRESS = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?")
_START_S = 30.0
EPILOG = """\
HOST is one of
  ADDRESS[:PORT]   connect to this address, if the application listens there, too
  local            this host: connect to the service address over lo, which the rules leave alone
  "COMMAND"        a command that runs another one on the host, like "ssh root@backup": the request is sent there, to
                   the service address over lo; nfq-failover must be installed on it

The request is really carried out, on both hosts, as often as --times says. Both get it at the same moments.

  nfq-failover probe --service 10.0.0.100:80 --host local --host "ssh root@10.0.0.3" --http /index.html
  nfq-failover probe --service 10.0.0.100:6379 --host 10.0.0.2 --host 10.0.0.3 --request redis-commands
  tcpdump -i eth0 -w live.pcap host 10.0.0.100 and port 443     # then: --recorded live.pcap

Exit code: 0 equal; 3 of equal length with differences that end (protected); 4 connections would not stay protected;
1 or 2 when it could not be found out.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes. `via`: the command that runs another one on the host; empty for none."""

    name: str
    address: tuple[str, int]
    via: tuple[str, ...]


def service_of(text: str) -> tuple[str, int]:
    """ADDRESS:PORT. Raises `CommandError`."""
    match = _ADDRESS.fullmatch(text)
    if match is None or match[2] is None or not 0 < int(match[2]) < 65536:
        raise CommandError(f"--service: '{text}' is not ADDRESS:PORT, like 10.0.0.100:80")
    return match[1], int(match[2])


def target_of(text: str, service: tuple[str, int]) -> Target:
    """A `--host`. Raises `CommandError`."""
    if text == LOCAL:
        return Target(text, service, ())
    match = _ADDRESS.fullmatch(text)
    if match is not None:
        return Target(text, (match[1], int(match[2] or service[1])), ())
    try:
        via = tuple(shlex.split(text))
    except ValueError as error:
        raise CommandError(f"--host: '{text}': {error}") from None
    if not via:
        raise CommandError("--host: give an address, 'local', or a command like \"ssh root@backup\"")
    return Target(text, service, via)


def http_request(path: str, service: tuple[str, int]) -> bytes:
    """A GET that leaves the connection open."""
    if not path.startswith("/") or any(c <= " " for c in path):
        raise CommandError(f"--http: '{path}' is not a path like /index.html")
    host = f"{service[0]}:{service[1]}"
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: nfq-failover-probe\r\nAccept: */*\r\n\r\n".encode()


def recorded(path: Path, service: tuple[str, int]) -> list[bytes]:
    """The client's turns in the first connection to the service that begins in a capture. Raises `CommandError`."""
    from scapy.error import Scapy_Exception
    from scapy.layers.inet import IP, TCP
    from scapy.utils import PcapReader

    client: tuple[str, int] | None = None
    stream = Journal(64 << 20)
    begins: list[int] = []
    irs, answered = 0, True
    try:
        with PcapReader(str(path)) as packets:
            for packet in packets:
                if IP not in packet or TCP not in packet:
                    continue
                ip, tcp = packet[IP], packet[TCP]
                source, target = (ip.src, tcp.sport), (ip.dst, tcp.dport)
                payload = bytes(tcp.payload)[: ip.len - 4 * ip.ihl - 4 * tcp.dataofs]
                if client is None and target == service and tcp.flags.S and not tcp.flags.A:
                    client, irs = source, tcp.seq
                elif (source, target) == (client, service) and payload:
                    if answered:
                        begins.append(stream.end)
                        answered = False
                    stream.insert((tcp.seq - irs - 1) & 0xFFFFFFFF, payload)
                elif (source, target) == (service, client) and payload:
                    answered = True
    except (OSError, Scapy_Exception) as error:
        raise CommandError(
            f"--recorded: {path} can't be read ({error}): give a capture that tcpdump -w has made"
        ) from None
    if client is None:
        raise CommandError(f"--recorded: no connection to {service[0]}:{service[1]} begins in {path}")
    data = stream.read(0, stream.end)
    cuts = [*sorted(set(begins)), len(data)]
    turns = [data[a:b] for a, b in pairwise(cuts) if b > a]
    if not turns:
        raise CommandError(f"--recorded: the client of the first connection in {path} sends nothing")
    return turns


def ask(target: Target, turns: list[bytes], args: argparse.Namespace) -> list[Answer]:
    """All answers of one application. Raises `CommandError`."""
    how: dict[str, Any] = {
        "idle_s": args.idle_ms / 1000,
        "timeout_s": args.timeout_s,
        "limit": args.limit,
        "close": args.close,
    }
    if not target.via:
        return [probe_fetch.fetch(target.address, turns, **how) for _ in range(args.times)]
    job = probe_fetch.encode_job(target.address, turns, args.times, **how)
    command = [*target.via, *shlex.split(args.program), "probe-fetch"]
    try:
        done = subprocess.run(
            command,
            input=job + "\n",
            capture_output=True,
            text=True,
            timeout=_START_S + args.times * (args.timeout_s + 1) * len(turns),
        )
    except FileNotFoundError:
        raise CommandError(f"--host: there is no program '{command[0]}'") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"--host: '{target.name}' does not come to an end") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise CommandError(f"--host: '{' '.join(command)}' has failed: {said}")
    return probe_fetch.read_answers(done.stdout)


def run(args: argparse.Namespace) -> int:
    """The command."""
    service = service_of(args.service)
    if len(args.host) != 2:
        raise CommandError(f"--host: give two hosts, not {len(args.host)}; --help shows how")
    targets = [target_of(text, service) for text in args.host]
    if targets[0] == targets[1]:
        raise CommandError(f"--host: '{targets[0].name}' twice; to compare a host with itself, --times is enough")
    if args.http is not None:
        turns = [http_request(args.http, service)]
    elif args.recorded is not None:
        turns = recorded(args.recorded, service)
    else:
        try:
            turns = [args.request.read_bytes()]
        except OSError as error:
            raise CommandError(f"--request: {args.request}: {error.strerror}") from None
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda target: ask(target, turns, args), targets))
    names = tuple(target.name for target in targets)
    for name, got in zip(names, answers, strict=True):
        if len(got) != args.times:
            raise CommandError(f"{name}: {len(got)} answers instead of {args.times}")
        if not any(answer.data for answer in got):
            raise CommandError(f"{name}: the application has answered nothing ({got[0].end}): is the request complete?")
    verdict = judge((names[0], names[1]), answers[0], answers[1])
    print(json.dumps(verdict.as_json()) if args.json else describe(verdict))
    return verdict.exit_code


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def add_parsers(subparsers: Any) -> None:
    """Adds `probe`, and what it runs on the other host."""
    about = "Ask both hosts' applications the same, and tell whether, and where, they answer differently."
    parser = subparsers.add_parser(
        "probe", help=about, description=about, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--service", required=True, metavar="ADDRESS:PORT", help="what clients connect to")
    parser.add_argument("--host", action="append", default=[], metavar="HOST", help="where to ask; give it twice")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--http", metavar="PATH", help="send an HTTP GET")
    what.add_argument("--request", type=Path, metavar="FILE", help="send these bytes")
    what.add_argument("--recorded", type=Path, metavar="PCAP", help="send what the client in this capture has sent")
    parser.add_argument("--times", type=_positive, default=5, help="how often (5); more than once shows what is random")
    parser.add_argument("--idle-ms", type=_positive, default=300, help="an answer is over after this silence (300)")
    parser.add_argument("--timeout-s", type=_positive, default=10, help="how long an answer may take in all (10)")
    parser.add_argument("--limit", type=_positive, default=4 << 20, help="bytes of an answer to look at (4 MiB)")
    parser.add_argument("--close", action="store_true", help="end our direction after the request")
    parser.add_argument("--program", default="nfq-failover", help="the program's name on the other host (nfq-failover)")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(run=run)
    remote = subparsers.add_parser("probe-fetch", description="Started by 'probe' on the other host.")
    remote.set_defaults(run=lambda args: probe_fetch.main())
