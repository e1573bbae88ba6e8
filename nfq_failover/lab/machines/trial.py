"""Fault after fault on two virtual machines, without a person: power-off, kernel panic, hung daemon, cut network, and
an orderly reboot of the machine that serves.

Run as `script/vagrant-test`. Each run: a transfer through the service address, the fault in its middle, the survivor
goes on; then the other machine is brought back, and is the backup of the next run. So each is the primary in turn.
Every run is a line in OUTPUT/runs.jsonl, written at once; OUTPUT/report.md is the table of all of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible
from nfq_failover.lab.machines import numbers, timeline
from nfq_failover.lab.machines.machines import MACHINES, TAPS, Machines, other
from nfq_failover.lab.machines.report import Run, report
from nfq_failover.lab.measure.verdict import measure, read_capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.testbed import wait_until
from nfq_failover.lab.workloads.__main__ import parse_size

FAULTS: Final = ("off", "panic", "hang", "cut", "reboot")
WORKLOADS: Final = ("bulk", "upload", "echo")
_BOOT_S: Final = 900.0
# The fault comes this long after the connection is known to be protected.
_EARLIEST_S, _LATEST_S = 0.5, 4.0


@dataclass(frozen=True, slots=True)
class Options:
    """`size`: bytes of one exchange of bulk and upload, `rate`: exchanges per second at most; `seconds`: how long a
    transfer lasts without the pause."""

    count: int
    faults: tuple[str, ...]
    workloads: tuple[str, ...]
    taps: tuple[str, ...]
    size: int
    seconds: float
    rate: float
    seed: int
    output: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does. `wait_s`: from the protected connection to the fault."""

    number: int
    fault: str
    workload: str
    tap: str
    wait_s: float


def plans(options: Options) -> Iterator[Plan]:
    """Plans without end: all faults with all workloads under one tap, then the next. The seed decides the moments."""
    number = 0
    while True:
        for tap in options.taps:
            # Diagonally: a short run meets every fault and every workload.
            for step in range(len(options.faults) * len(options.workloads)):
                number += 1
                yield Plan(
                    number,
                    options.faults[step % len(options.faults)],
                    options.workloads[
                        (step % len(options.faults) + step // len(options.faults)) % len(options.workloads)
                    ],
                    tap,
                    random.Random(f"{options.seed}/{number}").uniform(_EARLIEST_S, _LATEST_S),
                )


class Trials:
    """The runs, one after the other, on machines that need not be up."""

    def __init__(self, machines: Machines, options: Options) -> None:
        self.machines = machines
        self.options = options
        self.log = options.output / "vagrant.log"

    def all(self) -> list[Run]:
        """Every run that could be begun. Raises LabError if the pair does not come together any more."""
        self.options.output.mkdir(parents=True, exist_ok=True)
        done: list[Run] = []
        self._bring_up()
        for plan in islice(plans(self.options), self.options.count):
            run = self.one(plan)
            done.append(run)
            with (self.options.output / "runs.jsonl").open("a") as file:
                file.write(json.dumps(asdict(run)) + "\n")
            print(run.line(), flush=True)
            (self.options.output / "report.md").write_text(report(done))
        return done

    def _bring_up(self) -> None:
        down = [
            machine for machine in MACHINES if not self.machines.exists(machine) or not self.machines.is_on(machine)
        ]
        if down:
            print(f"vagrant up {' '.join(down)} (see {self.log})", flush=True)
            self.machines.up(*down, log=self.log)

    def one(self, plan: Plan) -> Run:
        """One fault and the way back. Raises LabError if the way back is not found."""
        machines = self.machines
        machines.use_tap(plan.tap)
        primary = machines.wait_protected(_BOOT_S)
        survivor = other(primary)
        numbers.watch(machines, survivor)
        kernels = ", ".join(machines.run(machine, "uname -r").strip() for machine in (primary, survivor))
        directory = self.options.output / f"run-{plan.number}"
        directory.mkdir(exist_ok=True)
        arguments = [plan.workload, "--port", "7000", "--size", str(self.options.size)]
        arguments += [
            "--seconds",
            str(self.options.seconds),
            "--rate",
            str(self.options.rate),
            "--stall-timeout",
            "120",
        ]
        path = directory / "client.pcap"
        with machines.capture(path) as capture:
            with machines.start_workload(arguments) as workload:
                wait_until(
                    lambda: machines.protected_connections(primary) > 0, 150, "The connection was not protected", 0.25
                )
                time.sleep(plan.wait_s)
                moment = self._strike(plan.fault, primary)
                result = workload.result(self.options.seconds + 300)
            taken_over = time.time()
        fenced = plan.fault != "reboot" and self._fenced(primary)
        serves = machines.serving(survivor)
        packets = read_capture(path, machines.service)
        measured = measure(packets, capture.counts.missing if capture.counts else None)
        found = self._numbers(survivor, path, directory)
        times = self._timeline(survivor, directory)
        back_began = moment if plan.fault == "reboot" else time.time()
        self._bring_back(primary, plan.fault)
        protected_by = other(machines.wait_protected(_BOOT_S))
        run = Run(
            number=plan.number,
            fault=plan.fault,
            workload=plan.workload,
            tap=plan.tap,
            primary=primary,
            survivor=serves,
            backup_again=protected_by,
            ok=bool(result["ok"]),
            error=result.get("error"),
            bytes=int(result["bytes"]),
            wrong_bytes=int(result["wrong_bytes"]),
            sha256=result.get("sha256"),
            silence_ms=result.get("longest_silence_ms"),
            stall_ms=measured.stall.ms if measured.stall else None,
            problems=measured.problems(),
            fenced=fenced,
            seq_difference=[found[port].seq for port in sorted(found)],
            tsval_difference=[found[port].tsval for port in sorted(found)],
            kernels=kernels,
            struck_at=moment,
            in_time=moment < float(result.get("started", 0)) + float(result.get("duration_s", 0)) or not result["ok"],
            transfer_after_s=round(taken_over - moment, 1),
            back_after_s=round(time.time() - back_began, 1),
            fence_ms=times.fence_ms,
            switch_ms=times.switch_ms,
            heard_ms=times.heard_ms,
        )
        if run.good:
            for capture_file in directory.glob("*.pcap"):
                capture_file.unlink()  # large, and there is nothing to be found in it
        return run

    def _strike(self, fault: str, primary: str) -> float:
        """The fault; the Unix time at which it began, as far as this host can know."""
        if fault == "off":
            return self.machines.crash(primary)
        if fault == "cut":
            return self.machines.cut(primary)
        moment = time.time()
        if fault == "reboot":
            with suppress(LabError):  # the connection may be gone before the answer
                self.machines.run(primary, "sudo systemctl reboot", timeout_s=60)
            self.machines.hang_up(primary)
        elif fault == "panic":
            # It must not reboot by itself: what lives after a panic is what this is about. The answer may never come.
            with suppress(LabError):
                self.machines.run(
                    primary, "sudo sh -c 'echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger'", timeout_s=20
                )
        else:
            self.machines.run(
                primary, "sudo kill -STOP $(systemctl show --property=MainPID --value nfq-failover)", timeout_s=60
            )
        return moment

    def _fenced(self, primary: str) -> bool:
        """Whether the old primary is off, by whoever has done it."""
        with suppress(LabError):
            wait_until(lambda: not self.machines.is_on(primary), 60, f"{primary} was not turned off", 0.25)
            return True
        return False

    def _numbers(self, survivor: str, client: Path, directory: Path) -> dict[int, numbers.Difference]:
        """The difference of the kernels' numbers of each connection of this run."""
        numbers.unwatch(self.machines, survivor)
        own = numbers.read(self.machines, survivor, directory / "replica.pcap")
        of_service = f"tcp.flags.syn == 1 and tcp.flags.ack == 1 and ip.src == {self.machines.service}"
        return numbers.differences(numbers.openings(client, of_service), own)

    def _timeline(self, survivor: str, directory: Path) -> timeline.Timeline:
        """What the survivor's log says of the takeover; the log stays in `directory`."""
        with suppress(LabError):
            text = self.machines.run(survivor, "sudo journalctl --no-pager -o short-iso-precise -u nfq-failover -n 200")
            (directory / f"{survivor}.log").write_text(text)
            return timeline.parse(text.splitlines())
        return timeline.Timeline()

    def _bring_back(self, machine: str, fault: str) -> None:
        if fault == "reboot":
            return  # it is on its way
        if fault == "cut":
            self.machines.mend(machine)
        if self.machines.is_on(machine):
            # It was not fenced: it goes through a power-off all the same, so that the next run begins like any other.
            self.machines.crash(machine)
        # The power button, not `vagrant up`: nobody but the machine itself does anything for its role.
        self.machines.restore(machine)


def _words(choices: Sequence[str]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        if not set(words) <= set(choices):
            raise argparse.ArgumentTypeError(f"choose of {', '.join(choices)}")
        return words

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; exit code: 0 all runs good, 1 some bad, 2 could not be run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="script/vagrant-test", description=__doc__)
    parser.add_argument(
        "--count", type=int, default=len(FAULTS) * len(WORKLOADS) * len(TAPS), help="runs (30: each once)"
    )
    parser.add_argument("--faults", type=_words(FAULTS), default=FAULTS, help=f"of {','.join(FAULTS)}")
    parser.add_argument("--workloads", type=_words(WORKLOADS), default=WORKLOADS, help=f"of {','.join(WORKLOADS)}")
    parser.add_argument("--taps", type=_words(TAPS), default=TAPS, help=f"of {','.join(TAPS)}")
    parser.add_argument("--size", type=parse_size, default=1_000_000, help="of one exchange of bulk and upload (1M)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a transfer lasts (20)")
    parser.add_argument("--rate", type=float, default=20.0, help="exchanges per second, at most (20)")
    parser.add_argument("--seed", type=int, default=1, help="decides the moments of the faults")
    parser.add_argument("--output", type=Path, default=Path("vagrant-output"))
    options = Options(**vars(parser.parse_args(argv)))
    try:
        with interruptible(), Machines() as machines:
            runs = Trials(machines, options).all()
    except (CommandError, LabError) as error:
        print(f"The test could not go on: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        print("Interrupted. The machines are as they are: vagrant status", file=sys.stderr)
        return EXIT_CODE
    print(f"\n{sum(run.good for run in runs)} of {len(runs)} good; {options.output}/report.md has the table.")
    return 0 if all(run.good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
