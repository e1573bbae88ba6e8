"""Who else has the service address: what ARP says of other machines (RFC 5227). Arithmetic; nothing is sent here.

The peer is no stranger: when it takes over, it announces the address, and this host then serves no longer, or is off.
It is a conflict only if it goes on being heard while this host goes on serving. Who the peer is we know if it is on
the same segment; where we don't, an unknown machine may be the peer, and is treated like it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEFEND_S: Final = 10.0  # DEFEND_INTERVAL of RFC 5227
PROBE_EVERY_S: Final = 30.0
PROBE_AGAIN_S: Final = 1.5  # while somebody has been heard lately
_FORGET_S: Final = 15.0  # nine probes without an answer
_SETTLED_S: Final = 3.0  # so long after the beginning of service the peer may still be heard
_SPAN_S: Final = 2.5  # who is heard once may be on its way out, or a peer that has not told its new address
_MOST: Final = 8


@dataclass(slots=True)
class _Seen:
    first: float
    last: float
    stranger: bool


def mac_text(mac: bytes) -> str:
    """A hardware address as people write it."""
    return mac.hex(":")


class Conflicts:
    """The machines that have claimed the service address lately. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[bytes, _Seen] = {}
        self._serves_since: float | None = None
        self._defended = float("-inf")

    def serve(self, serves: bool, now: float) -> None:
        """Note that this host is heard from now on, or not any more. What the peer has said before counts no more."""
        if serves == (self._serves_since is not None):
            return
        self._serves_since = now if serves else None
        self._seen = {mac: seen for mac, seen in self._seen.items() if seen.stranger}

    def heard(self, mac: bytes, peers: frozenset[bytes], now: float) -> bool:
        """Take an ARP packet that names the service address as its sender, from another machine.

        `peers`: the hardware addresses of the other hosts; none if they aren't known. Returns whether to defend the
        address by an announcement (RFC 5227 section 2.4, (c)): every ten seconds, against strangers only.
        """
        stranger = bool(peers) and mac not in peers
        if not stranger and (self._serves_since is None or now < self._serves_since + _SETTLED_S):
            return False
        if mac not in self._seen and len(self._seen) >= _MOST:
            return False
        seen = self._seen.setdefault(mac, _Seen(now, now, stranger))
        seen.last, seen.stranger = now, stranger
        if not stranger or self._serves_since is None or now < self._defended + DEFEND_S:
            return False
        self._defended = now
        return True

    def present(self, peers: frozenset[bytes], now: float) -> list[tuple[str, bool]]:
        """Who has the address besides this host, or besides the host that serves: (hardware address, is a stranger).

        `peers`: as they are known now. A peer with a new interface is taken for a stranger until it has told us.
        """
        serves = self._serves_since is not None
        self._seen = {
            mac: seen
            for mac, seen in self._seen.items()
            if now < seen.last + _FORGET_S and (serves or mac not in peers)
        }
        return [
            (mac_text(mac), seen.stranger and mac not in peers)
            for mac, seen in self._seen.items()
            if seen.last - seen.first >= _SPAN_S
        ]

    @property
    def probe_every_s(self) -> float:
        """How often to ask who has the address."""
        return PROBE_AGAIN_S if self._seen else PROBE_EVERY_S
