"""TCP options of SYN and SYN-ACK segments: what is negotiated, and taking out what must not be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nfq_failover.constants import (
    MAX_WSCALE,
    OPT_AO,
    OPT_EOL,
    OPT_MD5,
    OPT_MSS,
    OPT_NOP,
    OPT_SACK_PERMITTED,
    OPT_TIMESTAMPS,
    OPT_WSCALE,
)

NEGOTIABLE = frozenset((OPT_MSS, OPT_WSCALE, OPT_SACK_PERMITTED, OPT_TIMESTAMPS))
"""The options of a SYN that a takeover can continue; all others are taken out, so that they can't be granted."""

SIGNED = frozenset((OPT_MD5, OPT_AO))
"""Options that sign the header: a translated segment would never verify (RFC 2385, RFC 5925)."""

DEFAULT_MSS = 536  # RFC 9293 section 3.7.1
MIN_MSS = 48  # what Linux makes of less (net.ipv4.tcp_min_snd_mss): there is always room for some data


def each_option(options: bytes | bytearray | memoryview) -> Iterator[tuple[int, int, int]]:
    """(kind, start, length) of each option but NOP. Ends, as Linux does, at one that lies about its length."""
    i, n = 0, len(options)
    # Ends: an option takes at least a byte.
    while i < n:
        kind = options[i]
        if kind == OPT_EOL:
            return
        if kind == OPT_NOP:
            i += 1
            continue
        if i + 1 >= n or options[i + 1] < 2 or i + options[i + 1] > n:
            return
        yield kind, i, options[i + 1]
        i += options[i + 1]


@dataclass(frozen=True, slots=True)
class SynOptions:
    """What a SYN or SYN-ACK offers. `wscale` and `tsval` are None where not offered."""

    mss: int = DEFAULT_MSS
    wscale: int | None = None
    sack_permitted: bool = False
    tsval: int | None = None
    signed: bool = False

    @classmethod
    def parse(cls, options: bytes) -> SynOptions:
        """What counts of them."""
        mss, wscale, sack, tsval, signed = DEFAULT_MSS, None, False, None, False
        for kind, i, length in each_option(options):
            if kind == OPT_MSS and length == 4:
                mss = max(int.from_bytes(options[i + 2 : i + 4], "big"), MIN_MSS)
            elif kind == OPT_WSCALE and length == 3:
                wscale = min(options[i + 2], MAX_WSCALE)
            elif kind == OPT_SACK_PERMITTED and length == 2:
                sack = True
            elif kind == OPT_TIMESTAMPS and length == 10:
                tsval = int.from_bytes(options[i + 2 : i + 6], "big")
            elif kind in SIGNED:
                signed = True
        return cls(mss, wscale, sack, tsval, signed)


def without(options: bytes, keep: frozenset[int]) -> bytes:
    """The options with every kind outside `keep` overwritten by NOPs; the length stays. What can't be read ends the
    list, so that nobody reads it otherwise."""
    out = bytearray(options)
    at = 0
    for kind, i, length in each_option(options):
        at = i + length
        if kind not in keep:
            out[i:at] = bytes((OPT_NOP,)) * length
    # Ends: `at` goes on by one.
    while at < len(out) and out[at] == OPT_NOP:
        at += 1
    if at < len(out) and out[at] != OPT_EOL:
        out[at:] = bytes((OPT_EOL,)) * (len(out) - at)
    return bytes(out)


def lower_mss(options: bytearray, most: int) -> bool:
    """Bring an MSS option down to `most`. True if that changed it."""
    changed = False
    for kind, i, length in each_option(options):
        if kind == OPT_MSS and length == 4 and int.from_bytes(options[i + 2 : i + 4], "big") > most:
            options[i + 2 : i + 4] = most.to_bytes(2, "big")
            changed = True
    return changed


def set_wscale(options: bytearray, wscale: int) -> None:
    """Change the shift in a window scale option, if there is one."""
    for kind, i, length in each_option(options):
        if kind == OPT_WSCALE and length == 3:
            options[i + 2] = wscale
