"""The epoch record on disk: in which epoch this host last took part, and as what.

The file has its full size from the start: two slots, each a line of JSON filled up with blanks to the size of a block.
A takeover writes over the older one, in place, so it needs no room on a disk that has become full; a write that was cut
short has spoiled only that slot, and nobody has been told that it was done. A copy-on-write file system (Btrfs, ZFS)
needs room for that all the same.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final
from zlib import crc32

import structlog

from nfq_failover.core.events import EpochStored
from nfq_failover.errors import ConfigError
from nfq_failover.shell.privileged.files import plain
from nfq_failover.shell.privileged.rights import hold_nothing

CLOSE_WAIT_S = 5.0
SLOT_BYTES: Final = 4096
SLOTS: Final = 2
LONG_S = 0.5  # to store an epoch: a takeover waits for it

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Record:
    """One slot. The one with the greater `serial` was written later; 0: never written."""

    serial: int = 0
    epoch: int = 0
    role: str = "backup"

    def encode(self) -> bytes:
        """The slot's bytes."""
        fields = {"epoch": self.epoch, "role": self.role, "serial": self.serial, "check": self._check()}
        text = json.dumps(fields) if self.serial else ""
        return text.ljust(SLOT_BYTES - 1).encode() + b"\n"

    def _check(self) -> str:
        return f"{crc32(f'{self.serial} {self.epoch} {self.role}'.encode()):08x}"

    @classmethod
    def decode(cls, slot: bytes) -> Record:
        """Raises ValueError, KeyError, TypeError."""
        if not slot.strip(b" \n"):
            return cls()
        fields = json.loads(slot)
        record = cls(_count(fields["serial"]), _count(fields["epoch"]), _role(fields["role"]))
        if fields["check"] != record._check() or not record.serial:
            raise ValueError("its check sum is wrong")
        return record


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of it")
    return value


def _role(value: object) -> str:
    if value not in ("primary", "backup"):
        raise ValueError(f"role {value!r}")
    return str(value)


def _read(data: bytes) -> list[Record | None]:
    """The slots of a record, None for one that is damaged; or the one record of a file of earlier versions, which had
    no slots. Raises ValueError, KeyError, TypeError."""
    if len(data) != SLOTS * SLOT_BYTES:
        fields = json.loads(data)
        return [Record(1, _count(fields["epoch"]), _role(fields["role"])), None]
    slots: list[Record | None] = []
    for at in range(0, len(data), SLOT_BYTES):
        try:
            slots.append(Record.decode(data[at : at + SLOT_BYTES]))
        except (ValueError, KeyError, TypeError):
            slots.append(None)
    if slots == [None] * SLOTS:
        raise ValueError("both of its slots are damaged")
    return slots


class EpochStore:
    """Reads once, writes durably in a thread; `fileno()` is readable when `finished()` has answers.

    `failure` says why the last write has failed, and is empty if it has not; `took_s` is how long it took.
    """

    def __init__(self, path: Path) -> None:
        """`path`: the file, in a directory that exists."""
        self.path = path
        self.failure = ""
        self.took_s = 0.0
        self._began: float | None = None
        self._fd = -1
        self._slots: list[Record] = []
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._orders: SimpleQueue[tuple[int, str] | str] = SimpleQueue()
        self._done: deque[tuple[EpochStored, float]] = deque()
        # One thread, so that records reach the disk in the order in which they were given.
        self._writer = threading.Thread(target=self._work, name="epoch-store", daemon=True)
        self._writer.start()

    def load(self) -> tuple[int, bool]:
        """Returns (epoch, whether this host served in it); (0, False) if there is no record. From then on the record
        has its room on the disk. Raises `ConfigError`."""
        try:
            self._open()
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable(error) from None
        except OSError as error:
            if self._is_named():
                raise self._unreadable(error) from None
            raise ConfigError(
                f"there is no room for the epoch record {plain(self.path)} ({error.strerror}): make some, or set "
                "'state_dir' to a directory on another disk"
            ) from None
        latest = max(self._slots, key=lambda slot: slot.serial)
        return latest.epoch, latest.role == "primary"

    def _unreadable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"the epoch record {plain(self.path)} can't be read ({error}). If the peer serves now, or holds a "
            "record of its own, remove this one: this host then joins as the backup. Never remove both hosts' "
            "records at once"
        )

    # ------------------------------------------------------------------------------------ the file

    def _open(self) -> None:
        """Read the file, or make it; one that has not its full size is made anew. Raises OSError, ValueError, ..."""
        self._release()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            slots = self._slots or [Record()] * SLOTS
        else:
            data = os.pread(fd, SLOTS * SLOT_BYTES + 1, 0)
            try:
                found = _read(data)
            except BaseException:
                os.close(fd)
                raise
            if None in found and len(data) == SLOTS * SLOT_BYTES:
                log.warning("a slot of the epoch record is damaged, the other one counts", file=str(plain(self.path)))
            slots = [slot or Record() for slot in found]
            if len(data) == SLOTS * SLOT_BYTES:
                self._fd, self._slots = fd, slots
                return
            os.close(fd)
        self._make(slots)
        self._slots = slots

    def _make(self, slots: list[Record]) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            data = b"".join(slot.encode() for slot in slots)
            if os.pwrite(fd, data, 0) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
            temporary.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        self._fd = fd

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_named(self) -> bool:
        """Whether there is anything of that name, a dangling link as well."""
        try:
            self.path.lstat()
        except OSError:
            return False
        return True

    def _is_there(self) -> bool:
        """Whether the file that is open is the one that the next start will read, in its full size."""
        try:
            ours, named = os.fstat(self._fd), self.path.lstat()
        except OSError:
            return False
        return os.path.samestat(ours, named) and ours.st_size == SLOTS * SLOT_BYTES

    # ------------------------------------------------------------------------------------ writing

    def store(self, epoch: int, role: str) -> None:
        """Begin to write; the answer comes with `finished`."""
        self._orders.put((epoch, role))

    def probe(self) -> None:
        """Begin to find out whether a record could be stored: the older slot is written once more, as it is."""
        self._orders.put("probe")

    def busy_s(self, now: float) -> float:
        """How long the writer has been at the disk with what it does now (`now`: monotonic); 0 if it waits."""
        began = self._began
        return 0.0 if began is None else now - began

    def _work(self) -> None:
        hold_nothing()
        # Ends: with the daemon, in a thread.
        while (order := self._orders.get()) != "end":
            self._began = began = time.monotonic()
            failure = ""
            try:
                if isinstance(order, tuple):
                    self._write(*order)
                else:
                    self._put(min(self._slots, key=lambda slot: slot.serial, default=Record()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                failure = str(error) or type(error).__name__
            self.failure, self.took_s, self._began = failure, time.monotonic() - began, None
            if isinstance(order, tuple):
                self._done.append((EpochStored(order[0], not failure, failure), self.took_s))
                os.eventfd_write(self._event, 1)

    def _write(self, epoch: int, role: str) -> None:
        if not self._is_there():
            self._open()
        latest = max(slot.serial for slot in self._slots)
        self._put(Record(latest + 1, epoch, role))

    def _put(self, record: Record) -> None:
        """Write a record over the older slot."""
        if not self._is_there():
            self._open()
        older = min(range(SLOTS), key=lambda number: self._slots[number].serial)
        data = record.encode()
        if os.pwrite(self._fd, data, older * SLOT_BYTES) != SLOT_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(self._fd)
        self._slots[older] = record

    def fileno(self) -> int:
        """The descriptor, readable when there are answers."""
        return self._event

    def finished(self) -> list[EpochStored]:
        """Returns the answers that have come since the last call."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        answers = []
        # Ends: each turn takes one out.
        while self._done:
            answer, took_s = self._done.popleft()
            answers.append(answer)
            if took_s >= LONG_S:
                log.warning("storing the epoch took long: the disk is slow", took_s=round(took_s, 2))
        return answers

    def close(self) -> None:
        """Write what was ordered, and close. Can be repeated."""
        if self._event < 0:
            return
        self._orders.put("end")
        self._writer.join(CLOSE_WAIT_S)
        if not self._writer.is_alive():  # else the disk hangs; the thread still needs them, the exit frees them
            os.close(self._event)
            self._release()
        self._event = -1
