"""The lab's scrambler: it makes a host's TCP look as if its secrets were its own.

Network namespaces of one machine share the kernel's sequence number and timestamp secrets, so two hosts choose nearly
the same numbers and wrong translation looks right. This stage sits between a host's kernel and the daemon: it adds
constants to SEQ and TSval of what the service sends, and takes them off ACK, SACK edges and TSecr of what it gets.
To everybody else, the daemon on the same host included, the kernel seems to have chosen the shifted numbers.

    kernel -> [scrambler: raw OUTPUT] -> daemon (mangle OUTPUT) -> wire
    wire -> daemon (mangle PREROUTING) -> [scrambler: mangle INPUT] -> kernel

What the daemon injects outward is in the shifted space already and carries the mark: exempt. What it injects inward
arrives over lo and goes through the inbound stage, marked or not.

Run inside a host's namespace: `python -m nfq_failover.lab.scramble --service ADDRESS --ports 80,7000:7099 ...`.
It ends at SIGTERM or SIGINT, and takes its rules away.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nfq_failover.constants import ACK, DEFAULT_MARK, SYN
from nfq_failover.core.events import PacketQueued, Queue
from nfq_failover.errors import CommandError, MalformedSegment
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import MASK

_CHAIN: Final = "LAB-SCRAMBLE"
_HOOKS: Final = (("raw", "OUTPUT"), ("mangle", "INPUT"))
_MAX_FLOWS: Final = 65536
_READ_LIMIT: Final = 64
_RETRY_MS: Final = 5


@dataclass(slots=True)
class Shifts:
    """How far each connection's numbers are shifted: `constant` is (SEQ, TSval).

    `wrap_after_bytes` and `wrap_after_ms` choose the shift for each connection when its SYN-ACK passes, such that SEQ,
    or TSval, passes 2^32 that much later. Give two hosts different values, or their numbers become alike.
    """

    constant: tuple[int, int]
    wrap_after_bytes: int | None = None
    wrap_after_ms: int | None = None
    _flows: dict[FlowKey, tuple[int, tuple[int, int]]] = field(default_factory=dict)  # to (ISS, shifts)

    def of_outbound(self, segment: Segment) -> tuple[int, int]:
        """The shifts of a segment from the service."""
        if self.wrap_after_bytes is None and self.wrap_after_ms is None:
            return self.constant
        key = (segment.dst, segment.dport, segment.src, segment.sport)
        known = self._flows.get(key)
        if segment.flags & (SYN | ACK) != SYN | ACK:
            return known[1] if known else self.constant
        if known and known[0] == segment.seq:  # SYN-ACK again
            return known[1]
        seq_add, ts_add = self.constant
        if self.wrap_after_bytes is not None:
            seq_add = (-self.wrap_after_bytes - segment.seq) & MASK
        if self.wrap_after_ms is not None:
            ts_add = (-self.wrap_after_ms - segment.tsval) & MASK
        if len(self._flows) >= _MAX_FLOWS:
            del self._flows[next(iter(self._flows))]
        self._flows[key] = (segment.seq, (seq_add, ts_add))
        return seq_add, ts_add

    def of_inbound(self, segment: Segment) -> tuple[int, int]:
        """The shifts of a segment to the service."""
        known = self._flows.get((segment.src, segment.sport, segment.dst, segment.dport)) if self._flows else None
        return known[1] if known else self.constant


def scramble(segment: Segment, seq_add: int, ts_add: int) -> None:
    """Shift what belongs to the server in a segment from it; the checksum is the caller's."""
    segment.set_seq((segment.seq + seq_add) & MASK)
    if segment.ts_off:
        segment.set_timestamps((segment.tsval + ts_add) & MASK, segment.tsecr)


def unscramble(segment: Segment, seq_add: int, ts_add: int) -> None:
    """Shift back what belongs to the server in a segment to it.

    Without the ACK flag the acknowledgement number and TSecr mean nothing (RFC 9293 section 3.1, RFC 7323 section 3.2)
    and stay as they are; Linux also takes a TSecr of 0 as none.
    """
    if not segment.flags & ACK:
        return
    segment.set_ack((segment.ack - seq_add) & MASK)
    if segment.sack:
        segment.set_sack([((left - seq_add) & MASK, (right - seq_add) & MASK) for left, right in segment.sack])
    if segment.ts_off and segment.tsecr:
        segment.set_timestamps(segment.tsval, (segment.tsecr - ts_add) & MASK)


class Scrambler:
    """Both stages. `counts` tells what became of the packets, by direction and kind."""

    def __init__(self, shifts: Shifts, queue_out: int, queue_in: int) -> None:
        """Open the queues. Raises `QueueUnavailable`."""
        self.shifts = shifts
        self.counts = {"out": 0, "in": 0, "untouched": 0, "lost": 0}
        self.queues = [PacketQueue(queue_out, Queue.OUT)]
        try:
            self.queues.append(PacketQueue(queue_in, Queue.IN))
        except CommandError:
            self.close()
            raise

    def serve(self, queue: PacketQueue) -> bool:
        """Answer what waits in a queue now, up to a limit; False if the kernel had no room for all the verdicts."""
        events = queue.read(_READ_LIMIT)
        outward = queue.queue is Queue.OUT
        for event in events:
            if not isinstance(event, PacketQueued):
                self.counts["lost"] += event.count
                continue
            shifted = self.outbound(event) if outward else self.inbound(event)
            self.counts[("out" if outward else "in") if shifted else "untouched"] += 1
            queue.verdict(event.packet_id, True, event.packet if shifted else None)
        return queue.flush()

    def outbound(self, event: PacketQueued) -> bool:
        """Shift a packet from the service in place; False if it has to stay as it is."""
        try:
            segment = Segment(event.packet)
        except MalformedSegment:
            return False
        scramble(segment, *self.shifts.of_outbound(segment))
        if not event.gso:  # segmentation writes the checksums itself
            segment.seal()
        return True

    def inbound(self, event: PacketQueued) -> bool:
        """Shift a packet to the service back in place; False if it has to stay as it is."""
        try:
            segment = Segment(event.packet)
        except MalformedSegment:
            return False
        if not event.checksum_pending and not segment.checksum_ok():
            return False  # the kernel is to see, count and drop it: no fresh checksum for a corrupted segment
        unscramble(segment, *self.shifts.of_inbound(segment))
        segment.seal()
        return True

    def run(self, stop: socket.socket) -> None:
        """Serve until `stop` is readable."""
        poll = select.poll()
        by_fd = {queue.fileno(): queue for queue in self.queues}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        poll.register(stop, select.POLLIN)
        stop_fd = stop.fileno()
        unsent = False
        while True:
            ready = poll.poll(_RETRY_MS if unsent else None)
            if unsent:
                unsent = sum(not queue.flush() for queue in self.queues) > 0
            for fd, _ in ready:
                if fd == stop_fd:
                    return
                unsent |= not self.serve(by_fd[fd])

    def close(self) -> None:
        for queue in self.queues:
            queue.close()


def ruleset(service: str, ports: Sequence[tuple[int, int]], mark: int, queue_out: int, queue_in: int) -> str:
    """Our chain in the tables raw and mangle, as input for iptables-restore --noflush."""
    ranges = [f"{low}:{high}" for low, high in ports]
    outward = [
        f"-A {_CHAIN} -s {service}/32 -p tcp --sport {each} -m mark ! --mark {mark:#x}/{mark:#x} "
        f"-j NFQUEUE --queue-num {queue_out}"
        for each in ranges
    ]
    inward = [f"-A {_CHAIN} -d {service}/32 -p tcp --dport {each} -j NFQUEUE --queue-num {queue_in}" for each in ranges]
    return "\n".join(
        (
            *("*raw", f":{_CHAIN} - [0:0]", *outward, "COMMIT"),
            *("*mangle", f":{_CHAIN} - [0:0]", *inward, "COMMIT", ""),
        )
    )


def iptables_variant() -> str:
    """The iptables to divert with: the legacy kind where the kernel has it.

    The daemon and the host normally use the nft kind. In tables of our own no flush of their rules changes what the
    host's TCP looks like, and an accepted packet does not skip the rest of their raw table, where NOTRACK may be.
    """
    return "iptables-legacy" if _run("iptables-legacy", "-w", "-t", "raw", "-S").returncode == 0 else "iptables"


def _run(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as problem:
        return subprocess.CompletedProcess(command, 127, "", str(problem))


def install_rules(iptables: str, rules: str) -> None:
    """Put the rules in force; those left by a killed run are replaced without a gap. Raises `CommandError`."""
    done = _run(f"{iptables}-restore", "-w", "--noflush", stdin=rules)
    for table, hook in _HOOKS:
        if done.returncode == 0 and _run(iptables, "-w", "-t", table, "-C", hook, "-j", _CHAIN).returncode:
            done = _run(iptables, "-w", "-t", table, "-A", hook, "-j", _CHAIN)
    if done.returncode:
        raise CommandError(f"{iptables} refused the scrambler's rules ({done.stderr.strip()}): is this run as root?")


def remove_rules(iptables: str) -> None:
    """Take the rules away, if they are there."""
    for table, hook in _HOOKS:
        for action in (("-D", hook, "-j", _CHAIN), ("-F", _CHAIN), ("-X", _CHAIN)):
            _run(iptables, "-w", "-t", table, *action)


def parse_ports(text: str) -> tuple[tuple[int, int], ...]:
    """`80,7000:7099` as inclusive ranges. Raises ValueError."""
    ports = []
    for part in text.split(","):
        low, _, high = part.partition(":")
        ports.append((int(low), int(high or low)))
    if not all(0 < low <= high < 65536 for low, high in ports):
        raise ValueError(f"not a list of ports: {text}")
    return tuple(ports)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def number(text: str) -> int:
        return int(text, 0)

    parser = argparse.ArgumentParser(prog="scramble", description="Shift a host's TCP numbers (lab only).")
    parser.add_argument("--service", required=True, help="IPv4 address")
    parser.add_argument("--ports", required=True, type=parse_ports, help="for instance 80,7000:7099")
    parser.add_argument("--seq-add", type=number, default=0, help="added to SEQ")
    parser.add_argument("--ts-add", type=number, default=0, help="added to TSval")
    parser.add_argument(
        "--wrap-after-bytes", type=number, help="instead of --seq-add: SEQ wraps this far into each flow"
    )
    parser.add_argument("--wrap-after-ms", type=number, help="instead of --ts-add: TSval wraps this late in each flow")
    parser.add_argument("--queue-out", required=True, type=int)
    parser.add_argument("--queue-in", required=True, type=int)
    parser.add_argument("--rules", choices=("install", "none"), default="install")
    parser.add_argument(
        "--inject-mark", type=number, default=DEFAULT_MARK, help="packets with it are left out, outward"
    )
    parser.add_argument("--ready-fd", type=int, help="a byte is written to it when everything is in place")
    parser.add_argument("--ready-file", type=Path, help="made when everything is in place")
    return parser.parse_args(argv)


def _tell_ready(options: argparse.Namespace) -> None:
    if options.ready_file is not None:
        options.ready_file.touch()
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"R")
        os.close(options.ready_fd)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit code 0, or 2 with a message."""
    options = _arguments(argv)
    shifts = Shifts((options.seq_add & MASK, options.ts_add & MASK), options.wrap_after_bytes, options.wrap_after_ms)
    stop, wake = socket.socketpair()
    wake.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the byte in the wake-up socket is the message
    signal.set_wakeup_fd(wake.fileno())
    iptables = iptables_variant()
    scrambler = None
    try:
        scrambler = Scrambler(shifts, options.queue_out, options.queue_in)
        if options.rules == "install":
            rules = ruleset(options.service, options.ports, options.inject_mark, options.queue_out, options.queue_in)
            install_rules(iptables, rules)
        _tell_ready(options)
        gc.freeze()
        scrambler.run(stop)
    except CommandError as problem:
        print(f"scramble: {problem}", file=sys.stderr)
        return 2
    finally:
        if options.rules == "install":
            remove_rules(iptables)
        if scrambler is not None:
            scrambler.close()
            with contextlib.suppress(OSError):
                print(f"scramble: {scrambler.counts}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
