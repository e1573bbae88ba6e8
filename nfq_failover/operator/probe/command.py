"""`nfq-failover probe`: do two hosts' applications answer the same request in the same way?"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfq_failover.errors import CommandError
from nfq_failover.operator.probe import fetch as probe_fetch
from nfq_failover.operator.probe import recording as probe_recording
from nfq_failover.operator.probe.fetch import Answer
from nfq_failover.operator.probe.protocol import encrypted
from nfq_failover.operator.probe.recording import Recording
from nfq_failover.operator.probe.verdict import Verdict, describe, judge

LOCAL = "local"
_ADDRESS = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?")
_START_S = 30.0
PATIENCE = 4  # times the silence: a server that says more then was not asked for it
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

A recorded conversation is repeated turn by turn, and the answers are compared with each other and with the recorded
ones. Where the servers stop early, or answer otherwise, that is said, and is not a proof.

Exit code: 0 equal; 3 of equal length with differences that end (protected); 4 connections would not stay protected (the
answers differ, or are encrypted); 5 can't be told from this: only a part could be compared, or the server speaks at
moments of its own; 1 or 2 when nothing could be compared.
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


def ask(
    target: Target,
    turns: list[bytes],
    args: argparse.Namespace,
    recording: Recording | None = None,
    idle_times: int = 1,
) -> list[Answer]:
    """All answers of one application; an answer is over after `idle_times` the silence that was asked for. Raises
    `CommandError`."""
    how: dict[str, Any] = {
        "idle_s": idle_times * args.idle_ms / 1000,
        "timeout_s": args.timeout_s,
        "limit": args.limit,
        "close": args.close,
    }
    if recording is not None:
        how |= {"expected": list(recording.expected), "patience_s": min(2 * recording.pause_s, args.timeout_s)}
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
    recording = None
    if args.http is not None:
        turns = [http_request(args.http, service)]
    elif args.recorded is not None:
        recording = probe_recording.read(args.recorded, service)
        turns = list(recording.turns)
    else:
        try:
            turns = [args.request.read_bytes()]
        except OSError as error:
            raise CommandError(f"--request: {args.request}: {error.strerror}") from None
    verdict = _compare(targets, turns, args, recording)
    print(json.dumps(verdict.as_json()) if args.json else describe(verdict))
    if recording is not None and recording.others and not args.json:
        print(f"The capture has {recording.others} more connections to the service: only the first was compared.")
    return verdict.exit_code


def _compare(
    targets: list[Target], turns: list[bytes], args: argparse.Namespace, recording: Recording | None
) -> Verdict:
    """Ask both, and compare; again with more patience, if one answer only goes on where the other has stopped."""

    def both(idle_times: int) -> list[list[Answer]]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda target: ask(target, turns, args, recording, idle_times), targets))

    names = targets[0].name, targets[1].name
    if recording is not None and (protocol := encrypted(turns, recording.answers)):
        return Verdict(names, (), ((), ()), protocol)  # what was recorded means nothing to any other server
    answers = both(1)
    for target, got in zip(targets, answers, strict=True):
        if len(got) != args.times:
            raise CommandError(f"{target.name}: {len(got)} answers instead of {args.times}")
        if not any(answer.data for answer in got):
            raise CommandError(
                f"{target.name}: the application has answered nothing ({got[0].end}): is the request complete?"
            )
    verdict = judge(names, answers[0], answers[1], turns, recording)
    if not verdict.unasked and any(finding.one_is_further for finding in verdict.between):
        later = both(PATIENCE)
        grown = any(_most(new) > _most(old) for old, new in zip(answers, later, strict=True))
        return judge(names, later[0], later[1], turns, recording, unasked=grown)
    return verdict


def _most(answers: list[Answer]) -> int:
    return max(len(answer.data) for answer in answers)


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
