"""`nfq-failover doctor`: what stands between this host and a takeover that works, and how to mend it."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfq_failover.config import Config, load
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.errors import CommandError, ConfigError
from nfq_failover.operator.doctor import host, network, other, running, trial
from nfq_failover.operator.doctor.report import Result, exit_code, lines, summary
from nfq_failover.shell.control import ask
from nfq_failover.shell.start import CONTROL


def run(args: argparse.Namespace) -> int:
    """Look at everything, and print what was found. Returns the exit code."""
    if os.geteuid():
        raise CommandError("run the doctor as root: what it looks at belongs to root")
    if args.facts:
        print(json.dumps(other.describe(load(args.config)), indent=2))
        return 0
    results: list[Result] = []
    for result in _examine(args.config, None if args.compare is None else other.read(args.compare)):
        results.append(result)
        if not args.json:
            print("\n".join(lines(result)), flush=True)
    code = exit_code(results)
    if args.json:
        print(json.dumps({"exit": code, "results": [result.as_dict() for result in results]}, indent=2))
    else:
        print(summary(results))
    return code


def _examine(path: Path, told: dict[str, Any] | None) -> Iterator[Result]:
    try:
        config = load(path)
    except ConfigError as error:
        cure = f"correct it; nfq-failover check-config --config {path}"
        faults = tuple(Concern("configuration", Weight.UNPROTECTED, str(fault), cure) for fault in error.faults)
        yield Result("configuration", "no daemon starts with it, and nothing else can be looked at", "", faults, False)
        return
    yield Result("configuration", "", f"{path} is right")
    status, hangs = _daemon(config)
    if status is not None:
        yield from running.results(status)
    for subject in host.subjects(config):
        yield subject.examine()
    if hangs is not None:
        yield hangs
    elif status is None:
        yield Result("daemon", "", "it does not run on this host; what it would look at is looked at now")
        for subject in (trial.subject(path), *network.subjects(config)):
            _progress(subject.name)
            yield subject.examine()
    if told is not None:
        yield other.from_file(config, told)
    elif status is None or status["peer"]["lost"]:  # else the daemons compare all of that themselves
        _progress("settings")
        yield from other.results(config, runs=status is not None or hangs is not None)


def _progress(name: str) -> None:
    """Say what is being looked at: some of it takes seconds. The result's line takes its place."""
    if sys.stderr.isatty():
        print(f"\x1b[2K... {name}", end="\r", file=sys.stderr, flush=True)


def _daemon(config: Config) -> tuple[dict[str, Any] | None, Result | None]:
    """Returns the status of this host's daemon, or that it runs and does not answer."""
    try:
        return ask(config.state_dir / CONTROL, "status"), None
    except CommandError as error:
        if not _locked(config.state_dir / "lock"):
            return None, None
        what = f"the daemon runs, and does not answer: {error}"
        cure = "see its log; restart it (systemctl restart nfq-failover): the peer takes over meanwhile"
        concern = Concern("daemon-hangs", Weight.UNPROTECTED, what, cure)
        return None, Result("daemon", "a daemon that hangs protects nothing", "", (concern,))


def _locked(path: Path) -> bool:
    """Whether a daemon has the state directory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
