"""A bounded store of stream bytes: a contiguous part, and islands beyond it that arrived out of order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import islice
from typing import Final

MAX_ISLANDS: Final = 1024
BYTES_PER_PIECE: Final = 256
MIN_PIECES: Final = 4096
"""A client may send single bytes, and leave every other one out: each piece costs some hundred bytes of memory."""


class _Island:
    """A run of bytes beyond a hole, in the pieces in which it came."""

    __slots__ = ("pieces", "start", "stop")

    def __init__(self, offset: int, data: bytes) -> None:
        self.start = offset
        self.stop = offset + len(data)
        self.pieces = [(offset, data)]

    def extend(self, offset: int, data: bytes) -> None:
        """Add bytes that begin where the run ends."""
        self.pieces.append((offset, data))
        self.stop = offset + len(data)


def _stop(island: _Island) -> int:
    return island.stop


def _piece_stop(piece: tuple[int, bytes]) -> int:
    return piece[0] + len(piece[1])


class Journal:
    """Bytes of one stream by offset (see SeqSpace).

    `start`: first byte still kept; `end`: first byte missing; [start, end) is contiguous. Islands lie beyond `end`. The
    first copy of a byte wins. `size` counts the bytes kept. `limit` bounds how far beyond `start` anything is kept, so
    that what lies beyond a hole never takes the room of what fills it. The number of pieces and of islands is bounded,
    too.
    """

    __slots__ = ("_data", "_head", "_islands", "_loose", "_offsets", "end", "limit", "max_pieces", "size", "start")

    def __init__(self, limit: int, start: int = 0) -> None:
        self.limit = limit
        self.start = start
        self.end = start
        self.size = 0
        self._offsets: list[int] = []
        self._data: list[bytes] = []
        self._head = 0
        self._islands: list[_Island] = []  # sorted, apart from each other
        self._loose = 0  # pieces in the islands
        self.max_pieces = max(limit // BYTES_PER_PIECE, MIN_PIECES)

    @property
    def piece_count(self) -> int:
        """In how many pieces the bytes are kept."""
        return len(self._data) - self._head + self._loose

    @property
    def islands(self) -> int:
        """How many runs lie beyond a hole."""
        return len(self._islands)

    def differs(self, offset: int, data: bytes) -> bool:
        """Whether `data` at `offset` contradicts a byte that is kept."""
        stop = offset + len(data)
        if offset < self.end:
            left = max(offset, self.start)
            kept = self.read(left, min(stop, self.end) - left)
            if kept != data[left - offset : left - offset + len(kept)]:
                return True
        islands = self._islands
        for i in range(bisect_left(islands, offset, key=_stop), len(islands)):
            if islands[i].start >= stop:
                break
            pieces = islands[i].pieces
            for at, piece in islice(pieces, bisect_right(pieces, offset, key=_piece_stop), None):
                if at >= stop:
                    break
                left, right = max(at, offset), min(at + len(piece), stop)
                if piece[left - at : right - at] != data[left - offset : right - offset]:
                    return True
        return False

    def _crowded(self, offset: int) -> bool:
        """No room for another piece. What fills the first hole always has some."""
        if offset <= self.end:
            return self.piece_count >= 2 * self.max_pieces
        return self.piece_count >= self.max_pieces or len(self._islands) >= MAX_ISLANDS

    def insert(self, offset: int, data: bytes) -> bool:
        """Keep `data` at `offset`. False if a bound forbids it (nothing is kept then)."""
        if offset < self.end:
            cut = self.end - offset
            if cut >= len(data):
                return True
            data = data[cut:]
            offset = self.end
        if not data:
            return True
        if offset + len(data) - self.start > self.limit or self._crowded(offset):
            return False
        if offset == self.end and not self._islands:
            self._append(data)
            return True
        self._insert_island(offset, data)
        # Ends: each turn takes an island out.
        while self._islands and self._islands[0].start <= self.end:
            first = self._islands.pop(0)
            self._loose -= len(first.pieces)
            for piece_offset, piece in first.pieces:
                self.size -= len(piece)
                self._append(piece[self.end - piece_offset :])
        return True

    def _append(self, data: bytes) -> None:
        if data:
            self._offsets.append(self.end)
            self._data.append(data)
            self.end += len(data)
            self.size += len(data)

    def _insert_island(self, offset: int, data: bytes) -> None:
        """Fill only the places between the islands that are there."""
        islands = self._islands
        if not islands or offset > islands[-1].stop:
            islands.append(_Island(offset, data))
            self.size += len(data)
            self._loose += 1
            return
        if offset == islands[-1].stop:
            islands[-1].extend(offset, data)
            self.size += len(data)
            self._loose += 1
            return
        stop = offset + len(data)
        first = last = bisect_left(islands, offset, key=_stop)
        if first < len(islands) and islands[first].start <= offset and stop <= islands[first].stop:
            return  # nothing new: an island may have many pieces, and a client repeat itself as often as it likes
        pieces: list[tuple[int, bytes]] = []
        at = offset
        # Ends: `last` goes on by one, and no island is added.
        while last < len(islands) and islands[last].start <= stop:
            island = islands[last]
            if at < island.start:
                pieces.append((at, data[at - offset : island.start - offset]))
                self.size += island.start - at
            pieces += island.pieces
            self._loose -= len(island.pieces)
            at = max(at, island.stop)
            last += 1
        if at < stop:
            pieces.append((at, data[at - offset :]))
            self.size += stop - at
        merged = _Island(*pieces[0])
        for piece in pieces[1:]:
            merged.extend(*piece)
        islands[first:last] = [merged]
        self._loose += len(pieces)

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset` on; empty outside [start, end)."""
        if not self.start <= offset < self.end or count <= 0:
            return b""
        i = bisect_right(self._offsets, offset, self._head) - 1
        parts = []
        # Ends: `i` goes on by one.
        while count > 0 and i < len(self._offsets):
            skip = offset - self._offsets[i]
            part = self._data[i][skip : skip + count]
            parts.append(part)
            offset += len(part)
            count -= len(part)
            i += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, offset: int, count: int) -> list[memoryview]:
        """The bytes of `read`, not copied."""
        parts: list[memoryview] = []
        if not self.start <= offset < self.end:
            return parts
        i = bisect_right(self._offsets, offset, self._head) - 1
        # Ends: `i` goes on by one.
        while count > 0 and i < len(self._offsets):
            skip = offset - self._offsets[i]
            part = memoryview(self._data[i])[skip : skip + count]
            parts.append(part)
            offset += len(part)
            count -= len(part)
            i += 1
        return parts

    def overwrite(self, offset: int, data: bytes) -> None:
        """Keep other bytes in place of those that are kept, as far as these are contiguous."""
        start, stop = max(offset, self.start), min(offset + len(data), self.end)
        if start >= stop:
            return
        i = bisect_right(self._offsets, start, self._head) - 1
        # Ends: `i` goes on by one.
        while i < len(self._offsets) and self._offsets[i] < stop:
            at, piece = self._offsets[i], self._data[i]
            left, right = max(start, at), min(stop, at + len(piece))
            self._data[i] = piece[: left - at] + data[left - offset : right - offset] + piece[right - at :]
            i += 1

    def trim(self, offset: int) -> None:
        """Forget the bytes before `offset`. Beyond `end`, the contiguous part jumps there (islands join it)."""
        if offset <= self.start:
            return
        if offset > self.end:
            self._jump(offset)
            return
        head, offsets, data = self._head, self._offsets, self._data
        # Ends: `head` goes on by one.
        while head < len(offsets) and offsets[head] + len(data[head]) <= offset:
            self.size -= len(data[head])
            data[head] = b""
            head += 1
        if head < len(offsets) and offsets[head] < offset:
            cut = offset - offsets[head]
            data[head] = data[head][cut:]
            offsets[head] = offset
            self.size -= cut
        self.start = offset
        if head > 64 and head * 2 > len(offsets):
            del offsets[:head], data[:head]
            head = 0
        self._head = head

    def _jump(self, offset: int) -> None:
        self._offsets, self._data, self._head = [], [], 0
        islands, self._islands = self._islands, []
        self.start = self.end = offset
        self.size = self._loose = 0
        for island in islands:
            for piece_offset, piece in island.pieces:
                self.insert(piece_offset, piece)

    def ranges(self, most: int) -> list[tuple[int, int]]:
        """The islands as at most `most` (left, right) ranges, lowest first."""
        return [(island.start, island.stop) for island in self._islands[:most]]

    @property
    def has_islands(self) -> bool:
        """Whether something lies beyond a hole."""
        return bool(self._islands)
