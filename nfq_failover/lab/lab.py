"""The lab as an object: what `nfq-failover lab` does, for programs in the same process.

    lab = Lab("mine")
    lab.up(Options(rate="200mbit"))
    lab.serve(["nginx", "-c", "/etc/nginx/nginx.conf"])
    lab.crash("primary")
    lab.down()

Methods raise CommandError for misuse (exit code 2 of the command) and LabError when the lab itself fails (1).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from nfq_failover.errors import CommandError
from nfq_failover.lab import cables, netns, nodes, power, wires
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Application, Cut, LabState, Options, Store
from nfq_failover.lab.testbed import wait_until
from nfq_failover.lab.topology import TWO_HOSTS, Topology, namespace

ROLES: Final = ("primary", "backup")
CONNECTION_KEYS: Final = (
    *("client", "server", "protected", "reason"),
    *("logged_bytes", "confirmed_bytes", "lag_bytes", "differences"),
)
_PROTECT_DEADLINE_S: Final = 30.0
_ADDRESS_DEADLINE_S: Final = 20.0


class Lab:
    """One lab. The object holds its name and what `up` would build: several objects may stand for the same lab."""

    def __init__(self, name: str = "nfqf", topology: Topology = TWO_HOSTS) -> None:
        self.name = name
        self.store = Store(name)
        self._topology = topology

    @property
    def topology(self) -> Topology:
        """The topology of the lab that is up; if none is, of the one that `up` would build."""
        return self.store.read().topology if self.store.exists else self._topology

    # ---------------------------------------------------------------------------------------------- up and down

    def up(self, options: Options | None = None, seed: int | None = None) -> None:
        """Build it and start the daemons; returns when the pair is protected. Nothing stays behind if that fails."""
        options = options or Options()
        options.check(self._topology)
        _need_root()
        taken = netns.present(self._topology.namespaces(self.name))
        if taken and not self.store.exists:
            raise CommandError(
                f"These namespaces exist already: {', '.join(taken)}. If they are left over from a lab:"
                f" nfq-failover lab --name {self.name} down"
            )
        boots = dict.fromkeys(self._topology.hosts, 1)
        state = LabState(options, secrets.randbits(32) if seed is None else seed, self._topology, boots=boots)
        self.store.create(state)
        try:
            wires.build_all(self.name, state.topology, options.wires)
            cables.apply(self.name, state)
            if not options.plain:
                self._start_daemons(state)
            with self.store.changing() as now:
                now.came_up()
        except BaseException:
            with contextlib.suppress(CommandError):
                self.down()
            raise

    def _start_daemons(self, state: LabState) -> None:
        hosts = state.topology.hosts
        nodes.start_agent(self.store, state.topology)
        if state.options.witness:
            nodes.start_witness(self.store, state.topology)
        for host in hosts:
            nodes.write_config(self.store, state, host)
        daemons = self._boot(state, hosts)
        self._wait_protected(daemons, primary=hosts[0])

    def _boot(self, state: LabState, hosts: Sequence[str]) -> dict[str, subprocess.Popen[bytes]]:
        if state.options.scramble:
            stages = [nodes.start_scrambler(self.store, state, host) for host in hosts]
            for wait in stages:
                wait()
        return {host: nodes.start_daemon(self.store, host) for host in hosts}

    def down(self) -> None:
        """Take everything away, also of a lab that is half up. CommandError if there is nothing of that name."""
        _need_root()
        try:
            topology = self.topology
        except CommandError:  # another version has made it
            topology = self._topology
        present = netns.present(topology.namespaces(self.name))
        if not present and not self.store.directory.exists():
            raise CommandError(f"There is no lab {self.name!r}: nothing to take down.")
        # The fence agent first: it must not act on what goes on now.
        agent = namespace(self.name, topology.fence_agent)
        for target in sorted(present, key=lambda target: target != agent):
            netns.kill_all(target)
        for target in present:
            wires.clear_namespace(target)
        netns.reap()
        self.store.remove()

    # ------------------------------------------------------------------------------------------------- commands

    def resolve(self, node: str) -> str:
        """A node's name from its name or its role of this moment. CommandError if there is no such node now."""
        return self._resolve(node, self.store.read().topology.names)

    def _resolve_host(self, node: str) -> str:
        """A host's name from its name or its role of this moment. CommandError if there is no such host now."""
        return self._resolve(node, self.store.read().topology.hosts)

    def _resolve(self, node: str, among: Sequence[str]) -> str:
        state = self.store.read()
        if node not in ROLES:
            if node not in among:
                raise CommandError(f"There is no node {node!r} for this. Use one of: {', '.join((*among, *ROLES))}.")
            return node
        if state.options.plain:
            return state.topology.hosts[ROLES.index(node)]
        rows = {name: (nodes.ask_daemon(self.store, name) or {}) for name in power.hosts_on(self.name, state.topology)}
        held = [name for name, row in rows.items() if row.get("role") == node]
        if not held:
            told = ", ".join(f"{name} is {row['state']}" for name, row in self.status()["nodes"].items())
            raise CommandError(f"No server is {node} now: {told}.")
        return max(held, key=lambda name: int(rows[name].get("epoch", 0)))

    def exec(self, node: str, argv: Sequence[str]) -> NoReturn:
        """Become `argv`, inside the node. CommandError if the node is off, OSError if there is no such program."""
        inside = self._inside(node)
        netns.become(inside, argv)

    def run(self, node: str, argv: Sequence[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside the node to its end, and give what it printed."""
        with netns.entered(self._inside(node)):
            return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)

    def popen(self, node: str, argv: Sequence[str], **arguments: Any) -> subprocess.Popen[Any]:
        """A `subprocess.Popen` inside the node."""
        with netns.entered(self._inside(node)):
            return subprocess.Popen(argv, **arguments)

    def detach(self, node: str, argv: Sequence[str]) -> tuple[int, Path]:
        """Start a command inside the node and leave it alone; its process id, and the file with its output."""
        inside = self._inside(node)
        log = self.store.log(f"exec-{time.time_ns()}")
        return netns.spawn(inside, argv, log).pid, log

    def serve(self, argv: Sequence[str], cwd: str | None = None, env: dict[str, str] | None = None) -> list[str]:
        """Start the same application on all hosts; returns those that are on, when it listens there."""
        state = self.store.read()
        servers = power.hosts_on(self.name, state.topology)
        if not servers:
            raise CommandError(f"All servers are off. Boot one first: restore {state.topology.hosts[0]}")
        application = Application(tuple(argv), cwd or str(Path.cwd()), dict(os.environ) if env is None else env)
        number = len(state.applications)
        self._start_applications(state, servers, [(number, application)])
        with self.store.changing() as now:
            now.applications.append(application)
        return servers

    def _start_applications(
        self, state: LabState, servers: Sequence[str], numbered: Sequence[tuple[int, Application]]
    ) -> None:
        for number, application in numbered:
            starting = [nodes.Starting(self.store, state.options, node, number, application) for node in servers]
            nodes.start_applications(starting)

    def crash(self, node: str) -> dict[str, Any]:
        """Take a server's power away. Returns the event; it is silent from its `monotonic_s` and `time_s` on."""
        node = self._resolve_host(node)
        if not power.is_on(self.name, node):
            raise CommandError(f"{node} is off already. Boot it: restore {node}")
        moment = power.power_off(self.name, self.topology.node(node))
        event = power.clear_away(self.store, node, "crash", moment)
        if event is None:  # its peer had it turned off in the same moment
            event = self.store.read().last_event(node, "crash", "fenced")
            assert event is not None
        return event

    def restore(self, node: str) -> str:
        """Boot a server that is off; returns when the pair is protected, or else what the server has settled in."""
        node = self._resolve_host(node)
        with self.store.changing() as state:
            if power.is_on(self.name, node):
                raise CommandError(
                    f"{node} is on. Only a server that is off can be restored; turn it off: crash {node}"
                )
            wires.clear_node(self.name, state.topology.node(node))
            try:
                wires.build_node(self.name, state.topology, node, state.options.wires)
            except BaseException:
                wires.clear_node(self.name, state.topology.node(node))
                raise
            state.boots[node] += 1
            state.note("restore", node)
        numbered = list(enumerate(state.applications))
        if state.options.plain:
            self._start_applications(state, [node], numbered)
            return f"{node} is on."
        daemons = self._boot(state, [node])
        self._wait_for_address(node, daemons)
        self._start_applications(state, [node], numbered)
        alone = self._why_alone(node, state)
        if alone is None:
            self._wait_protected(daemons)
            return f"{node} is on, and the pair is protected."
        self._wait_settled(node, daemons)
        row = self.status()["nodes"][node]
        return f"{node} is on, but not protected, since {alone}. It is {row['state']}: {row['reason']}"

    def cut(self, cut: Cut) -> None:
        """Disturb a node's cable, on top of what is cut already. It stays cut over a crash, until `heal`."""
        cut = Cut(self.resolve(cut.node), cut.only, cut.direction)
        with self.store.changing() as state:
            cut.check(state.topology)
            if cut.node in state.topology.hosts and not power.is_on(self.name, cut.node):
                raise CommandError(f"{cut.node} is off. Boot it first: restore {cut.node}")
            state.cut(cut)
            cables.apply(self.name, state)
            state.note("cut", cut.node, only=cut.only, direction=cut.direction)

    def heal(self, node: str) -> None:
        """Repair everything that was cut at the node."""
        node = self.resolve(node)
        with self.store.changing() as state:
            state.heal(node)
            cables.apply(self.name, state)
            state.note("heal", node)

    def status(self) -> dict[str, Any]:
        """`{"epoch", "nodes": {"a": {"alive", "role", "state", "reason"}, ...}, "connections": [...]}`."""
        state = self.store.read()
        rows, answers = {}, {}
        for node in state.topology.hosts:
            alive = power.is_on(self.name, node)
            answer = nodes.ask_daemon(self.store, node) if alive and not state.options.plain else None
            if answer is not None:
                answers[node] = answer
            rows[node] = {"alive": alive, **_describe(state, node, alive, answer)}
        epoch, connections = _of_the_service(answers)
        return {"epoch": epoch, "nodes": rows, "connections": connections}

    def daemon_pid(self, node: str) -> int:
        """The process id of the daemon that was last started on the server."""
        return int((self.store.directory / self._resolve_host(node) / "daemon.pid").read_text())

    def start_daemon(self, node: str) -> None:
        """Start the daemon again on a server that is on and whose daemon has died; returns when it answers."""
        self._inside(node)
        daemon = {node: nodes.start_daemon(self.store, node)}

        def answers() -> bool:
            self._check_alive(daemon)
            return nodes.ask_daemon(self.store, node) is not None

        wait_until(answers, _PROTECT_DEADLINE_S, f"The daemon on {node} did not answer")

    def losses(self) -> dict[str, int]:
        """Frames seen and lost so far, by --loss and --tap-loss (cables.COUNTERS)."""
        return cables.counters(self.name)

    # -------------------------------------------------------------------------------------------------- waiting

    def _inside(self, node: str) -> str:
        node = self.resolve(node)
        if not power.is_on(self.name, node):
            raise CommandError(f"{node} is off. Boot it first: restore {node}")
        return namespace(self.name, node)

    def _why_alone(self, node: str, state: LabState) -> str | None:
        """Why the pair can't be protected now, if it can't."""
        for peer in state.topology.others(node):
            if not power.is_on(self.name, peer):
                return f"{peer} is off (restore {peer})"
        severed = [cut.node for cut in state.cuts if cut.node in state.topology.hosts and cut.only in (None, "sync")]
        return f"{severed[0]} is cut (heal {severed[0]})" if severed else None

    def _wait_protected(self, daemons: dict[str, subprocess.Popen[bytes]], primary: str | None = None) -> None:
        # With health checks there is no protection before the applications are started.
        state = self.store.read()
        wanted = ("protected", "arming", "unprotected") if state.options.health else ("protected",)

        def protected() -> bool:
            self._check_alive(daemons)
            rows = {host: nodes.ask_daemon(self.store, host) or {} for host in state.topology.hosts}
            serving = [host for host, row in rows.items() if _as_far_as_it_gets(row) in wanted]
            if len(serving) != 1 or primary not in (None, serving[0]):
                return False
            return all(rows[host].get("role") == "backup" for host in state.topology.others(serving[0]))

        try:
            wait_until(protected, _PROTECT_DEADLINE_S, "The pair was not protected")
        except LabError as error:
            raise LabError(f"{error}{self._logs()}") from None
        self._follow_roles()

    def _wait_for_address(self, node: str, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
        def there() -> bool:
            self._check_alive(daemons)
            return netns.has_address(namespace(self.name, node), self.topology.service)

        wait_until(there, _ADDRESS_DEADLINE_S, f"The daemon on {node} did not configure the service address")

    def _wait_settled(self, node: str, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
        def settled() -> bool:
            self._check_alive(daemons)
            return (nodes.ask_daemon(self.store, node) or {}).get("state") in ("waiting", "unprotected", "refused")

        wait_until(settled, _PROTECT_DEADLINE_S, f"The daemon on {node} did not answer")

    def _check_alive(self, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
        for node, process in daemons.items():
            if process.poll() is not None:
                log = self.store.log(f"daemon-{node}")
                raise LabError(f"The daemon on {node} has ended with exit code {process.returncode}:{nodes.tail(log)}")

    def _follow_roles(self) -> None:
        """Lose the tap's frames where the tap now ends. Only the multicast tap needs it (cables.py)."""
        options = self.store.read().options
        if options.tap_loss and options.tap == "multicast":
            backup = self.resolve("backup")
            with self.store.changing() as state:
                state.lose_tap_at(backup)
                cables.apply(self.name, state)

    def _logs(self) -> str:
        rows = self.status()["nodes"]
        parts = [f"\n  {node}: {row['state']}: {row['reason']}" for node, row in rows.items()]
        parts += [f"\n  daemon on {node}:{nodes.tail(self.store.log(f'daemon-{node}'))}" for node in rows]
        return "".join(parts)


def _describe(state: LabState, node: str, alive: bool, answer: dict[str, Any] | None) -> dict[str, Any]:
    if not alive:
        newest = state.last_event(node, "crash", "fenced", "restore") or {}
        reasons = {"crash": "crashed", "fenced": f"turned off by {newest.get('by')} (fence)"}
        # Between the port going down and the note of it there is a moment.
        return {"role": None, "state": "off", "reason": reasons.get(newest.get("event", ""), "going off")}
    if state.options.plain:
        return {"role": None, "state": "plain", "reason": "the lab is plain: no daemon"}
    if answer is None:
        return {"role": None, "state": "no-daemon", "reason": "the daemon does not answer"}
    return {key: answer.get(key) for key in ("role", "state", "reason")}


def _of_the_service(answers: dict[str, dict[str, Any]]) -> tuple[int | None, list[dict[str, Any]]]:
    """Epoch and connections, as the primary with the latest epoch tells them; without a primary there are none."""
    if not answers:
        return None, []
    serving = [answer for answer in answers.values() if answer.get("role") == "primary"]
    newest = max(serving or answers.values(), key=lambda answer: int(answer.get("epoch", 0)))
    rows = newest.get("connections", []) if serving else []
    return newest.get("epoch"), [{key: row.get(key) for key in CONNECTION_KEYS} for row in rows]


def _need_root() -> None:
    if os.geteuid():
        raise CommandError("The lab needs root, for its network namespaces. Run it with sudo.")


def _as_far_as_it_gets(row: dict[str, Any]) -> str | None:
    """The state that a daemon tells; a pair that could never act at a crash is never called protected."""
    never = any(concern["code"] == "never-acts" for concern in row.get("concerns", ()))
    return row.get("membership" if never else "state")
