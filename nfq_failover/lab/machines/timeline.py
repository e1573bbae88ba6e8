"""Where the silence of a takeover went, from the survivor's log: a fence may take longer than all the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

_JOURNAL: Final = r"[+-]\d\d:?\d\d \S+ \S+:"  # what `journalctl -o short-iso-precise` has between time and message
_MOMENT: Final = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{6}})(?:Z|{_JOURNAL}) \[\w+ *\] (.*)")
_FIELD: Final = re.compile(r"(\w+)=('[^']*'|\S+)")


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last takeover of a log, in milliseconds; None for what is not in it.

    `fence_ms`: from the order to the fence agent until its answer that the other one is off; a primary that says that
    it leaves needs none. `switch_ms`: from there until the connections are taken over. `heard_ms`: from the takeover
    until a client's packet for the service came in; only with the clone tap, where clients have to learn a new MAC.
    """

    fence_ms: float | None = None
    switch_ms: float | None = None
    heard_ms: float | None = None


def parse(lines: Iterable[str]) -> Timeline:
    """Times from the daemon's log lines, oldest first; lines of other kinds may be among them."""
    fencing = fenced = taken_over = heard = None
    for line in lines:
        if (found := _MOMENT.search(line)) is None:
            continue
        moment, text = datetime.fromisoformat(found[1]), found[2]
        fields = dict(_FIELD.findall(text))
        if text.startswith("state ") and fields.get("before") == "shadowing":
            fencing = fenced = taken_over = heard = None  # another takeover, and perhaps one without a fence
        elif text.startswith("state ") and fields.get("after") == "fencing":
            fencing = moment
        elif text.startswith("state ") and fields.get("before") == "fencing":
            fenced = moment
        elif text.startswith("takeover "):
            taken_over = moment
        elif "client_heard_after_ms" in fields and taken_over is not None:
            heard = float(fields["client_heard_after_ms"])
    return Timeline(_ms(fencing, fenced), _ms(fenced, taken_over), heard)


def _ms(begin: datetime | None, end: datetime | None) -> float | None:
    return None if begin is None or end is None else round((end - begin).total_seconds() * 1000)
