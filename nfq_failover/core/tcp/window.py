"""The window field of a rewritten header."""

from __future__ import annotations

from typing import Final

ROUNDING_BYTES: Final = 4096
"""How far rounding may carry the right edge beyond what the receiver takes; the backup's log has room for that."""


def window_field(ack: int, limit: int, sent: int, wscale: int) -> int:
    """The field to send with `ack`, so that the right edge is at most `limit` and never left of `sent`.

    `ack`, `limit` and `sent` are offsets in the client's stream. The edge can only be told in units of 1 << wscale from
    `ack`, so both can't always hold (RFC 7323 section 2.4). Then the edge stays, rounded up, as long as that carries it
    no further than `ROUNDING_BYTES` (or one unit) beyond `limit`; after that it moves left, by less than a unit.
    """
    unit = 1 << wscale
    window = max(limit - ack, 0) >> wscale
    if ack + (window << wscale) < sent:
        most = max(limit, ack) + max(unit, ROUNDING_BYTES)
        window = max(window, min((sent - ack + unit - 1) >> wscale, (most - ack) >> wscale))
    return min(window, 0xFFFF)
