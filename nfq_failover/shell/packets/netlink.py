"""Messages of nfnetlink_queue (linux/netfilter/nfnetlink_queue.h) as bytes: configuration, packets, verdicts.

No socket here. Netlink and attribute headers are in host byte order, the values of attributes in network byte order.
"""

from __future__ import annotations

from socket import AF_UNSPEC, htonl, htons, ntohl
from struct import Struct, error
from typing import Final

NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 3 << 8  # NFNL_SUBSYS_QUEUE
MSG_PACKET: Final = _SUBSYSTEM | 0
MSG_VERDICT: Final = _SUBSYSTEM | 1
MSG_CONFIG: Final = _SUBSYSTEM | 2
NLMSG_ERROR: Final = 2
_REQUEST: Final = 0x1
_ACK: Final = 0x4

# Attributes of MSG_CONFIG.
_CFG_CMD: Final = 1
_CFG_PARAMS: Final = 2
_CFG_QUEUE_MAXLEN: Final = 3
_CFG_MASK: Final = 4
_CFG_FLAGS: Final = 5
CMD_BIND: Final = 1
CMD_UNBIND: Final = 2
COPY_PACKET: Final = 2
COPY_RANGE: Final = 0xFFFF
F_GSO: Final = 0x4

# Attributes of MSG_PACKET and MSG_VERDICT.
_PACKET_HDR: Final = 1
_VERDICT_HDR: Final = 2
_MARK: Final = 3
_PAYLOAD: Final = 10
_CAP_LEN: Final = 13
_SKB_INFO: Final = 14
SKB_CSUM_NOT_READY: Final = 0x1
SKB_GSO: Final = 0x2
SKB_CSUM_NOT_VERIFIED: Final = 0x4

_DROP: Final = htonl(0)
_ACCEPT: Final = htonl(1)

_HEADER = Struct("=IHHIIBBH")  # nlmsghdr: length, type, flags, sequence, port id; nfgenmsg: family, version, queue
_ATTR = Struct("=HH")
_U32 = Struct("=I")
_ERROR = Struct("=i")
_NLMSG = Struct("=IH")
_VERDICT = Struct("=IHHIIBBHHHII")
_VERDICT_MARK = Struct("=IHHIIBBHHHIIHHI")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
MESSAGE_HEADER_SIZE: Final = 16
_NFGENMSG_END: Final = _HEADER.size

Buffer = bytes | bytearray | memoryview

PacketFields = tuple[int, int, int, int, int, int]
"""(packet id, mark, SKB_* flags, start and end of the IP packet in the buffer, its length in the kernel)."""


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def _config(queue: int, body: bytes, sequence: int) -> bytes:
    flags = _REQUEST | (_ACK if sequence else 0)
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, MSG_CONFIG, flags, sequence, 0, AF_UNSPEC, 0, htons(queue)) + body


def _command(command: int) -> bytes:
    return _attribute(_CFG_CMD, Struct("!BBH").pack(command, 0, AF_UNSPEC))


def config_flags(queue: int, flags: int, on: bool = True, sequence: int = 0) -> bytes:
    """Set these NFQA_CFG_F_* flags, or take them away (`on`), and leave the others. A sequence number other than 0 asks
    for an answer."""
    mask, value = _U32.pack(htonl(flags)), _U32.pack(htonl(flags if on else 0))
    return _config(queue, _attribute(_CFG_FLAGS, value) + _attribute(_CFG_MASK, mask), sequence)


def config_max_len(queue: int, max_len: int, sequence: int = 0) -> bytes:
    """Let the queue hold `max_len` packets that wait for a verdict."""
    return _config(queue, _attribute(_CFG_QUEUE_MAXLEN, _U32.pack(htonl(max_len))), sequence)


def config_copy_packet(queue: int, copy_range: int = COPY_RANGE, sequence: int = 0) -> bytes:
    """Have packets copied to us, `copy_range` bytes at most (the kernel caps it at 65531: an attribute's length)."""
    return _config(queue, _attribute(_CFG_PARAMS, Struct("!IB").pack(copy_range, COPY_PACKET)), sequence)


def config_bind(queue: int, sequence: int = 0) -> bytes:
    """Make the queue, for the netlink port that sends this. The kernel refuses (EPERM) one that another port has."""
    return _config(queue, _command(CMD_BIND), sequence)


def config_unbind(queue: int, sequence: int = 0) -> bytes:
    """Give the queue up; the kernel drops what still waits in it."""
    return _config(queue, _command(CMD_UNBIND), sequence)


def verdict(queue: int, packet_id: int, accept: bool, mark: int | None, packet: Buffer | None) -> list[Buffer]:
    """A verdict as parts to be sent one after the other; their total length is a multiple of four.

    `mark` and `packet` replace the packet's mark and the packet, None leaves them as they are. Never
    NFQNL_MSG_VERDICT_BATCH, which would cover every packet up to this id.
    """
    word = _ACCEPT if accept else _DROP
    size = _VERDICT.size if mark is None else _VERDICT_MARK.size
    length = size if packet is None else size + 4 + len(packet)
    head = (length, MSG_VERDICT, _REQUEST, 0, 0, AF_UNSPEC, 0, htons(queue), 12, _VERDICT_HDR, word, htonl(packet_id))
    header = _VERDICT.pack(*head) if mark is None else _VERDICT_MARK.pack(*head, 8, _MARK, htonl(mark))
    if packet is None:
        return [header]
    return [header + _ATTR.pack(4 + len(packet), _PAYLOAD), packet, _PADDING[len(packet) & 3]]


def refusal(parts: list[Buffer]) -> bytes | None:
    """The verdict that drops the packet that one made by `verdict` lets go on; None if that drops it."""
    *_, queue, _, _, word, packet_id = _VERDICT.unpack_from(parts[0])
    if word == _DROP:
        return None
    head = (_VERDICT.size, MSG_VERDICT, _REQUEST, 0, 0, AF_UNSPEC, 0, queue, 12, _VERDICT_HDR, _DROP, packet_id)
    return _VERDICT.pack(*head)


def message_header(buffer: Buffer, offset: int) -> tuple[int, int]:
    """(length, type) of the netlink message at `offset`."""
    length, kind = _NLMSG.unpack_from(buffer, offset)
    return length, kind


def error_answer(buffer: Buffer, offset: int) -> tuple[int, int]:
    """(errno or 0, sequence number of the request) of the NLMSG_ERROR message at `offset`."""
    (code,) = _ERROR.unpack_from(buffer, offset + MESSAGE_HEADER_SIZE)
    (sequence,) = _U32.unpack_from(buffer, offset + MESSAGE_HEADER_SIZE + 4 + 8)
    return -code, sequence


def packet_fields(buffer: Buffer, offset: int, end: int) -> PacketFields | None:
    """Read the MSG_PACKET message that fills `buffer[offset:end]`; None if it makes no sense.

    Without a payload attribute start and end are both `end`.
    """
    packet_id = -1
    mark = info = 0
    capture = -1
    start = stop = end
    i = offset + _NFGENMSG_END
    unpack = _ATTR.unpack_from
    try:
        # Ends: an attribute takes at least its four bytes.
        while i < end:
            length, kind = unpack(buffer, i)
            if length < 4 or i + length > end:
                return None
            if kind == _PAYLOAD:
                start, stop = i + 4, i + length
            elif kind == _PACKET_HDR:
                packet_id = ntohl(_U32.unpack_from(buffer, i + 4)[0])
            elif kind == _MARK:
                mark = ntohl(_U32.unpack_from(buffer, i + 4)[0])
            elif kind == _SKB_INFO:
                info = ntohl(_U32.unpack_from(buffer, i + 4)[0])
            elif kind == _CAP_LEN:
                capture = ntohl(_U32.unpack_from(buffer, i + 4)[0])
            i += (length + 3) & ~3
    except error:
        return None
    if packet_id < 0:
        return None
    return packet_id, mark, info, start, stop, stop - start if capture < 0 else capture
