"""Run seeds: `python -m tests.sim --seed N [--count M]`. Prints each seed with its trace hash; the same seed gives the
same hash. Ends with exit code 1 if any seed fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from .generate import from_seed
from .world import World


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Seeded simulation of a pair of servers.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print the scenario, the log and the traceback")
    arguments = parser.parse_args()
    failed = 0
    began = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        scenario = from_seed(seed)
        world = World(scenario)
        if arguments.verbose:
            print(scenario)
        try:
            result = world.run()
        except Exception as error:
            failed += 1
            result = f"FAILED {type(error).__name__}: {error}"
            if arguments.verbose:
                traceback.print_exc()
        if arguments.verbose:
            logs = [(at, host.name, log) for host in world.hosts.values() for at, log in host.logs]
            for at, name, log in sorted(logs, key=lambda entry: entry[0]):
                print(f"{at:.4f} {name} {log.event} {log.fields}")
        print(f"seed {seed} {scenario.kind} {result} packets={world.packets} time={world.clock.now - 1000:.3f}")
    print(f"{arguments.count - failed} of {arguments.count} good in {time.perf_counter() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
