"""The witness's only decision: which of two hosts may act alone. See core/pair/pact.py for what follows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grant:
    """The latest decision for a pair of hosts: all pacts up to `number` are `holder`'s, or nobody's."""

    number: int
    holder: str


def decide(last: Grant | None, host: str, low: int, high: int) -> Grant | None:
    """The decision on `host`, whose peer may hold any of the pacts from `low` to `high`; None: it is denied.

    A pact is granted to one host only. It may ask again, and gets the same answer. Questions that come late, twice or
    out of order do no harm: nobody returns to a pact that the witness has been asked about.
    """
    if last is None or last.number < low:
        return Grant(high, host)
    if last.holder == host:
        return Grant(max(high, last.number), host)
    return None
