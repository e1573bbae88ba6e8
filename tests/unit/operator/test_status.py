"""`nfq-failover status` for people: line by line."""

from __future__ import annotations

import re
from typing import Any

from nfq_failover import __version__
from nfq_failover.operator.status import is_protected, lately, lines


def row(port: int, **found: Any) -> dict[str, Any]:
    ends = {"client": f"10.77.0.1:{port}", "server": "10.77.0.100:80"}
    return {**ends, "protected": True, "reason": "", "lag_bytes": 12, "differences": 0, **found}


def status(*rows: dict[str, Any], **found: Any) -> dict[str, Any]:
    heartbeat = {"interval_ms": 50, "bandwidth_bps": 18080}
    peer = {"name": "b", "address": "10.77.0.3:7766", "lost": True, "heartbeat": heartbeat}
    pair = {"name": "a", "role": "primary", "state": "unprotected", "reason": "", "epoch": 3}
    return {**pair, "peer": peer, "connections": list(rows), **found}


def test_a_pair_without_connections_takes_three_lines() -> None:
    assert list(lines(status(reason="the backup is lost"), 20)) == [
        "a: primary, unprotected, epoch 3  (the backup is lost)",
        "peer b at 10.77.0.3:7766: silent, heartbeat every 50 ms (18.1 kbit/s each way)",
        "0 connections, 0 protected",
    ]


def test_each_connection_says_whether_it_is_protected_and_why_not() -> None:
    shown = status(row(1000), row(2000, protected=False, reason="too old"), row(3000, differences=2))
    total, *rows = list(lines(shown, 20))[2:]
    assert total == "3 connections, 2 protected"
    assert [line[:62] for line in rows] == [
        f"  10.77.0.1:{port}         10.77.0.100:80         lag       12 B" for port in (1000, 2000, 3000)
    ]
    assert [line[62:] for line in rows] == [
        "  protected",
        "  UNPROTECTED: too old",
        "  protected; the hosts' output differed in 2 places",
    ]


def test_a_daemon_that_is_not_the_program_that_is_installed_is_told() -> None:
    due = f"version {__version__} is installed, and 0.0.9 runs: restart the daemon, on the backup first"
    assert due in list(lines(status(versions={"own": "0.0.9", "peer": "0.0.9"}), 20))
    assert not any("installed" in line for line in lines(status(versions={"own": __version__, "peer": "0.0.9"}), 20))


def test_what_is_not_shown_is_counted() -> None:
    shown = list(lines(status(*(row(port) for port in range(5))), 2))
    assert len(shown) == 3 + 2 + 1
    assert shown[-1] == "  ... and 3 more (--rows)"


def test_what_is_wrong_stands_above_the_connections_with_its_cure() -> None:
    own = {"weight": "unprotected", "what": "no room", "cure": "make room", "host": "", "for_s": 2.7}
    theirs = {"weight": "warning", "what": "a rule", "cure": "", "host": "b", "for_s": 60.0}
    assert list(lines(status(concerns=[own, theirs]), 20))[2:-1] == [
        "unprotected: no room, for 3 s",
        "    what to do: make room",
        "warning: a rule (said by b), for 60 s",
    ]


def test_monitoring_is_content_with_a_protected_pair_only() -> None:
    states = ("protected", "shadowing", "degraded", "unprotected", "waiting", "backup lost")
    assert [is_protected(status(state=state)) for state in states] == [True, True, False, False, False, False]


def test_what_went_wrong_stands_there_with_its_time() -> None:
    once = {
        "what": "connection lost its replica",
        "reason": "diverged",
        "client": "10.77.0.1:9",
        "count": 1,
        "ago_s": 5,
    }
    often = {"what": "takeover", "reason": "power", "client": "", "count": 3, "ago_s": 0}
    first, second = list(lines(status(mishaps=[once, often]), 20))[2:-1]
    assert re.fullmatch(
        r"went wrong at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: connection lost its replica \(10\.77\.0\.1:9\): diverged", first
    )
    assert second.startswith("went wrong, 3 times, at last at ") and second.endswith(": takeover: power")


def test_what_happened_lately_the_latest_first() -> None:
    serves = {"role": "primary", "state": "unprotected", "epoch": 3, "reason": "the backup is lost", "ago_s": 0.0}
    began = {"role": "joining", "state": "waiting", "epoch": 2, "reason": "", "ago_s": 5.0}
    title, *told = lately(status(happenings=[serves, began]))
    assert title == "lately:"
    assert [re.sub(r"\d+-\d+-\d+ [\d:]+", "TIME", line) for line in told] == [
        "  TIME  primary, unprotected, epoch 3  (the backup is lost)",
        "  TIME  joining, waiting, epoch 2",
    ]
    assert list(lately(status(happenings=[began]))) == [], "the second line of the status says that"
