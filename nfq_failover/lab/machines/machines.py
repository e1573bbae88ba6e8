"""The lab of two virtual machines (vagrant/Vagrantfile), as programs use it; this host is the client.

Vagrant makes and boots the machines. All else goes over `vagrant/hypervisor` (power, cables) and one SSH connection per
machine that stays open, because each start of Vagrant takes seconds, and so does each login to an emulated machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.testbed import PROGRAM, Workload
from nfq_failover.lab.topology import multicast_hardware

MACHINES: Final = ("primary", "backup")  # of Vagrant; which of them serves is another matter
TAPS: Final = ("clone", "multicast")
_DIRECTORY: Final = Path(__file__).resolve().parents[3] / "vagrant"
_CONFIG: Final = "/etc/nfq-failover/config.toml"
_POLL_S: Final = 2.0
# A machine without hardware virtualization needs 40 s to log somebody in while it boots.
_LOGIN_S: Final = 120.0


def other(machine: str) -> str:
    """The machine that is not `machine`."""
    return MACHINES[1 - MACHINES.index(machine)]


class Machines:
    """The two machines, as a testbed. A context manager: its SSH connections end with it; the machines stay."""

    hosts: tuple[str, ...] = MACHINES

    _served: str | None = None  # the machine that served when it was last asked

    def __init__(self, directory: Path = _DIRECTORY) -> None:
        """Raises CommandError if there is no Vagrant."""
        if shutil.which("vagrant") is None:
            raise CommandError("Vagrant is not installed: see vagrant/README.md.")
        self.directory = directory
        network = os.environ.get("NFQF_NETWORK", "192.168.60")
        self.service = f"{network}.100"
        self._host_address = f"{network}.1"
        # A short path: it becomes the name of a socket.
        self._scratch = Path(tempfile.mkdtemp(prefix="nfqf-"))
        self._ssh_config: dict[str, Path] = {}

    def __enter__(self) -> Machines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in MACHINES:
            self.hang_up(machine)
        shutil.rmtree(self._scratch, ignore_errors=True)

    # ------------------------------------------------------------------------------------ power and cables

    def up(self, *machines: str, log: Path | None = None) -> None:
        """`vagrant up`; makes and provisions those that do not exist. What it prints goes to `log`. Raises LabError."""
        for machine in machines:
            self.hang_up(machine)
        with (log or self._scratch / "up.log").open("ab") as out:
            command = ["vagrant", "up", "--no-parallel", *machines]
            done = subprocess.run(command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        if done.returncode:
            said = Path(out.name).read_text(errors="replace").strip().splitlines()[-8:]
            raise LabError("\n    ".join([f"`{' '.join(command)}` failed:", *said]))

    def crash(self, machine: str) -> float:
        """Pull the machine's plug; the Unix time just before. It is off when this returns. Raises LabError."""
        moment = time.time()
        self._hypervisor("off", machine)
        self.hang_up(machine)
        return moment

    def restore(self, machine: str) -> None:
        """Press the machine's power button; returns before it has booted. Raises LabError."""
        self._hypervisor("on", machine)

    def is_on(self, machine: str) -> bool:
        """Whether the hypervisor says that it is on. Raises LabError if it does not know."""
        return self._hypervisor("status", machine) == "on"

    def exists(self, machine: str) -> bool:
        """Whether it has been made."""
        try:
            self._hypervisor("status", machine)
        except LabError:
            return False
        return True

    def cut(self, machine: str) -> float:
        """Pull its cable of the service's network; the Unix time just before."""
        moment = time.time()
        self._hypervisor("cut", machine)
        return moment

    def mend(self, machine: str) -> None:
        """Plug the cable in again."""
        self._hypervisor("mend", machine)

    def _hypervisor(self, action: str, machine: str) -> str:
        command = [str(self.directory / "hypervisor"), action, machine]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LabError(f"`hypervisor {action} {machine}` failed: {done.stderr.strip()}")
        return done.stdout.strip()

    # ------------------------------------------------------------------------------------ commands inside

    def ssh(self, machine: str, *options: str) -> list[str]:
        """The command line that runs what is added to it on `machine`, as the user `vagrant`. Raises LabError."""
        if machine not in self._ssh_config:
            done = subprocess.run(
                ["vagrant", "ssh-config", machine], cwd=self.directory, capture_output=True, text=True, timeout=120
            )
            if done.returncode:
                raise LabError(f"Vagrant does not know how to reach {machine}: {done.stderr.strip()}")
            path = self._scratch / f"{machine}.ssh"
            path.write_text(done.stdout)
            self._ssh_config[machine] = path
        shared = ["ControlMaster=auto", "ControlPersist=600", f"ControlPath={self._scratch}/{machine}"]
        careful = [f"ConnectTimeout={_LOGIN_S:.0f}", "ServerAliveInterval=10", "ServerAliveCountMax=6"]
        words = ["ssh", "-F", str(self._ssh_config[machine])]
        for setting in (*shared, *careful, "BatchMode=yes"):
            words += ["-o", setting]
        return [*words, *options, machine]

    def run(self, machine: str, command: str, timeout_s: float = 180.0) -> str:
        """Run a command of the remote shell's; what it printed. Raises LabError if it fails."""
        try:
            done = subprocess.run(
                [*self.ssh(machine), command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{machine} did not answer `{command}` within {timeout_s:g} s") from None
        if done.returncode:
            raise LabError(f"`{command}` on {machine}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def fetch(self, machine: str, path: str, target: Path) -> None:
        """Copy a file of the machine's that root may read. Raises LabError."""
        with target.open("wb") as file:
            command = [*self.ssh(machine), f"sudo cat {path}"]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, timeout=120)
        if done.returncode:
            raise LabError(f"{path} of {machine}: {done.stderr.decode(errors='replace').strip()}")

    def hang_up(self, machine: str) -> None:
        """End the SSH connection to it; the next command makes another one."""
        control = self._scratch / machine
        if control.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                command = ["ssh", "-o", f"ControlPath={control}", "-O", "exit", machine]
                subprocess.run(command, capture_output=True, timeout=10)
            control.unlink(missing_ok=True)
        self._ssh_config.pop(machine, None)  # the address may be another one after the next boot

    # ------------------------------------------------------------------------------------ the pair

    def status(self, machine: str) -> dict[str, Any] | None:
        """What its daemon says; None if it is off, or there is no daemon that answers."""
        try:
            if not self.is_on(machine):
                return None
            # Ahead of the daemon, which has -10: where a transfer takes all of an emulated machine's time, too.
            answer = json.loads(self.run(machine, "sudo nice -n -11 nfq-failover status --json"))
        except (LabError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def serving(self, first: str = MACHINES[0]) -> str | None:
        """The machine whose daemon says that it serves, `first` being asked first; None if none does."""
        for machine in (first, other(first)):
            status = self.status(machine)
            if status is not None and status["role"] == "primary":
                self._served = machine
                return machine
        return None

    def protected_pair(self) -> str | None:
        """The machine that serves, if the other one stands ready to take over; else None."""
        # Who served last is asked first, and the other one only when it matters: a question takes an emulated machine
        # seconds of its time, and one of the two may be booting.
        first = self._served or MACHINES[0]
        for machine in (first, other(first)):
            status = self.status(machine) or {}
            if status.get("role") == "primary":
                self._served = machine
                if status["state"] != "protected":
                    return None
                return machine if (self.status(other(machine)) or {}).get("state") == "shadowing" else None
        return None

    def wait_protected(self, deadline_s: float) -> str:
        """Wait until one serves and is protected by the other; which one. Raises LabError."""
        give_up = time.monotonic() + deadline_s
        while (serving := self.protected_pair()) is None:
            if time.monotonic() > give_up:
                said = {machine: self._summary(machine) for machine in MACHINES}
                raise LabError(f"The pair was not protected within {deadline_s:g} s: {said}")
            time.sleep(_POLL_S)
        return serving

    def _summary(self, machine: str) -> str:
        status = self.status(machine)
        return "no answer" if status is None else f"{status['role']}, {status['state']} {status['reason']}".strip()

    def protected_connections(self, machine: str) -> int:
        """How many connections the serving machine's daemon calls protected."""
        return int((self.status(machine) or {}).get("protected_connections", 0))

    def setting(self, machine: str, name: str) -> str:
        """The value of a plain setting in the machine's configuration, as it stands there without quotes."""
        for line in self.run(machine, f"sudo cat {_CONFIG}").splitlines():
            key, equals, value = line.partition(" = ")
            if equals and key == name:
                return value.strip().strip('"')
        raise LabError(f"there is no setting {name} on {machine}")

    def use_tap(self, tap: str) -> None:
        """Bring both daemons to this tap: both end, both begin again. Connections are lost. Raises LabError."""
        if any(self.setting(machine, "tap") != tap for machine in MACHINES):
            for machine in MACHINES:
                self.run(machine, f"sudo sed -i 's/^tap = .*/tap = \"{tap}\"/' {_CONFIG}")
                self.run(machine, "sudo systemctl stop nfq-failover")
            for machine in MACHINES:
                self.run(machine, "sudo systemctl start nfq-failover")
        self.teach_neighbour()

    def teach_neighbour(self) -> None:
        """With the multicast tap nobody answers ARP for the service: this host has a fixed entry. Raises LabError."""
        tap = next(self.setting(machine, "tap") for machine in MACHINES if self.is_on(machine))
        where = ["to", self.service, "dev", self.bridge()]
        if tap == "multicast":
            words = [
                "replace",
                self.service,
                "lladdr",
                multicast_hardware(self.service),
                "nud",
                "permanent",
                *where[2:],
            ]
        else:
            words = ["flush", "nud", "all", *where]
        done = subprocess.run(["ip", "neighbour", *words], capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"`ip neighbour {' '.join(words)}`: {done.stderr.strip()} (it needs root)")

    def capture(self, path: Path) -> Capture:
        """A capture of what the client sees, to be entered."""
        return Capture(path, self.service, interface=self.bridge())

    def start_workload(self, arguments: Sequence[str]) -> Workload:
        """Start a workload's client on this host; returns when its connections are open. Raises LabError."""
        return Workload([*PROGRAM, "client", *arguments, "--host", self.service])

    def bridge(self) -> str:
        """The host's interface in the service's network. Raises LabError if there is none."""
        shown = subprocess.run(["ip", "-json", "-4", "address", "show"], capture_output=True, text=True, check=True)
        for link in json.loads(shown.stdout):
            if any(address.get("local") == self._host_address for address in link.get("addr_info", [])):
                return str(link["ifname"])
        raise LabError(f"no interface of this host has the address {self._host_address}: are the machines up?")
