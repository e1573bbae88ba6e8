"""What this host says by ARP on the service's segment, and what it hears there of the service address.

It announces the address, tells its clients' neighbours where it is, asks now and then whether another machine has it,
and listens to what others say of it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from typing import Final

import structlog

from nfq_failover.core.events import LinkKnown
from nfq_failover.core.pair.told import Told
from nfq_failover.shell.host import arp, rtnetlink
from nfq_failover.shell.host.conflicts import Conflicts, mac_text
from nfq_failover.shell.host.next_hops import NextHops

_LEARN_EVERY_S: Final = 1.0
_MOST_MACS: Final = 16
_MOST_TOLD: Final = 2048

log = structlog.get_logger()


class Neighbourhood:
    """ARP on one interface, for one service address."""

    def __init__(
        self, service: bytes, interface: str, peers: Iterable[tuple[str, str | None]] = (), announces: bool = True
    ) -> None:
        """`peers`: their addresses, and their hardware addresses where the configuration has them. `announces`: a host
        that serves says so by ARP; not where the address has a hardware address that both hosts share."""
        self._announces = announces
        self._service = service
        self._interface = interface
        self._index = 0
        self._socket: arp.ArpSocket | None = None
        self._peers: set[bytes] = set()
        self._peer_macs: set[bytes] = set()
        for address, mac in peers:
            self._peers.add(socket.inet_aton(address))
            if mac is not None:
                self._peer_macs.add(bytes.fromhex(mac.replace(":", "")))
        self._told: dict[bytes, bytes] = {}  # neighbours that we know from their own questions, or from the peer
        self._known: LinkKnown | None = None
        self._own: frozenset[bytes] = frozenset()
        self._learn_at = self._probe_at = float("-inf")
        self._conflicts = Conflicts()
        self.next_hops = NextHops(self._next_hop, self._neighbours, self._resolve)

    def open(self, index: int) -> None:
        """Speak and listen on the interface, which has this index now. Raises OSError."""
        self._index = index
        self._socket = arp.ArpSocket(self._interface)

    def close(self) -> None:
        """Say and hear nothing any more. Can be repeated."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def serve(self, serves: bool, now: float) -> None:
        """Note that the address is this host's now, or another's."""
        self._conflicts.serve(serves, now)
        if not serves:
            self.next_hops.stop()

    # ------------------------------------------------------------------------------------ what is sent

    def announce(self) -> None:
        """Tell everybody where the service address is."""
        if self._announces and (mac := self._mac) is not None:
            for frame in arp.announcement(mac, self._service):
                self._send(frame)

    def follow(self, clients: Iterable[bytes], told: Iterable[Told]) -> LinkKnown | None:
        """Know the neighbours of these clients, and no others: after a takeover they will have to be told.

        `told`: what the peers have told of theirs. Returns what they have to be told, if that has changed.
        """
        self.next_hops.prepare(clients if self._announces else ())
        for each in told:
            if each.hardware:
                self._note_peer(each.hardware)
            for hop, hop_mac in each.neighbours.items():
                self._remember(hop, hop_mac)
        mac = self._mac
        if mac is None:
            return None
        kernel = self._kernel_knows()
        known = LinkKnown(mac, tuple((hop, kernel[hop]) for hop in self.next_hops.known if hop in kernel))
        if known == self._known:
            return None
        self._known = known
        return known

    def tell(self, clients: Iterable[bytes], now: float) -> None:
        """Begin to tell the neighbours of these clients where the service address is."""
        if self._announces:
            self.next_hops.tell(clients, now)

    def tell_again(self, now: float) -> None:
        """Tell the neighbours of the clients that are known."""
        self.tell(self.next_hops.clients, now)

    @property
    def hardware(self) -> bytes:
        """The interface's hardware address at this moment, b"" if it has none."""
        return self._mac or b""

    @property
    def _mac(self) -> bytes | None:
        mac = self._socket.mac if self._socket is not None else b""
        return mac if len(mac) == len(arp.BROADCAST) else None

    def _send(self, frame: bytes) -> None:
        if self._socket is not None:
            self._socket.send(frame)  # the link may be down: a later one gets through

    def probe(self) -> None:
        """Ask who has the service address, and who the peers are; `tick` and `who_has_it` hear the answers."""
        if (mac := self._mac) is not None:
            for address in (self._service, *self._peers):
                self._send(arp.probe(mac, address))

    def tick(self, now: float) -> None:
        """Hear what others say, and do what is due."""
        for frame in self._frames():
            self._take(frame, now)
        if now >= self._probe_at:
            self.conflicts(now)
            self._probe_at = now + self._conflicts.probe_every_s
            self.probe()
        requests = self.next_hops.tick(now)
        if requests and (mac := self._mac) is not None:
            for hop, hop_mac in requests:
                self._send(arp.question(mac, self._service, hop, hop_mac))

    # ------------------------------------------------------------------------------------ what is heard

    def _frames(self) -> list[arp.ArpFrame]:
        return self._socket.heard() if self._socket is not None else []

    def who_has_it(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Returns the hardware addresses of the other machines that have answered for the service address since the
        last call, and those of the peers that are known."""
        found = set()
        for frame in self._frames():
            if frame.sender in self._peers:
                self._note_peer(frame.sender_mac)
            elif frame.sender == self._service and not self._is_own(frame.sender_mac):
                found.add(frame.sender_mac)
        self._ask_kernel()
        return frozenset(found), frozenset(self._peer_macs)

    def _take(self, frame: arp.ArpFrame, now: float) -> None:
        if frame.sender in self._peers:
            self._note_peer(frame.sender_mac)
        elif frame.sender == self._service:
            self._claimed(frame.sender_mac, now)
        elif frame.target == self._service and any(frame.sender):
            self._remember(frame.sender, frame.sender_mac)
            if frame.operation == arp.REPLY:
                self.next_hops.heard(frame.sender)

    def _remember(self, address: bytes, mac: bytes) -> None:
        """Know a neighbour; the one that has not been heard of for longest is forgotten."""
        self._told.pop(address, None)
        self._told[address] = mac
        if len(self._told) > _MOST_TOLD:
            del self._told[next(iter(self._told))]

    def _claimed(self, mac: bytes, now: float) -> None:
        """Another machine, or so it seems, has said that it has the service address."""
        if now >= self._learn_at:
            self._learn_at = now + _LEARN_EVERY_S
            self._ask_kernel()
        if self._is_own(mac):
            return
        defend = self._conflicts.heard(mac, frozenset(self._peer_macs), now)
        self._probe_at = min(self._probe_at, now + self._conflicts.probe_every_s)
        if defend:
            log.error("another machine has the service address; its place is announced again", mac=mac_text(mac))
            self.announce()

    def _ask_kernel(self) -> None:
        """Learn our own hardware addresses, and the peers' on this segment."""
        with contextlib.suppress(OSError):
            self._own = frozenset(link.hardware for link in rtnetlink.links().values())
            known = rtnetlink.neighbours(self._index)
            for peer in self._peers & known.keys():
                self._note_peer(known[peer])

    def _note_peer(self, mac: bytes) -> None:
        if len(self._peer_macs) < _MOST_MACS:
            self._peer_macs.add(mac)

    def _is_own(self, mac: bytes) -> bool:
        return mac == self._mac or mac in self._own

    def describe(self) -> dict[str, object]:
        """Returns the neighbours' part of the announcements' row in the status."""
        return {"neighbours_asked": self.next_hops.asked, "neighbours_answered": self.next_hops.answered}

    def conflicts(self, now: float) -> list[tuple[str, bool]]:
        """Who else has the address lately: (hardware address, whether it is certainly not a peer's)."""
        return self._conflicts.present(frozenset(self._peer_macs), now)

    # ------------------------------------------------------------------------------------ the kernel's tables

    def _next_hop(self, client: bytes) -> bytes | None:
        found = rtnetlink.next_hop(client, self._service)
        return found[1] if found is not None and found[0] == self._index else None

    def _neighbours(self) -> dict[bytes, bytes]:
        """What the kernel knows, and else what has been heard."""
        return self._told | self._kernel_knows()

    def _kernel_knows(self) -> dict[bytes, bytes]:
        with contextlib.suppress(OSError):
            return rtnetlink.neighbours(self._index)
        return {}

    def _resolve(self, hop: bytes) -> None:
        """Have the kernel know a neighbour: by asking it, or without, since some take no question by broadcast."""
        with contextlib.suppress(OSError):
            mac = self._told.get(hop)
            if mac is not None and hop not in self._kernel_knows():
                rtnetlink.know(self._index, hop, mac)
            rtnetlink.resolve(self._index, hop)
