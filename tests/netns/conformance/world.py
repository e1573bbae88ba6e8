"""Where the conformance cases run: a plain lab, a protected one, and that one with a takeover under all cases."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from nfq_failover.errors import CommandError
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.wire.seqnum import MASK
from tests.netns.conformance.case import Case, Transcript
from tests.netns.conformance.client import End, Wire
from tests.support.connection_world import CALM, SERVER_PROGRAM, STATELESS
from tests.support.lab_world import PORT, eventually, fresh_name

SEED = 1  # constant shifts on both hosts, so that an ICMP error can quote what the kernel knows
DEADLINE_S = 60.0


class Conformance:
    """A lab and its wire."""

    def __init__(self, directory: Path, plain: bool) -> None:
        self.lab = Lab(fresh_name())
        self.plain = plain
        self.directory = directory
        self.serving = "a"
        self.lab.up(Options(rate="100mbit", heartbeat_ms=CALM, plain=plain, settings=STATELESS), SEED)
        try:
            self._equip()
        except BaseException:
            self.lab.down()
            raise

    def _equip(self) -> None:
        for node in TWO_HOSTS.hosts:
            # What the client sees is then what a wire carries: no segment longer than an MTU.
            with netns.control_socket(namespace(self.lab.name, node)) as control:
                netns.cut_segments_before_the_wire(control, "eth0")
        self.lab.serve([sys.executable, SERVER_PROGRAM, "--port", str(PORT)])
        self.wire = Wire(namespace(self.lab.name, TWO_HOSTS.client))

    def down(self) -> None:
        """Take it away."""
        self.wire.close()
        with contextlib.suppress(CommandError):
            self.lab.down()

    def quoted(self, seq: int) -> int:
        """The number that the serving host's kernel knows a raw one by: the lab's scrambler leaves ICMP alone."""
        if self.plain:
            return seq
        plan = nodes.scramble_plan(TWO_HOSTS, SEED, self.serving, 1)
        assert "wrap-after-bytes" not in plan
        return (seq - plan["seq-add"]) & MASK

    def run(self, cases: Sequence[Case], takeover: bool = False) -> dict[str, Transcript]:
        """All cases, at once but for those that must be alone. A failed one's transcript is its traceback."""
        found = self._run([case for case in cases if not case.alone], takeover)
        for case in cases:
            if case.alone and not takeover:
                found |= self._run([case], takeover)
                self.lab.run(self.serving, ["ip", "route", "flush", "cache"])  # path MTUs
        return found

    def _run(self, cases: Sequence[Case], takeover: bool) -> dict[str, Transcript]:
        """These at once. A case that fails gives its traceback as its transcript."""
        crossing = Crossing(len(cases)) if takeover else None
        found: dict[str, Transcript] = {}

        def run(case: Case) -> None:
            here = Here(self, crossing)
            try:
                found[case.name] = case.run(here)
            except Exception:
                found[case.name] = ["failed", traceback.format_exc()]
            finally:
                here.done()

        threads = [threading.Thread(target=run, args=(case,), name=case.name, daemon=True) for case in cases]
        for thread in threads:
            thread.start()
        if crossing is not None:
            self._take_over(crossing)
        for thread in threads:
            thread.join(DEADLINE_S)
        assert not [thread.name for thread in threads if thread.is_alive()]
        return found

    def _take_over(self, crossing: Crossing) -> None:
        ends = crossing.wait()
        ports = {f":{end.source_port}" for end in ends}

        def protected() -> bool:
            rows = self.lab.status()["connections"]
            return ports <= {":" + row["client"].rpartition(":")[2] for row in rows if row["protected"]}

        try:
            assert ends
            assert eventually(protected), self.lab.status()["connections"]
            crashed = str(self.lab.crash("primary")["node"])
            self.serving = TWO_HOSTS.other(crashed)
            assert eventually(lambda: self.lab.status()["nodes"][self.serving]["state"] == "unprotected")
        finally:
            crossing.open.set()


class Crossing:
    """Where all cases meet before the takeover."""

    def __init__(self, count: int) -> None:
        self.open = threading.Event()
        self._ends: list[End] = []
        self._missing = count
        self._changed = threading.Condition()

    def arrive(self, end: End | None) -> None:
        """A case has come so far, or has ended before (None)."""
        with self._changed:
            self._missing -= 1
            self._ends += [end] if end is not None else []
            self._changed.notify_all()

    def wait(self) -> list[End]:
        """Until all are there."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._missing <= 0, DEADLINE_S)
            return self._ends


class Here:
    """What one case sees of the world."""

    def __init__(self, world: Conformance, crossing: Crossing | None) -> None:
        self._world = world
        self._crossing = crossing
        self._arrived = False

    def end(self, port: int | None = None, source_port: int | None = None) -> End:
        """A client's end."""
        return self._world.wire.end(port or PORT, source_port)

    def cross(self, end: End) -> None:
        """Returns behind the takeover, if there is one."""
        if self._crossing is not None:
            self._arrived = True
            self._crossing.arrive(end)
            assert self._crossing.open.wait(DEADLINE_S)
        end.tick()

    def done(self) -> None:
        """The case has ended."""
        if self._crossing is not None and not self._arrived:
            self._crossing.arrive(None)

    def gate(self) -> Path:
        """A file that does not exist yet."""
        return self._world.directory / f"gate-{id(self)}-{threading.get_ident()}"

    def quoted(self, seq: int) -> int:
        """A raw sequence number as the serving kernel knows it."""
        return self._world.quoted(seq)


@contextlib.contextmanager
def conformance(directory: Path, *, plain: bool) -> Iterator[Conformance]:
    """A lab for cases."""
    made = Conformance(directory, plain)
    try:
        yield made
    finally:
        made.down()
