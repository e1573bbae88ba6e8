"""What the running daemon knows: of this host, of the peer, and of the connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.operator.doctor.report import Result
from nfq_failover.operator.status import is_protected, restart_due

_WEIGHTS: Final = {weight.label: weight for weight in Weight}
_REASONS_SHOWN: Final = 5


def results(status: dict[str, Any]) -> list[Result]:
    """The status in the doctor's form."""
    return [_pair(status), *_hosts(status), *_tap(status), *_version(status), _connections(status)]


def _pair(status: dict[str, Any]) -> Result:
    name, peer = status["name"], status["peer"]["name"]
    why = f"while it is so, a failure of one of {name} and {peer} ends connections"
    about = f"{name} is {status['role']}, {status['state']}, epoch {status['epoch']}"
    if is_protected(status):
        return Result("pair", why, about)
    weight = _WEIGHTS.get(status["state"], Weight.UNPROTECTED)
    reason = f": {status['reason']}" if status["reason"] else ""
    return Result("pair", why, "", (Concern("pair", weight, f"{about}{reason}", "see the findings below"),))


def _hosts(status: dict[str, Any]) -> list[Result]:
    own, peer = status["name"], status["peer"]["name"]
    why = "a takeover needs it; docs/operate/failures.md has each code"
    found: dict[str, list[Concern]] = {own: [], peer: []}
    for each in status.get("concerns", ()):
        concern = Concern(each["code"], _WEIGHTS[each["weight"]], f"{each['what']} [{each['code']}]", each["cure"])
        found.setdefault(each["host"] or own, []).append(concern)
    # The same words of both are listed once, as this host's.
    seen = f"its daemon finds nothing wrong{' but what this one does' if found[own] and not found[peer] else ''}"
    if status["peer"]["lost"]:
        gone = f"{peer} is silent: what is wrong there can't be told"
        found[peer].append(Concern("peer-silent", Weight.UNPROTECTED, gone, f"run the doctor on {peer}"))
    return [Result(host, why, seen, tuple(concerns)) for host, concerns in found.items()]


def _version(status: dict[str, Any]) -> Iterator[Result]:
    """Whether the daemon is the program that is installed."""
    running = (status.get("versions") or {"own": ""})["own"]
    if due := restart_due(running):
        why = "what the daemon starts anew, such as its rules script, is the installed version's"
        finding = Concern("restart-due", Weight.WARNING, due, "systemctl restart nfq-failover, on the backup first")
        yield Result("version", why, "", (finding,))


def _tap(status: dict[str, Any]) -> Iterator[Result]:
    """What is wrong with the tap is among the concerns of the host that should hear it."""
    sent, came = (status.get("counters", {}).get(f"tap-probes-{name}", 0) for name in ("sent", "came"))
    if sent:
        why = "what clients send must reach the backup, too"
        yield Result("tap", why, f"{came} of {sent} probes have come by it since the daemon's start")


def _connections(status: dict[str, Any]) -> Result:
    rows = status["connections"]
    reasons = Counter(row["reason"] for row in rows if not row["protected"])
    why = "these end with the host that serves them"
    findings = tuple(
        Concern("unprotected-connections", Weight.WARNING, f"{count} of {len(rows)} are not protected: {reason}")
        for reason, count in reasons.most_common(_REASONS_SHOWN)
    )
    return Result("connections", why, f"all {len(rows)} are protected" if rows else "there are none", findings)
