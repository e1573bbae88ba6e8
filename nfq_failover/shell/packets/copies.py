"""Copies of what clients send, taken beside the packets' path.

The primary keeps its clients' bytes so that it can give the backup what the tap lost. It takes them from a packet
socket, so that no inbound packet of a primary has to wait.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from struct import Struct
from typing import Final

from nfq_failover.core.events import FrameCopied
from nfq_failover.shell.packets import bpf

_ETH_P_IP: Final = 0x0800
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; not in Python's socket
_SOL_PACKET: Final = 263  # from here on linux/if_packet.h
_PACKET_STATISTICS: Final = 6
_PACKET_AUXDATA: Final = 8
_TP_STATUS_CSUM_NOT_READY: Final = 0x8
_STATISTICS = Struct("=II")  # packets (lost ones too), lost ones; since last asked
_AUXDATA = Struct("=IIIHHHH")  # status, length, captured length, MAC and network offset, VLAN
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_AUXDATA.size)
_RECEIVE_BYTES: Final = bpf.WHOLE_PACKET  # above any IPv4 packet


class InboundCopies:
    """The client segments with payload, FIN or RST that arrive on an interface, each once.

    The socket sees frames before all iptables rules and after merging (GRO). It does not see what leaves (not even the
    tap's clones), what crosses lo (injected packets), or what is for another host's MAC; it sees frames to a multicast
    MAC.
    """

    def __init__(
        self, interface: str, service: bytes, ports: Sequence[tuple[int, int]], *, rcvbuf: int = 64 << 20
    ) -> None:
        """`service`: packed IPv4 address; `ports`: inclusive ranges. Raises OSError (no such interface, not root)."""
        self._receive = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._receive)
        # Protocol 0 receives nothing until the filter is in place and bind names the protocol.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            bpf.attach(self._socket, bpf.inbound_data_filter(service, ports))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, rcvbuf)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.setblocking(False)
            self._socket.bind((interface, _ETH_P_IP))
        except OSError:
            self._socket.close()
            raise

    def serve(self, service: bytes, ports: Sequence[tuple[int, int]]) -> None:
        """Copy what comes for these ports from now on. Nothing is missed meanwhile. Raises OSError."""
        bpf.attach(self._socket, bpf.inbound_data_filter(service, ports))

    def fileno(self) -> int:
        """The descriptor, readable when there are copies."""
        return self._socket.fileno()

    def read(self, limit: int) -> list[FrameCopied]:
        """Returns up to `limit` copies, oldest first; fewer mean that there are no more at the moment."""
        copies: list[FrameCopied] = []
        receive, view, buffers = self._socket.recvmsg_into, self._view, [self._receive]
        for _ in range(limit):
            try:
                size, ancillary, _, _ = receive(buffers, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno in (errno.ENETDOWN, errno.EINTR):  # told once; the socket works again with the link
                    continue
                raise
            pending = False
            for level, kind, data in ancillary:
                if level == _SOL_PACKET and kind == _PACKET_AUXDATA:
                    # TP_STATUS_CSUM_VALID is left alone: older kernels set it for a sum computed but not compared.
                    pending = bool(_AUXDATA.unpack_from(data)[0] & _TP_STATUS_CSUM_NOT_READY)
            copies.append(FrameCopied(bytearray(view[:size]), pending))
        return copies

    def lost(self) -> int:
        """Returns how many copies have been lost, for want of buffer space, since the last call."""
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        lost: int = _STATISTICS.unpack(statistics)[1]
        return lost

    def close(self) -> None:
        """Close the socket. Can be repeated."""
        self._socket.close()
