"""Which rights a process of ours keeps: an unprivileged user, a named set of capabilities, and no way to get more.

Nothing here logs, or imports much: the heartbeat sender uses it as well. docs/operate/privileges.md has the table of
who keeps what and why; capabilities(7) has the rules of the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError

# linux/capability.h, in the order of their numbers.
_NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
NUMBERS: Final = {f"CAP_{name}": number for number, name in enumerate(_NAMES)}

# The daemon: queues, marks, socket buffers and the interface's ARP settings; raw packets, announcements and copies.
DAEMON: Final = frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW"})
# The helper: rules (and their modules), files of any owner for the fence, and what starts the heartbeat sender.
HELPER: Final = frozenset(
    {
        *("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_MODULE", "CAP_DAC_OVERRIDE", "CAP_KILL"),
        *("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SYS_NICE", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE"),
    }
)
NOTHING: Final[frozenset[str]] = frozenset()


_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 4, 8, 24  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")
_STATUS: Final = Path("/proc/thread-self/status")

_libc = ctypes.CDLL(None, use_errno=True)


# ------------------------------------------------------------------------------------------------ the kernel's calls


def _prctl(option: int, *arguments: int) -> None:
    if _libc.prctl(option, *(ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4])):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mask(names: frozenset[str]) -> int:
    return sum(1 << NUMBERS[name] for name in names)


def _capset(names: frozenset[str]) -> None:
    """Set the effective and the permitted set of the calling thread, with nothing inheritable."""
    mask = _mask(names)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if _libc.capset(header, data):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _limit_bounding(names: frozenset[str]) -> None:
    """Let nothing that this thread executes get more than `names`. Needs CAP_SETPCAP for what has to go."""
    kept, have = _mask(names), bounding()
    for number in range(int(_LAST.read_text()) + 1):
        if have & 1 << number and not kept & 1 << number:
            _prctl(_PR_CAPBSET_DROP, number)


def _field(name: str) -> str:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return "0"


def bounding() -> int:
    """Returns the bounding set of the calling thread, as a mask."""
    return int(_field("CapBnd"), 16)


def _permitted() -> frozenset[str]:
    mask = int(_field("CapPrm"), 16)
    return frozenset(name for name, number in NUMBERS.items() if mask & 1 << number)


def describe() -> dict[str, object]:
    """Returns, for the status, who the calling thread is and what it may do."""
    mask = int(_field("CapPrm"), 16)
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "capabilities": [name for name, number in NUMBERS.items() if mask & 1 << number],
        "no_new_privileges": _field("NoNewPrivs") == "1",
    }


# ------------------------------------------------------------------------------------------------ giving rights up


def become(uid: int, gid: int, keep: frozenset[str]) -> None:
    """Become that user, with these capabilities alone, for good: nothing that is executed from here on regains any.

    This concerns the calling thread and those that it starts later; other threads change their user, and lose all
    capabilities. Raises `CommandError`.
    """
    try:
        _limit_bounding(keep)
        os.setgroups([])
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _capset(keep)
        _prctl(_PR_SET_KEEPCAPS, 0)
        with contextlib.suppress(OSError):  # empty already, since nothing is inheritable; before Linux 4.3 unknown
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_DUMPABLE, 0)  # no other process of the same user may look into it, or steer it
    except OSError as error:
        raise CommandError(
            f"can't become user {uid} with {', '.join(sorted(keep)) or 'no capabilities'} ({error.strerror}): grant "
            "CAP_SETUID, CAP_SETGID, CAP_SETPCAP and CAP_CHOWN at the start, or set drop = false in [privileges]"
        ) from None
    sets = {name: int(_field(name), 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")}
    wanted = _mask(keep)
    if (sets["CapPrm"], sets["CapEff"], sets["CapInh"], sets["CapAmb"]) != (wanted, wanted, 0, 0) or sets[
        "CapBnd"
    ] & ~wanted:
        raise CommandError(f"the kernel did not take the rights away that were given up: {sets}")
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
        raise CommandError("the kernel did not take the user away that was given up")


def limit(keep: frozenset[str], no_new_privileges: bool) -> None:
    """Stay the same user, with at most these capabilities, also in what is executed. Raises OSError."""
    _limit_bounding(keep)
    _capset(keep & _permitted())
    if no_new_privileges:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def threads() -> int:
    """Returns how many threads this process has. One that is there before `become` keeps its bounding set."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def hold_nothing() -> None:
    """Give up all capabilities of the calling thread, which needs none."""
    with contextlib.suppress(OSError):
        _capset(NOTHING)
