"""What a client had heard before it sent its bytes, as the acknowledgements of its segments say."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

MAX_MARKS: Final = 256


class Heard:
    """The client's stream in stretches: `marks` say from which offset on it was sent after the client had acknowledged
    everything before which offset of the server's stream. Both grow. Where there would be more than `MAX_MARKS`, bytes
    belong to the stretch before them."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        self.marks: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.marks)

    def note(self, at: int, ack: int) -> None:
        """The client has sent the bytes from `at` on after it had acknowledged everything before `ack`."""
        marks = self.marks
        place = bisect_right(marks, at, key=_at)
        if place and marks[place - 1][1] >= ack:
            return
        if place and marks[place - 1][0] == at:
            marks[place - 1] = at, ack
        elif len(marks) < MAX_MARKS:
            marks.insert(place, (at, ack))
            place += 1
        else:
            return
        # Ends: each turn takes one out.
        while place < len(marks) and marks[place][1] <= ack:
            del marks[place]

    def between(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The stretches to which the bytes from `start` to `stop` belong."""
        marks = self.marks
        first = max(bisect_right(marks, start, key=_at) - 1, 0)
        return [mark for mark in marks[first:] if mark[0] < stop]

    def trim(self, offset: int) -> None:
        """The bytes before `offset` are of no interest any more."""
        passed = bisect_right(self.marks, offset, key=_at) - 1
        if passed > 0:
            del self.marks[:passed]

    def drop(self, ack: int) -> bool:
        """Everything before `ack` was sent by all servers. Returns whether a stretch belongs to that."""
        marks, passed = self.marks, 0
        # Ends: `passed` grows.
        while passed < len(marks) and marks[passed][1] <= ack:
            passed += 1
        del marks[:passed]
        return passed > 0


def _at(mark: tuple[int, int]) -> int:
    return mark[0]
