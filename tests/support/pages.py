"""A page of the documentation as a script: its commands, run on machines that are namespaces of this one.

What is run is what the page says, word by word:

- a line of a block that begins with a prompt, `alpha# nfq-failover status`, is typed as root on that machine, or on
  each machine of that group; it must succeed, or exit as it says: `... # exit code 1`;
- a block that names a file, as in ```` ```toml alpha:/etc/nfq-failover/config.toml ````, is the content of that file.

A machine has a network, mounts, a host name and one shell that goes on from command to command. What only a whole
system has is stood in for (`STAND_INS`): `apt install`, since the program is this tree's (what the package does when it
is configured is done); `scp`, which copies into the
other machine's file system; `systemctl` and `systemd-run`, which start what the units of this tree say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nfq_failover.lab import netns
from tests.support.lab_world import eventually

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
PROMPT = re.compile(r"^([a-z]+)# (.+)$")
EXPECTED = re.compile(r"# exit code (\d+)")
FILE = re.compile(r"^\w+ ([a-z]+):(/\S+)$")
COMMAND_S = 30.0
_DONE = "\x1e"  # ends the output of a command

STAND_INS = {
    "apt": """
        [ "$1" = install ] || exit 1
        case $2 in
            ./nfq-failover_*) sh "$TREE/script/debian/nfq-failover.postinst" configure ;;
            *) command -v "$2" ;;
        esac""",
    "scp": """
        for last; do :; done
        into=$MACHINES/${last%%:*}.pid
        [ -e "$into" ] || exit 1
        case $1 in -rp) shift && exec cp -rp "$1" "/proc/$(cat "$into")/root${last#*:}" ;;
            -p) shift && exec cp -p "$1" "/proc/$(cat "$into")/root${last#*:}" ;;
        esac
        exit 1""",
    "systemd-run": """
        unit=${1#--unit=}
        shift
        setsid "$@" >"$MACHINE-$unit.log" 2>&1 &
        echo $! >"$MACHINE-$unit.pid" """,
    "systemctl": """
        order=$1
        shift
        [ "$1" != --now ] || shift
        file=$TREE/vagrant/$1.service
        [ -e "$file" ] || exit 5
        the_process() { kill "-$1" "$(cat "$MACHINE-$unit.pid")" 2>/dev/null; }
        stop() { the_process TERM || return 0; while the_process 0; do sleep 0.05; done; }
        start() {
            export LISTEN=$(sed -n 's/^Environment=LISTEN=//p' "$file") CREDENTIALS_DIRECTORY=$MACHINE-credentials
            sed -n 's/^LoadCredential=//p' "$file" | while IFS=: read -r name from; do
                mkdir -p "$CREDENTIALS_DIRECTORY" && cp -p "$from" "$CREDENTIALS_DIRECTORY/$name" || exit 1
            done || return 1
            command=$(sed -n 's|^ExecStart=/usr/local/bin/||p' "$file")
            setsid sh -c "exec $command" >>"$MACHINE-$unit.log" 2>&1 &
            echo $! >"$MACHINE-$unit.pid"
        }
        unit=$1
        case $order in
            enable | start) start ;;
            stop) stop ;;
            restart) stop && start ;;
            reload) sh -c "$(sed -n 's|^ExecReload=/usr/local/bin/||p' "$file")" ;;
            is-active) the_process 0 && echo active ;;
            *) exit 1 ;;
        esac""",
}


@dataclass(frozen=True)
class Step:
    """Something that the page wants done on a machine or a group: a command, or a file."""

    where: str
    command: str
    path: str = ""
    block: int = 0


def steps(page: Path) -> Iterator[Step]:
    """What a page wants done, in its order."""
    for block, (heading, text) in enumerate(BLOCK.findall(page.read_text())):
        if named := FILE.match(heading):
            yield Step(named[1], text, named[2], block)
        for line in text.splitlines():
            if typed := PROMPT.match(line):
                yield Step(typed[1], typed[2], block=block)


class Machine:
    """A network namespace with an `eth0`, and a shell in it that has `/etc`, `/srv` and `/var` to itself."""

    def __init__(self, name: str, namespace: str, directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        tools = directory / "tools"
        orders, self._orders = os.pipe()
        self._output, output = os.pipe()
        prepare = f"""
            set -e
            hostname {name}
            mount -t tmpfs tmpfs /mnt
            for each in etc srv var; do
                mkdir /mnt/$each /mnt/$each.work
                mount -t overlay overlay -o "lowerdir=/$each,upperdir=/mnt/$each,workdir=/mnt/$each.work" /$each
            done
            mkdir -p -m 700 /etc/nfq-failover
            rm -rf /etc/nfq-failover/*
            mkdir -p /run/nfq-failover
            mount -t tmpfs tmpfs /run/nfq-failover
            mkdir /mnt/run && mount --bind /mnt/run /run/lock
            set +e
            while IFS= read -r line; do
                eval "$line" </dev/null
                printf '%s%s\\n' '{_DONE}' $?
            done"""
        argv = ["ip", "netns", "exec", namespace, "unshare", "--mount", "--uts", "sh", "-c", prepare]
        path = f"{tools}:{Path(sys.executable).parent}:/usr/local/sbin:/usr/sbin:/sbin:{os.environ['PATH']}"
        env = {
            **os.environ,
            "PATH": path,
            "MACHINES": str(directory),
            "MACHINE": str(directory / name),
            "TREE": str(ROOT),
        }
        self.process = subprocess.Popen(argv, stdin=orders, stdout=output, stderr=output, env=env, cwd="/")
        os.close(orders)
        os.close(output)
        (directory / f"{name}.pid").write_text(f"{self.process.pid}\n")

    def type(self, command: str) -> tuple[int, str]:
        """A line at the shell's prompt; its exit code, and what it and what runs in the background has said."""
        os.write(self._orders, command.encode() + b"\n")
        give_up = time.monotonic() + COMMAND_S
        said = b""
        while not (ended := re.search(rb"\x1e(\d+)\n", said)):
            left = give_up - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                raise AssertionError(f"{self.name}# {command}: not done after {COMMAND_S} s\n{said.decode()}")
            part = os.read(self._output, 1 << 16)
            if not part:
                raise AssertionError(f"{self.name}# {command}: the shell has ended\n{said.decode()}")
            said += part
        return int(ended[1]), said[: ended.start()].decode(errors="replace")

    def write(self, path: str, text: str) -> None:
        """A file of the machine."""
        Path(f"/proc/{self.process.pid}/root{path}").write_text(text)

    def close(self) -> None:
        """End all that runs there."""
        netns.kill_all(self.namespace)
        self.process.wait()
        os.close(self._orders)
        os.close(self._output)


@contextlib.contextmanager
def machines(prefix: str, directory: Path, addresses: Mapping[str, str]) -> Iterator[dict[str, Machine]]:
    """Machines on one segment, by name. `addresses`: ADDRESS/PREFIX-LENGTH."""
    tools = directory / "tools"
    tools.mkdir()
    for name, text in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    wires = f"{prefix}wires"
    with contextlib.ExitStack() as stack:

        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True)

        def namespace(name: str) -> None:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")

        namespace(wires)
        ip("-n", wires, "link", "add", "switch", "type", "bridge")
        ip("-n", wires, "link", "set", "switch", "up")
        made = {}
        for name, address in addresses.items():
            inside = f"{prefix}{name}"
            namespace(inside)
            ip(*("-n", wires, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", inside))
            ip("-n", wires, "link", "set", name, "master", "switch", "up")
            ip("-n", inside, "address", "add", address, "dev", "eth0")
            ip("-n", inside, "link", "set", "eth0", "up")
            made[name] = Machine(name, inside, directory)
            stack.callback(made[name].close)
        yield made


def roles(servers: Sequence[Machine]) -> dict[str, Sequence[str]]:
    """Who of the two serves: what a page calls the primary and the backup."""
    primary: list[str] = []

    def known() -> bool:
        asked = {machine.name: machine.type("nfq-failover status --json") for machine in servers}
        said = {name: json.loads(text) for name, (code, text) in asked.items() if code == 0}
        primary[:] = [name for name, status in said.items() if status["role"] == "primary"]
        return len(primary) == 1

    assert eventually(known), primary  # one that was just restarted needs a moment
    return {"primary": primary, "backup": [machine.name for machine in servers if machine.name not in primary]}


def follow(page: Path, made: Mapping[str, Machine], groups: dict[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """Do what a page says. Returns (machine, command, output) of each; AssertionError at the first that fails.

    `primary` and `backup` are those of the group `servers` that are so when a block begins.
    """
    done: list[tuple[str, str, str]] = []
    acting: tuple[int, dict[str, Sequence[str]]] = (-1, {})
    for step in steps(page):
        if step.where in ("primary", "backup") and acting[0] != step.block:
            acting = step.block, roles([made[name] for name in groups["servers"]])
        for name in (groups | acting[1]).get(step.where, (step.where,)):
            if step.path:
                made[name].write(step.path, step.command)
                continue
            code, said = made[name].type(step.command)
            done.append((name, step.command, said))
            transcript = "".join(f"\n{machine}# {command}\n{text}" for machine, command, text in done[-4:])
            expected = EXPECTED.search(step.command)
            assert code == (int(expected[1]) if expected else 0), f"exit code {code}:{transcript}"
    return done
