"""ARP frames for Ethernet and IPv4 (RFC 826), and the socket that sends and hears them on one interface."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from struct import Struct
from typing import Final

ETH_P_ARP: Final = 0x0806
REQUEST: Final = 1
REPLY: Final = 2
BROADCAST: Final = b"\xff" * 6
_UNSET: Final = bytes(6)
_ARP = Struct("!HHBBH6s4s6s4s")
_ETHERNET: Final = 14
_HEAD: Final = (1, 0x0800, 6, 4)  # Ethernet, IPv4
_FRAME_BYTES: Final = 128
_MOST_FRAMES: Final = 256  # of one reading


@dataclass(frozen=True, slots=True)
class ArpFrame:
    """An ARP packet that was heard: hardware address and packed address of its sender, packed address of its target."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target: bytes


def announcement(mac: bytes, address: bytes) -> tuple[bytes, bytes]:
    """Returns the announcement as request and as reply: some hosts take only the one, some the other (RFC 5227, 3)."""
    head = BROADCAST + mac + ETH_P_ARP.to_bytes(2)
    request = head + _ARP.pack(*_HEAD, REQUEST, mac, address, _UNSET, address)
    reply = head + _ARP.pack(*_HEAD, REPLY, mac, address, BROADCAST, address)
    return request, reply


def question(mac: bytes, address: bytes, target: bytes, target_mac: bytes | None = None) -> bytes:
    """Returns an ordinary request of `address` for `target`: to its known hardware address alone, or to all."""
    head = (target_mac or BROADCAST) + mac + ETH_P_ARP.to_bytes(2)
    return head + _ARP.pack(*_HEAD, REQUEST, mac, address, _UNSET, target)


def probe(mac: bytes, target: bytes) -> bytes:
    """Returns an ARP Probe (RFC 5227 section 1.1): who has the address? Its sender is nobody, so no cache changes."""
    return question(mac, bytes(4), target)


def parse(frame: bytes) -> ArpFrame | None:
    """Returns what an Ethernet frame with an ARP packet says; None if it is of another kind, or cut short."""
    if len(frame) < _ETHERNET + _ARP.size:
        return None
    *head, operation, sender_mac, sender, _, target = _ARP.unpack_from(frame, _ETHERNET)
    if tuple(head) != _HEAD or operation not in (REQUEST, REPLY):
        return None
    return ArpFrame(operation, sender_mac, sender, target)


class ArpSocket:
    """Sends ARP frames on an interface, and hears those of others."""

    def __init__(self, interface: str) -> None:
        """Needs CAP_NET_RAW. Raises OSError (no such interface)."""
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.bind((interface, ETH_P_ARP))
        except OSError:
            self._socket.close()
            raise

    @property
    def mac(self) -> bytes:
        """The interface's hardware address at this moment; b"" if the interface is gone."""
        address: bytes = self._socket.getsockname()[4]
        return address

    def send(self, frame: bytes) -> bool:
        """Returns whether a frame was sent; not while the link is down, or the interface gone."""
        with contextlib.suppress(OSError):
            self._socket.send(frame)
            return True
        return False

    def heard(self) -> list[ArpFrame]:
        """Returns what others have sent since the last call; of a flood the beginning."""
        frames: list[ArpFrame] = []
        for _ in range(_MOST_FRAMES):
            try:
                data, (_, _, kind, _, _) = self._socket.recvfrom(_FRAME_BYTES)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno in (errno.ENETDOWN, errno.EINTR):  # told once; it works again with the link
                    continue
                break
            frame = parse(data)
            if frame is not None and kind != socket.PACKET_OUTGOING:
                frames.append(frame)
        return frames

    def close(self) -> None:
        """Close the socket. Can be repeated."""
        self._socket.close()
