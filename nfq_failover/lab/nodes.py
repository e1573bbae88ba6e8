"""What runs on the lab's nodes: daemons, scramble stages, applications, fence agent, witness; what a daemon says."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nfq_failover.constants import DEFAULT_SYNC_PORT
from nfq_failover.lab import fence_agent, netns
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Application, LabState, Options, Store, write_private
from nfq_failover.lab.testbed import POLL_S, wait_until
from nfq_failover.lab.topology import Topology, namespace

# The fence takes 10 ms. A primary that lost its backup holds acknowledgements until the backup's deadline has passed.
_FENCE_DEADLINE_MS: Final = 1000
_HEALTH_INTERVAL_MS: Final = 200
_HEALTH_TIMEOUT_MS: Final = 1000
_SCRAMBLE_QUEUES: Final = (7770, 7771)
_ANSWER_DEADLINE_S: Final = 2.0
_LARGEST_WRAP_BYTES: Final = 3_000_000
_LARGEST_WRAP_MS: Final = 3_000
_TAIL_LINES: Final = 15


def tail(path: Path) -> str:
    """The last lines of a log, indented, for an error message."""
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "".join(f"\n    {line}" for line in lines)
    return ""


def start_agent(store: Store, topology: Topology) -> None:
    """Start the power switch; it can be asked when this returns."""
    argv = [sys.executable, "-P", "-m", "nfq_failover.lab.fence_agent", store.name]
    log = store.log("fence-agent")
    process = netns.spawn(namespace(store.name, topology.fence_agent), argv, log)

    def ready() -> bool:
        if process.poll() is not None:
            raise LabError(f"The fence agent has ended:{tail(log)}")
        return fence_agent.is_listening(store.name, topology)

    wait_until(ready, 10, f"The fence agent did not listen ({log})")


def start_witness(store: Store, topology: Topology) -> subprocess.Popen[bytes]:
    """Start the witness; it listens when this returns. Its decisions outlive it."""
    program = str(Path(sys.executable).with_name("nfq-failover"))
    argv = [program, "witness", "--listen", topology.address(topology.witness)]
    argv += ["--key", str(store.directory / "sync.key"), "--state-dir", str(store.directory / "witness")]
    log = store.log("witness")
    said = log.stat().st_size if log.exists() else 0
    process = netns.spawn(namespace(store.name, topology.witness), argv, log)

    def listens() -> bool:
        if process.poll() is not None:
            raise LabError(f"The witness has ended:{tail(log)}")
        return "listening" in log.read_text(errors="replace")[said:]

    wait_until(listens, 15, f"The witness did not listen ({log})")
    return process


# ------------------------------------------------------------------------------------------------ scramble stage


def scramble_plan(topology: Topology, seed: int, host: str, boot: int) -> dict[str, int]:
    """How the host's numbers are shifted in this boot: other constants on each host, and in half of the boots such that
    2^32 wraps within the first megabytes and seconds of each connection."""
    draw = random.Random(f"{seed}/{host}/{boot}")
    plan = {"seq-add": draw.randrange(1 << 28, 15 << 28), "ts-add": draw.randrange(1 << 28, 15 << 28)}
    if random.Random(f"{seed}/wrap/{boot}").random() < 0.5:
        # Modulo their number each host has a remainder of its own: never alike.
        hosts, remainder = len(topology.hosts), topology.hosts.index(host)
        plan["wrap-after-bytes"] = hosts * draw.randrange(500, _LARGEST_WRAP_BYTES // hosts) + remainder
        plan["wrap-after-ms"] = hosts * draw.randrange(100, _LARGEST_WRAP_MS // hosts) + remainder
    return plan


def start_scrambler(store: Store, state: LabState, node: str) -> Callable[[], None]:
    """Start the stage that makes the host's numbers its own; returns what waits until it is in force."""
    ready = store.directory / node / "scramble-ready"
    ready.unlink(missing_ok=True)
    ports = ",".join(text.replace("-", ":") for text in state.options.ports)
    argv = [sys.executable, "-P", "-m", "nfq_failover.lab.scramble", "--service", state.topology.service]
    argv += ["--ports", ports, "--ready-file", str(ready)]
    argv += ["--queue-out", str(_SCRAMBLE_QUEUES[0]), "--queue-in", str(_SCRAMBLE_QUEUES[1])]
    for option, value in scramble_plan(state.topology, state.seed, node, state.boots[node]).items():
        argv += [f"--{option}", str(value)]
    log = store.log(f"scramble-{node}")
    process = netns.spawn(namespace(store.name, node), argv, log)

    def in_force() -> bool:
        if process.poll() is not None:
            raise LabError(f"The scramble stage on {node} has ended:{tail(log)}")
        return ready.exists()

    return lambda: wait_until(in_force, 15, f"The scramble stage on {node} was not ready ({log})")


# -------------------------------------------------------------------------------------------------------- daemon


def write_config(store: Store, state: LabState, node: str) -> Path:
    """Write the daemon's configuration to the server's disk."""
    options, topology = state.options, state.topology
    disk = store.directory / node
    script = fence_agent.write_script(store, topology, node)
    fence = f'fence = ["{script}", "{{peer}}"]\nfence_deadline_ms = {_FENCE_DEADLINE_MS}' if options.fence else ""
    ports = ", ".join(f'"{text}"' for text in options.ports)
    more = "".join(f"{line}\n" for line in options.settings)
    text = f"""# Made by `nfq-failover lab up`.
name = "{node}"
service = "{topology.service}"
ports = [{ports}]
interface = "eth0"
tap = "{options.tap}"
tap_mac = "{topology.multicast_hardware}"
state_dir = "{disk}/state"
run_dir = "{disk}/run"
key_file = "{store.directory}/sync.key"
listen = "{topology.address(node)}:{DEFAULT_SYNC_PORT}"
prefer_primary = {"true" if node == topology.hosts[0] else "false"}
heartbeat_interval_ms = {options.heartbeat_ms}
{fence}
{more}"""
    for peer in topology.others(node):
        text += f"""
[[peer]]
name = "{peer}"
address = "{topology.address(peer)}"
mac = "{topology.hardware(peer)}"
"""
    if options.witness:
        text += f"""
[witness]
address = "{topology.address(topology.witness)}"
"""
    if options.health:
        text += f"""
[health]
port = {options.port_ranges()[0][0]}
interval_ms = {_HEALTH_INTERVAL_MS}
timeout_ms = {_HEALTH_TIMEOUT_MS}
"""
    text += f'\n[divergence]\npolicy = "{options.divergence}"\n'
    if options.out_of_step_ms:
        text += f"out_of_step_ms = {options.out_of_step_ms}\n"
    path = disk / "config.toml"
    write_private(path, text)
    return path


def start_daemon(store: Store, node: str) -> subprocess.Popen[bytes]:
    """Start the node's daemon on the configuration that is on its disk; its process id goes into `daemon.pid` there."""
    (store.directory / node / "state").mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("nfq-failover")
    argv = [str(program), "run", "--config", str(store.directory / node / "config.toml")]
    process = netns.spawn(namespace(store.name, node), argv, store.log(f"daemon-{node}"))
    (store.directory / node / "daemon.pid").write_text(f"{process.pid}\n")
    return process


def ask_daemon(store: Store, node: str) -> dict[str, Any] | None:
    """The daemon's own status, over its control socket; None if it doesn't answer."""
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_DEADLINE_S)
        connection.connect(str(store.directory / node / "state" / "control.sock"))
        connection.sendall(b'{"command":"status"}\n')
        data = b""
        while not data.endswith(b"\n"):
            chunk = connection.recv(1 << 20)
            if not chunk:
                break
            data += chunk
        answer = json.loads(data)
        if isinstance(answer, dict):
            return answer
    return None


# -------------------------------------------------------------------------------------------------- applications


class Starting:
    """An application that has been started on a server and does not listen so far."""

    def __init__(self, store: Store, options: Options, node: str, number: int, application: Application) -> None:
        self.node = node
        self.log = store.log(f"serve-{number}-{node}")
        self._inside = namespace(store.name, node)
        self._options = options
        self._before = set(netns.listeners(self._inside, options.serves))
        self._argv = application.argv
        cwd, env = application.cwd, application.env
        self._process = netns.spawn(self._inside, application.argv, self.log, cwd=cwd, env=env)
        self._ended_at: float | None = None

    def listens(self) -> bool:
        """Whether it listens on a port of the service. LabError if it has died before."""
        if set(netns.listeners(self._inside, self._options.serves)) - self._before:
            return True
        code = self._process.poll()
        if code is None:
            return False
        self._ended_at = self._ended_at or time.monotonic()
        # One that forks to the background ends with 0 at once, and its child listens a moment later.
        if code == 0 and time.monotonic() - self._ended_at < 2:
            return False
        raise LabError(
            f"{self._argv[0]} on {self.node} ended with exit code {code} before it listened:{tail(self.log)}"
        )

    def complain(self) -> str:
        """Say why it is not there."""
        elsewhere = sorted(set(netns.listeners(self._inside, lambda port: not self._options.serves(port)).values()))
        hint = f" It listens on {elsewhere}, which --port of `lab up` does not include." if elsewhere else ""
        return f"{self._argv[0]} does not listen on a port of the service on {self.node}.{hint}{tail(self.log)}"

    def stop(self) -> None:
        """Kill it, with what it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start_applications(starting: list[Starting], deadline_s: float = 20.0) -> None:
    """Wait until all of them listen. LabError, and none of them runs, if one does not."""
    try:
        give_up = time.monotonic() + deadline_s
        waiting = list(starting)
        while waiting := [one for one in waiting if not one.listens()]:
            if time.monotonic() > give_up:
                raise LabError(waiting[0].complain())
            time.sleep(POLL_S)
    except BaseException:
        for one in starting:
            one.stop()
        raise
