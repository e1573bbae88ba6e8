"""`nfq-failover status`: who serves, what is protected, and why not."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from nfq_failover import __version__
from nfq_failover.operator.daemon import add_config_option, ask_daemon


def add_parser(subparsers: Any) -> None:
    """Add the command `status`."""
    about = "who serves, what is protected, and why not"
    parser = subparsers.add_parser("status", help=about, description=about)
    parser.set_defaults(run=run)
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--check", action="store_true", help="exit code for monitoring: 0 protected, 1 anything less, 2 no daemon"
    )
    parser.add_argument("--rows", type=int, default=20, help="how many connections to list (20)")


def run(args: argparse.Namespace) -> int:
    """Print the status. Returns the exit code."""
    status = ask_daemon(args, "status")
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        for line in (*lines(status, args.rows), *(() if args.check else lately(status))):
            print(line)
    return 0 if not args.check or is_protected(status) else 1


def is_protected(status: dict[str, Any]) -> bool:
    """Whether a takeover now would keep the connections that are called protected, as far as this host knows."""
    return status["state"] in ("protected", "shadowing")


def lines(status: dict[str, Any], most: int) -> Iterator[str]:
    """The status as text for people, with `most` connections at most."""
    reason = f"  ({status['reason']})" if status["reason"] else ""
    peer = status["peer"]
    heartbeat = peer["heartbeat"]
    yield f"{status['name']}: {status['role']}, {status['state']}, epoch {status['epoch']}{reason}"
    yield (
        f"peer {peer['name']} at {peer['address']}: {'silent' if peer['lost'] else 'alive'}, heartbeat every "
        f"{heartbeat['interval_ms']} ms ({heartbeat['bandwidth_bps'] / 1000:.1f} kbit/s each way)"
    )
    yield from _history(status)
    for concern in status.get("concerns", ()):
        yield from _concern(concern)
    yield from _mishaps(status.get("mishaps", ()))
    rows = status["connections"]
    yield f"{len(rows)} connections, {sum(bool(row['protected']) for row in rows)} protected"
    for row in rows[:most]:
        yield f"  {row['client']:<22} {row['server']:<22} lag {row['lag_bytes']:>8} B  {_protection(row)}"
    if len(rows) > most:
        yield f"  ... and {len(rows) - most} more (--rows)"


def _history(status: dict[str, Any]) -> Iterator[str]:
    """Since when it is so, the versions, and how the last takeover went."""
    happenings = status.get("happenings") or ()
    versions = status.get("versions") or {"own": "", "peer": ""}
    said = [f"so since {clock(happenings[0]['ago_s'])}"] if happenings else []
    if versions["own"]:
        its = versions["peer"] or "not told"
        said.append(f"version {versions['own']}" + ("" if its == versions["own"] else f", the peer's: {its}"))
    if said:
        yield "; ".join(said)
    if due := restart_due(versions["own"]):
        yield due
    took = status.get("takeover")
    if took:
        yield last_takeover(took)


def lately(status: dict[str, Any]) -> Iterator[str]:
    """The last changes of this host's role, state and epoch, the latest first: ten at most."""
    happenings = status.get("happenings") or ()
    if len(happenings) > 1:
        yield "lately:"
        for each in happenings:
            reason = f"  ({each['reason']})" if each["reason"] else ""
            yield f"  {clock(each['ago_s'])}  {each['role']}, {each['state']}, epoch {each['epoch']}{reason}"


def last_takeover(took: dict[str, Any]) -> str:
    """One line of what became of the connections, and when each step was over."""
    known = took["connections"] + took["reset"]
    went_on = f"{took['connections']} of {known} connections went on" if known else "there were no connections"
    return f"last takeover at {clock(took['ago_s'])}: {went_on}; {phases(took)}"


def restart_due(running: str) -> str:
    """What to say of a daemon of another version than this program's, which was installed beneath it; "" if it is none.

    What such a daemon starts anew, its rules script for one, is the other version's.
    """
    if running in ("", __version__):
        return ""
    return f"version {__version__} is installed, and {running} runs: restart the daemon, on the backup first"


def clock(ago_s: float) -> str:
    """The time of day, so many seconds ago."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - ago_s))


def phases(took: dict[str, Any]) -> str:
    """The steps of a takeover, with the milliseconds since the peer was heard for the last time."""
    return ", ".join(what if ms is None else f"{what} after {ms:.0f} ms" for what, ms in took["phases"])


def _concern(concern: dict[str, Any]) -> Iterator[str]:
    where = f" (said by {concern['host']})" if concern["host"] else ""
    yield f"{concern['weight']}: {concern['what']}{where}, for {concern['for_s']:.0f} s"
    if concern["cure"]:
        yield f"    what to do: {concern['cure']}"


def _mishaps(mishaps: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What went wrong lately, with the time of day."""
    for each in mishaps:
        at = clock(each["ago_s"])
        whom = f" ({each['client']})" if each["client"] else ""
        often = f", {each['count']} times, at last" if each["count"] > 1 else ""
        yield f"went wrong{often} at {at}: {each['what']}{whom}: {each['reason']}"


def _protection(row: dict[str, Any]) -> str:
    if not row["protected"]:
        return f"UNPROTECTED: {row['reason']}"
    if row.get("differences"):
        return f"protected; the hosts' output differed in {row['differences']} places"
    return "protected"
