"""How far two real kernels' numbers are apart: the replica's SYN-ACK beside the one that the client has got.

A replica's SYN-ACK never leaves its host. A rule ahead of ours shows it to netfilter's log, which tcpdump reads.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.machines.machines import Machines
from nfq_failover.lab.netns import LabError

_GROUP: Final = 97
_FILE: Final = "/run/nfqf-numbers.pcap"
_UNIT: Final = "nfqf-numbers"
_FIELDS: Final = ("tcp.dstport", "tcp.seq_raw", "tcp.options.timestamp.tsval")
_FULL: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Opening:
    """A SYN-ACK's sequence number and timestamp (None: without the option), 32 bits each."""

    seq: int
    tsval: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The replica's numbers less those that the client has, -2^31 to 2^31 - 1. `tsval`: None without timestamps."""

    seq: int
    tsval: int | None


def watch(machines: Machines, machine: str) -> None:
    """Begin to record the SYN-ACKs that `machine`'s own TCP makes for the service. Raises LabError."""
    unwatch(machines, machine)
    machines.run(
        machine,
        f"sudo sh -c 'rm -f {_FILE}; modprobe -q nfnetlink_log; "
        # systemd opens the file: tcpdump gives up root, and of Ubuntu's 4.99.4 a `-Z root` with a file makes a crash.
        f"systemd-run --quiet --collect --unit={_UNIT} "
        f"--property=StandardOutput=truncate:{_FILE} --property=StandardError=journal "
        f"tcpdump -i nflog:{_GROUP} -U --immediate-mode -w -; "
        f"iptables -w -t raw -I OUTPUT 1 {_rule(machines)}; n=0; "
        f"until [ -s {_FILE} ] || [ $n = 100 ]; do sleep 0.3; n=$((n + 1)); done; test -s {_FILE}'",
    )


def unwatch(machines: Machines, machine: str) -> None:
    """End it; the record stays until the next `watch`."""
    with suppress(LabError):
        machines.run(
            machine,
            f"sudo sh -c 'while iptables -w -t raw -D OUTPUT {_rule(machines)} 2>/dev/null; do :; done; "
            f"systemctl stop {_UNIT} 2>/dev/null'",
        )


def _rule(machines: Machines) -> str:
    return f"-s {machines.service} -p tcp --tcp-flags SYN,ACK SYN,ACK -j NFLOG --nflog-group {_GROUP}"


def read(machines: Machines, machine: str, target: Path) -> dict[int, Opening]:
    """What `machine` has recorded, by the client's port; the capture stays in `target`."""
    machines.fetch(machine, _FILE, target)
    return openings(target, "tcp.flags.syn == 1 and tcp.flags.ack == 1")


def openings(capture: Path, display_filter: str) -> dict[int, Opening]:
    """The first SYN-ACK to each client port in a capture of any kind. Raises CommandError if tshark can't read it."""
    # As it is on the wire, and also what another packet quotes or a port says that tshark thinks to know.
    command = ["tshark", "-n", "-r", str(capture), "-Y", display_filter, "-T", "fields", "-E", "occurrence=f"]
    command += [part for name in _FIELDS for part in ("-e", name)]
    done = subprocess.run(command, capture_output=True, text=True)
    # A recorder that was interrupted leaves half a packet at the end; what is before it counts.
    if done.returncode and "cut short" not in done.stderr:
        raise CommandError(f"tshark can't read {capture}: {done.stderr.strip()}")
    return parse(done.stdout.splitlines())


def parse(lines: Iterable[str]) -> dict[int, Opening]:
    """Openings from tshark's lines of tab-separated `_FIELDS`."""
    found: dict[int, Opening] = {}
    for line in lines:
        port, seq, tsval = line.split("\t")
        found.setdefault(int(port), Opening(int(seq), int(tsval) if tsval else None))
    return found


def differences(client: dict[int, Opening], replica: dict[int, Opening]) -> dict[int, Difference]:
    """For each connection that both have, by the client's port."""
    return {
        port: Difference(
            _signed(replica[port].seq - seen.seq),
            None if seen.tsval is None or (own := replica[port].tsval) is None else _signed(own - seen.tsval),
        )
        for port, seen in client.items()
        if port in replica
    }


def _signed(difference: int) -> int:
    return (difference + _FULL // 2) % _FULL - _FULL // 2
