"""Whether this kernel can do what the daemon needs: tried in a network namespace of its own, which then vanishes.

`examine` starts this module as a program in such a namespace. There it installs the rules of every role at the
loopback interface, and binds a queue. The host's own rules are not touched; the kernel may load modules.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from nfq_failover.config import Config, load
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import Profile, Queue
from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.operator.doctor.report import Subject
from nfq_failover.shell.firewall.script import PeerHost, RulesRunner
from nfq_failover.shell.packets.nfqueue import PacketQueue, open_counters
from nfq_failover.shell.privileged.client import helper_settings

_TIMEOUT_S: Final = 60.0
_MAC: Final = "02:00:00:00:00:01"  # of a peer that nobody looks for there


def subject(path: Path) -> Subject:
    """What the kernel and the tools of this host can do, by the configuration at `path`."""
    seen = "the rules of every role and a queue could be made, in a network namespace of their own"
    return Subject("kernel", "the daemon's rules and queues are made with it", lambda: (seen, examine(path)))


def examine(path: Path) -> list[Concern]:
    """Try it with the configuration at `path`. Raises `CommandError` if it can't be tried."""
    command = ["unshare", "--net", sys.executable, "-m", "nfq_failover.operator.doctor.trial", str(path.resolve())]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"no network namespace to try it in: {error}") from None
    try:
        failures: list[str] = json.loads(tried.stdout)
    except ValueError:
        last = (tried.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise CommandError(f"the trial in a network namespace has failed: {last}") from None
    cure = "install iptables, iproute2 and nftables; see that the kernel's modules are there (apt install, or modprobe)"
    return [Concern("kernel-lacks", Weight.UNPROTECTED, what, cure) for what in failures]


def main(path: Path) -> int:
    """Try everything here and now, and write what fails as a JSON list. Returns the exit code."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    config = load(path)
    failures = [*_queues(config), *_rules(config)]
    json.dump(failures, sys.stdout)
    return 0


def _queues(config: Config) -> Iterator[str]:
    counters = -1
    try:
        counters = open_counters()
        PacketQueue(config.queue_in, Queue.IN, max_len=1, rcvbuf=1 << 16, counters=counters).close()
    except (OSError, NfqFailoverError) as error:
        yield f"a netfilter queue can't be made: {error}"
    finally:
        if counters >= 0:
            os.close(counters)


def _rules(config: Config) -> Iterator[str]:
    options = helper_settings(config, None).rules
    with tempfile.TemporaryDirectory(prefix="nfq-failover-doctor-") as directory:
        peers = tuple(PeerHost(peer.address, peer.mac or _MAC) for peer in options.peers)
        runner = RulesRunner(replace(options, interface="lo", peers=peers, state_dir=Path(directory)))
        for profile in (Profile.BACKUP, Profile.PRIMARY, Profile.ALONE):
            try:
                runner.apply(profile)
            except NfqFailoverError as error:
                yield f"the rules of role '{profile.value}' can't be made: {error}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
