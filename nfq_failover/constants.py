"""Numbers that more than one module needs, each with its source."""

from __future__ import annotations

from typing import Final

IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6

# TCP flags, RFC 9293 section 3.1.
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

# TCP option kinds, IANA "TCP Option Kind Numbers".
OPT_EOL: Final = 0
OPT_NOP: Final = 1
OPT_MSS: Final = 2
OPT_WSCALE: Final = 3  # RFC 7323
OPT_SACK_PERMITTED: Final = 4  # RFC 2018
OPT_SACK: Final = 5  # RFC 2018
OPT_TIMESTAMPS: Final = 8  # RFC 7323
OPT_MD5: Final = 19  # RFC 2385
OPT_AO: Final = 29  # RFC 5925
OPT_MPTCP: Final = 30  # RFC 8684
OPT_FASTOPEN: Final = 34  # RFC 7413

MAX_WSCALE: Final = 14  # RFC 7323 section 2.3

DEFAULT_SYNC_PORT: Final = 7766
DEFAULT_WITNESS_PORT: Final = 7767
# One bit of the packet mark says "the daemon has handled this packet": our own rules skip it and the silence guard
# lets it out.
DEFAULT_MARK: Final = 0x10000000
DEFAULT_QUEUE_IN: Final = 7760
DEFAULT_QUEUE_OUT: Final = 7761
DEFAULT_QUEUE_PACKETS: Final = 8192  # that wait for a verdict
DEFAULT_QUEUE_BUFFER: Final = 64 << 20
DEFAULT_SYNC_BUFFER: Final = 16 << 20

# A sync datagram stays within one Ethernet frame: 1500 - 20 (IPv4) - 8 (UDP); 1452 leaves room for IPv6.
MAX_DATAGRAM: Final = 1452
