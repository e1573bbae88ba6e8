"""The host's firewall rules: runs `iptables/nfq-failover-rules`, the same script that an operator runs by hand.

Nothing here goes through a shell: the script gets an argument vector. It takes some tens of milliseconds, so the daemon
uses the `start_*` variants: they return a `RunningScript` whose `pidfd()` becomes readable when the script is done.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Final

from nfq_failover.constants import DEFAULT_MARK, DEFAULT_QUEUE_IN, DEFAULT_QUEUE_OUT
from nfq_failover.core.events import Profile
from nfq_failover.core.ports import Ports
from nfq_failover.errors import ConfigError, NfqFailoverError
from nfq_failover.wire.segment import FlowKey

_SCRIPT: Final = "nfq-failover-rules"
PROBLEM: Final = 3  # the script's exit code for "something that was installed is missing or changed"
_TIMEOUT_S: Final = 30.0
_ASK_AGAIN_S: Final = 0.05
# Neighbour states whose MAC address is known, linux/neighbour.h: REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT.
_KNOWN_STATES: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80


class RulesError(NfqFailoverError):
    """The script failed or refused. `status` is its exit code (2: a refusal), `detail` what it said."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail or f"{_SCRIPT} ended with exit code {status}")
        self.status = status
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PeerHost:
    """A backup that the clone tap feeds: its own address, and its MAC address or None to look it up."""

    address: str
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class RulesOptions:
    """What the script is told besides the role. `ports` are inclusive ranges; None stands for the script's default.

    `owned`: the daemon's packets are known by the group of their socket.
    """

    service: str
    ports: tuple[tuple[int, int], ...]
    interface: str
    tap: str = "clone"
    peers: tuple[PeerHost, ...] = ()
    conntrack: str = "notrack"
    guard: str = "auto"
    instance: str = "default"
    queue_in: int = DEFAULT_QUEUE_IN
    queue_out: int = DEFAULT_QUEUE_OUT
    mark: int = DEFAULT_MARK
    owned: bool = True
    strict: bool = False
    iptables: str | None = None
    state_dir: Path | None = None
    script: Path | None = None


def find_script(override: Path | None = None) -> Path:
    """Returns the path of the script: `override`, or the wheel's or checkout's. Raises ConfigError if there is none."""
    package = Path(__file__).resolve().parents[2]
    places = [override] if override else [package / "_iptables" / _SCRIPT, package.parent / "iptables" / _SCRIPT]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"there is no {' nor '.join(map(str, places))}: set the rules script in the configuration")


def _essence(said: str) -> str:
    """Returns the text without what iptables-nft says at every call on a host where the legacy kind was once used."""
    return "\n".join(line for line in said.splitlines() if "iptables-legacy tables present" not in line).strip()


@dataclass(slots=True)
class RunningScript:
    """A run of the script. Wait until `pidfd()` is readable, then call `finish()`, which closes everything."""

    process: subprocess.Popen[bytes]
    _output: IO[bytes]
    _input: IO[bytes] | None = None
    _pidfd: int = -1
    _result: tuple[int, str] | None = field(default=None)

    def pidfd(self) -> int:
        """A descriptor that polls readable when the script has ended; ours to close, in `finish`."""
        if self._pidfd < 0:
            self._pidfd = os.pidfd_open(self.process.pid)
        return self._pidfd

    def wait(self, timeout_s: float = _TIMEOUT_S) -> tuple[int, str]:
        """Returns exit code and what the script said on stderr. Past the timeout it is stopped, and undoes its work."""
        if self._result is None:
            try:
                status = self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                status = self.process.wait()
            self._output.seek(0)
            self._result = status, _essence(self._output.read().decode(errors="replace"))
            self._output.close()
            if self._input is not None:
                self._input.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
        return self._result

    def finish(self) -> str:
        """Returns the warnings ('' for none) of a run that succeeded. Raises RulesError for one that did not."""
        status, said = self.wait()
        if status:
            raise RulesError(status, said)
        return said

    def finish_check(self) -> str | None:
        """For `start_check`: returns None if all rules are as installed, else what is missing or changed."""
        status, said = self.wait()
        if status == 0:
            return None
        if status == PROBLEM:
            return said
        raise RulesError(status, said)


class RulesRunner:
    """Brings the host's rules to a profile, and sees whether they are still there.

    Without a configured MAC address, a peer's comes from the neighbour table, which has it for as long as heartbeats
    are exchanged with the peer. For a protected primary, the only one that clones, an unknown peer is an error.
    """

    def __init__(self, options: RulesOptions) -> None:
        """Raises ConfigError if the script can't be found."""
        self.options = options
        self._script = find_script(options.script)
        self._macs: dict[str, str] = {}

    def serve(self, ports: Ports) -> None:
        """The service has these ports now."""
        self.options = replace(self.options, ports=ports)

    def arguments(self, profile: Profile, inherited: bool = False, ports: Ports | None = None) -> list[str]:
        """Returns the argument vector of an installation; the inherited connections are passed on standard input."""
        options = self.options
        argv = [*self._command("install"), "--role", profile.value, *self._choices(ports or options.ports)]
        argv += ["--queue-in", str(options.queue_in), "--queue-out", str(options.queue_out), "--guard", options.guard]
        if options.strict:
            argv.append("--strict")
        if inherited:
            argv += ["--inherited", "-"]
        if options.tap == "clone" and profile is Profile.PRIMARY:
            for address, mac in self._known_peers():
                argv += ["--peer", address, "--peer-mac", mac]
        return argv

    def start_apply(
        self, profile: Profile, inherited: tuple[FlowKey, ...] = (), ports: Ports | None = None
    ) -> RunningScript:
        """Begin to install a profile; call `finish` on the answer. `ports`: those that are diverted; None: all. Raises
        RulesError if a peer's MAC is unknown."""
        flows = "".join(f"{ip_address(c)} {c_port} {s_port}\n" for c, c_port, _, s_port in inherited)
        return self._start(self.arguments(profile, bool(inherited), ports), flows)

    def apply(self, profile: Profile, inherited: tuple[FlowKey, ...] = (), ports: Ports | None = None) -> str:
        """Install a profile and wait for it, with unknown peers found by ARP. Returns warnings. Raises RulesError."""
        if self.options.tap == "clone" and profile is Profile.PRIMARY:
            for peer in self.options.peers:
                if peer.mac is None:
                    self._note_mac(peer.address, resolve_mac(peer.address))
        return self.start_apply(profile, inherited, ports).finish()

    def start_check(self) -> RunningScript:
        """Begin to compare the rules with what was installed; call `finish_check` on the answer."""
        return self._start(self._command("check"))

    def start_look(self) -> RunningScript:
        """Begin to see what of the host's own rules does not go with ours; call `finish_check` on the answer, whose
        lines are code, weight, what it is and the cure, with tabs between them."""
        return self._start([*self._command("host"), *self._choices(self.options.ports)])

    def check(self) -> str | None:
        """Returns None if all rules are as installed, else what is missing or changed."""
        return self.start_check().finish_check()

    def start_remove(self, force: bool = False) -> RunningScript:
        """Begin to take everything out again; refused, unless forced, while the service address is configured."""
        argv = [*self._command("remove"), "--service", self.options.service]
        return self._start([*argv, "--force"] if force else argv)

    def remove(self, force: bool = False) -> str:
        """Take everything out again, and wait for it. Raises RulesError."""
        return self.start_remove(force).finish()

    def _choices(self, ports: Ports) -> list[str]:
        """What the service is, and how its packets are treated."""
        options = self.options
        listed = ",".join(f"{low}:{high}" if low != high else str(low) for low, high in ports)
        argv = ["--service", options.service, "--ports", listed, "--interface", options.interface]
        argv += ["--tap", options.tap, "--conntrack", options.conntrack, "--mark", f"{options.mark:#x}"]
        return argv if options.owned else [*argv, "--own", "mark"]

    def _command(self, verb: str) -> list[str]:
        argv = ["sh", str(self._script), verb, "--instance", self.options.instance]
        if self.options.iptables:
            argv += ["--iptables", self.options.iptables]
        if self.options.state_dir:
            argv += ["--state-dir", str(self.options.state_dir)]
        return argv

    def _start(self, argv: list[str], stdin: str = "") -> RunningScript:
        output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by RunningScript
        source = None
        if stdin:
            source = tempfile.TemporaryFile()  # noqa: SIM115
            source.write(stdin.encode())
            source.seek(0)
        try:
            process = subprocess.Popen(
                argv, stdin=source or subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output
            )
        except OSError as error:
            output.close()
            if source is not None:
                source.close()
            raise RulesError(-1, f"can't run {argv[0]}: {error}; is there a POSIX shell in the PATH?") from error
        return RunningScript(process, output, source)

    def _known_peers(self) -> list[tuple[str, str]]:
        known = []
        for peer in self.options.peers:
            mac = peer.mac
            if mac is None:
                self._note_mac(peer.address, lookup_mac(peer.address))
                mac = self._macs.get(peer.address)
            if mac is not None:
                known.append((peer.address, mac))
            else:
                raise RulesError(
                    -1, f"the MAC address of peer {peer.address} is not known: is it up? Or set it in the configuration"
                )
        return known

    def _note_mac(self, address: str, mac: str | None) -> None:
        if mac is not None:
            self._macs[address] = mac


def lookup_mac(address: str) -> str | None:
    """Returns the MAC address that the kernel's neighbour table has for an IPv4 address, or None. Sends nothing."""
    from pyroute2 import IPRoute  # takes long to load, and few need it

    with IPRoute() as route:
        for entry in route.get_neighbours(family=socket.AF_INET, dst=address):
            mac: str | None = entry.get_attr("NDA_LLADDR")
            if mac is not None and entry["state"] & _KNOWN_STATES:
                return mac.lower()
    return None


def resolve_mac(address: str, timeout_s: float = 1.0) -> str | None:
    """Returns a neighbour's MAC address, from the table or by making the kernel ask (ARP). None if nobody answers.

    What makes the kernel ask is an empty datagram to the discard port (RFC 863). Blocks for up to `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    mac = lookup_mac(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        # Ends: by the deadline.
        while mac is None and time.monotonic() < deadline:
            try:
                asking.sendto(b"", (address, 9))
            except OSError:
                pass  # no route at the moment, or an ICMP error for the previous datagram; the deadline decides
            time.sleep(_ASK_AGAIN_S)
            mac = lookup_mac(address)
    return mac
