"""Network namespaces without helper processes: enter, look inside, kill, set links, all by system call.

A namespace is the file `/run/netns/NAME` that `ip netns add` made. Entering concerns the calling thread only; what it
starts or opens while inside stays inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from nfq_failover.errors import NfqFailoverError

_DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCETHTOOL = 0x8913, 0x8914, 0x8946  # linux/sockios.h
_IFF_UP = 0x1
# linux/ethtool.h: the old one-feature requests, which every driver still takes.
_ETHTOOL_STSO, _ETHTOOL_SGSO, _ETHTOOL_SGRO = 0x1F, 0x24, 0x2C
_TCP_LISTEN = "0A"  # the state column of /proc/net/tcp

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(NfqFailoverError):
    """The lab could not do what it was told, though the command was right. Exit code 1."""


def exists(namespace: str) -> bool:
    """Whether there is a namespace of that name."""
    return (_DIRECTORY / namespace).exists()


def number(namespace: str) -> int:
    """The kernel's number of the namespace, as in `readlink /proc/self/ns/net`."""
    return (_DIRECTORY / namespace).stat().st_ino


def enter(namespace: str) -> None:
    """Move the calling thread into a namespace, for good."""
    descriptor = os.open(_DIRECTORY / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """While inside of this context, the calling thread is in the namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def pids(namespace: str) -> list[int]:
    """The processes whose main thread is inside, as `ip netns pids` gives them. A zombie has left already."""
    try:
        wanted = number(namespace)
    except FileNotFoundError:
        return []
    found = []
    # The fence does this during a takeover: no Path objects, which are slow.
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino == wanted:  # noqa: PTH116
                    found.append(int(entry))
    return found


def kill_all(namespace: str, deadline_s: float = 5.0) -> None:
    """SIGKILL every process inside, again until there is none. Raises LabError if some outlive the deadline."""
    give_up = time.monotonic() + deadline_s
    pause = 0.0005
    while alive := [pid for pid in pids(namespace) if pid != os.getpid()]:
        if time.monotonic() > give_up:
            raise LabError(
                f"these processes in {namespace} do not die: {alive}. See /proc/PID/stack for what holds them."
            )
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def control_socket(namespace: str) -> socket.socket:
    """A socket inside, for requests about links."""
    with entered(namespace):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def link_is_up(control: socket.socket, interface: str) -> bool:
    """Whether the interface exists and is administratively up."""
    try:
        return bool(_flags(control, interface) & _IFF_UP)
    except OSError:
        return False


def set_link_down(control: socket.socket, interface: str) -> None:
    """Take a link down: nothing crosses it once this returns (0.2 ms on a veth). No error if it does not exist."""
    with contextlib.suppress(OSError):
        flags = _flags(control, interface) & ~_IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", interface.encode(), flags))


def _flags(control: socket.socket, interface: str) -> int:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh14x", interface.encode(), 0))
    return int(struct.unpack("16sh14x", answer)[1])


def cut_segments_before_the_wire(control: socket.socket, interface: str) -> None:
    """No super-segment crosses the wire: TSO, GSO and GRO off."""
    for request in (_ETHTOOL_STSO, _ETHTOOL_SGSO, _ETHTOOL_SGRO):
        value = ctypes.create_string_buffer(struct.pack("II", request, 0))
        fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))[:40])


def write_sysctls(namespace: str, values: dict[str, str]) -> None:
    """Set kernel parameters (dotted names) inside; what this kernel does not have is an OSError."""
    with entered(namespace):
        for name, value in values.items():
            Path("/proc/sys", *name.split(".")).write_text(value)


def listeners(namespace: str, wanted: Callable[[int], bool]) -> dict[int, int]:
    """Listening TCP sockets on ports that `wanted` accepts: inode of the socket to port."""
    found = {}
    with entered(namespace):
        for family in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):
                for line in Path(f"/proc/thread-self/net/{family}").read_text().splitlines()[1:]:
                    fields = line.split()
                    port = int(fields[1].rsplit(":", 1)[1], 16)
                    if fields[3] == _TCP_LISTEN and wanted(port):
                        found[int(fields[9])] = port
    return found


def has_address(namespace: str, address: str) -> bool:
    """Whether `address` is a local address inside."""
    with entered(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


_started: list[subprocess.Popen[bytes]] = []


def spawn(
    namespace: str, argv: Sequence[str], log: Path, cwd: str | None = None, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process inside, in a session of its own, with its output appended to `log`. It outlives the caller.

    It has the descriptors 0 to 2 only, and none of them is the caller's. Raises LabError if there is no such program.
    """
    reap()
    with open(log, "ab") as output, entered(namespace):
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=cwd, env=env
            )
        except OSError as error:
            raise LabError(f"can't start {argv[0]}: {error.strerror}.") from error
    _started.append(process)
    return process


def become(namespace: str, argv: Sequence[str]) -> NoReturn:
    """Replace this process by `argv`, inside, with the descriptors 0 to 2 only. OSError if there is no such program."""
    enter(namespace)
    _pass_standard_streams_only()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores these, and a new program would inherit that
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(argv[0], list(argv))  # noqa: S606


def _pass_standard_streams_only() -> None:
    """Let no descriptor above 2 pass to the program that replaces this one: it may be a lock of our caller's."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.set_inheritable(int(name), False)


def reap() -> None:
    """Collect what ended among the processes that this one started."""
    _started[:] = [process for process in _started if process.poll() is None]


def tool(argv: Sequence[str], script: str | None = None, namespace: str | None = None, check: bool = True) -> str:
    """Run a system tool to its end, inside `namespace` if given, and return its output; if it fails, LabError."""
    context = entered(namespace) if namespace else contextlib.nullcontext()
    with context:
        try:
            done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=30)
        except FileNotFoundError as error:
            raise LabError(f"{argv[0]} is not installed. script/bootstrap installs what the lab needs.") from error
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout


def present(namespaces: Collection[str]) -> list[str]:
    """Those of the namespaces that exist."""
    return [namespace for namespace in namespaces if exists(namespace)]
