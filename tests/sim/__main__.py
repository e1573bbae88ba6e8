"""Run scenarios: `python -m tests.sim --seed N [--count M]`, or one that has a name.

The same seed gives the same trace hash. `--hashes FILE` writes down the hashes of many seeds: a change that must not
alter behaviour leaves that file as it was. Ends with exit code 1 if any run fails.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from . import boundaries
from .generate import KINDS, from_seed
from .runner import commit, reproduce, run, sweep
from .scenario import Scenario, from_json, named, to_json


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Seeded simulation of a pair of servers.")
    parser.add_argument("--seed", type=int, help="the first seed (default: one at random)")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--kind", default="", choices=KINDS, metavar="KIND", help="of this kind, not of the seeds' own")
    parser.add_argument("--jobs", type=int, default=0, help="how many cores, with a progress bar (script/sim: all)")
    parser.add_argument("--hashes", type=Path, metavar="FILE", help="write each seed's trace hash into FILE, by seed")
    parser.add_argument("--verbose", action="store_true", help="print the scenario, the log and the traceback")
    parser.add_argument("--name", help="run the scenario of this name, or file, instead of a seed's")
    parser.add_argument("--list", action="store_true", help="list the scenarios that have a name")
    parser.add_argument("--save", metavar="NAME", help="give the seed's scenario a name; --about says what it shows")
    parser.add_argument("--about", default="")
    parser.add_argument("--boundaries", metavar="HOST", help="let it die at every effect in turn")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(named()))
        return 0
    seed = random.SystemRandom().randrange(1 << 31) if arguments.seed is None else arguments.seed
    if arguments.jobs or arguments.hashes:
        print(f"seeds {seed} to {seed + arguments.count - 1}, commit {commit()}", flush=True)
        seeds = range(seed, seed + arguments.count)
        return 1 if sweep(seeds, max(arguments.jobs, 1), arguments.kind, arguments.hashes) else 0
    scenario = _named(arguments.name) if arguments.name else from_seed(seed, arguments.kind)
    if arguments.save:
        path = Path(__file__).parent / "scenarios" / f"{arguments.save}.json"
        path.write_text(to_json(scenario, arguments.about))
        print(path)
        return 0
    if arguments.boundaries:
        if arguments.boundaries not in scenario.hosts:
            parser.error(f"the scenario has no host {arguments.boundaries!r}, but {', '.join(scenario.hosts)}")
        return boundaries.main(scenario, arguments.boundaries)
    seeds = range(seed, seed + arguments.count)
    made = [scenario] if arguments.name else (from_seed(s, arguments.kind) for s in seeds)
    return _one_by_one(made, arguments)


def _named(name: str) -> Scenario:
    path = named().get(name, Path(name))
    try:
        return from_json(path.read_text())
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"no scenario {name}: {error}; see --list")


def _one_by_one(scenarios: Iterable[Scenario], arguments: argparse.Namespace) -> int:
    failed = done = 0
    for scenario in scenarios:
        outcome = run(scenario, arguments.verbose)
        done += 1
        failed += bool(outcome.failure)
        if outcome.details and arguments.verbose:
            print(outcome.details)
        print(outcome.line, flush=True)
        if outcome.failure and not arguments.name:
            print(f"  {reproduce(outcome.seed, arguments.kind)}")
    print(f"{done - failed} of {done} good")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
