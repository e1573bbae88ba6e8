"""`nfq-failover lab`, the command line of the lab. All work is done in lab.py."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from nfq_failover.errors import CommandError
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import DEFAULT_HEARTBEAT_MS, DEFAULT_PORTS, Cut, Options
from nfq_failover.lab.topology import TWO_HOSTS
from nfq_failover.lab.wires import DEFAULT_RATE, UNLIMITED

_LAB = """\
A client, two servers and a switch in network namespaces of this machine, with the real daemons. Needs root.

    N-client eth0 10.77.0.1 ---\\
    N-a      eth0 10.77.0.2 ---- N-switch     service 10.77.0.100, on both servers; a starts as the primary
    N-b      eth0 10.77.0.3 ---/              N is the lab's name: nfqf, unless --name

A first session:

    nfq-failover lab up --rate 200mbit
    nfq-failover lab serve -- python3 -m http.server 7000
    nfq-failover lab exec client -- curl http://10.77.0.100:7000/some-file -o /tmp/got &
    nfq-failover lab crash primary          # power loss; the download goes on
    nfq-failover lab status
    nfq-failover lab restore a              # a comes back, as the backup
    nfq-failover lab down
"""
_LAB_END = """\
Exit codes: 0 done; 1 the lab could not do it; 2 misuse, and the message says what to do. `exec` passes on the exit code
of its command (126 and 127, as in a shell, if there is no such program).
What the lab knows, its logs and the servers' disks are in /run/nfq-failover-lab/NAME/.
"""
_UP = """\
Build the lab and start the daemons. Returns when the pair is protected. `a` is the primary.

Loss is of single segments of at most one MTU, and happens in the switch, after transmission: --loss on the client's
link (each direction by itself), --tap-loss on the copies for the backup. By default the hosts' sequence numbers and
timestamps are scrambled: on one machine they would be nearly alike, and hide translation errors.

With its fence a backup that hears nothing of the primary turns it off before it takes over. --no-fence leaves that out:
nobody takes over then, unless --witness adds a third opinion, which lets one of both act alone.

--plain: the same wires and addresses, but no daemon and no rule; `a` simply has the service address. --tap,
--heartbeat-ms, --tap-loss and --no-scramble then have nothing to act on.
"""
_UP_END = """\
Environment:
  NFQF_LAB_SEED=N        the same scrambling constants as in another run that printed this seed
  NFQF_LAB_ODD_HOST=b    that server uses tcp_timestamps=2 (no random offset) and tcp_syncookies=2 (always)
"""
_EXEC = """\
Run a command inside a node: client, a, b, or the server that is primary or backup at this moment. It has this terminal,
working directory, environment and file system; only the network is the node's (so /sys/class/net shows the host's).
Its exit code is passed on.
"""
_SERVE = """\
Start the same application on both servers. Returns when it runs on both and listens on a port of the service. Each call
adds one. `restore` starts all of them again, with the same working directory and environment.
"""
_CRASH = """\
Power loss: the server is silent at once (its port at the switch goes down), then all its processes are killed and
its network namespace is gone. Nobody hears a FIN or a RST. Its disk survives: the daemon's state directory.
"""
_RESTORE = """\
Boot a server that is off: the same addresses, cables, daemon and applications. Returns when the pair is protected; if
that can't be, because the other server is off or cut, when the server has settled, and says in what.
"""
_CUT = """\
Cut a node's cable, or a part of it. Cuts add up; they stay over a crash, until `heal`. The lab's fence travels over the
network, so a server that is cut whole can't fence.

  (nothing)        everything
  --only sync      UDP with the sync port as source or destination: heartbeats and all else between the daemons
  --only witness   what the node and the witness say to each other (up --witness)
  --only client    everything between the node and the client, and the copies of the client's packets from the tap
  --direction in   only what the node receives;  out: only what it sends
"""


class _Parser(argparse.ArgumentParser):
    """The parser of one subcommand. With `takes_command`, what follows the first `--` is a command, left as it is."""

    takes_command: bool = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words, command = list(args or []), []
        if self.takes_command and "--" in words:
            at = words.index("--")
            words, command = words[:at], words[at + 1 :]
        known: argparse.Namespace
        known, unknown = super().parse_known_args(words, namespace)
        if self.takes_command:
            if not command:
                self.error("write the command after --, for example: -- ls -l")
            known.command = command
        return known, unknown


def add_parser(subparsers: Any) -> None:
    """Add `lab` to the subcommands of nfq-failover. Its arguments carry `run`: arguments to exit code."""
    lab = subparsers.add_parser(
        "lab",
        help="a client, two servers and a switch on this machine, to try and test everything",
        description=_LAB,
        epilog=_LAB_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lab.add_argument(
        "--name", default="nfqf", help="the lab, if there are several: up to 10 characters (default: nfqf)"
    )
    commands = lab.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True, parser_class=_Parser)
    _add_up(commands)
    _add_commands(commands)


def _add(commands: Any, name: str, work: Callable[[Lab, argparse.Namespace], int], **texts: str) -> _Parser:
    description = texts.pop("description")
    parser: _Parser = commands.add_parser(
        name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.set_defaults(run=lambda arguments: _guarded(work, arguments))
    return parser


def _add_up(commands: Any) -> None:
    up = _add(commands, "up", _up, help="build it; returns when the pair is protected", description=_UP, epilog=_UP_END)
    up.add_argument("--tap", choices=("clone", "multicast"), default="clone", help="how the backup hears the client")
    up.add_argument(
        "--heartbeat-ms", type=int, default=DEFAULT_HEARTBEAT_MS, metavar="N", help="10 to 5000 (default: %(default)s)"
    )
    up.add_argument(
        "--rate",
        default=DEFAULT_RATE,
        help=f"of the client's link, each direction, in tc's syntax, or {UNLIMITED} (default: %(default)s)",
    )
    up.add_argument("--loss", type=float, default=0.0, metavar="PCT", help="on the client's link, in percent")
    up.add_argument("--tap-loss", type=float, default=0.0, metavar="PCT", help="on the way to the backup, in percent")
    up.add_argument(
        "--port",
        action="extend",
        nargs="+",
        metavar="P",
        help=f"the service's ports and ranges of ports (default: {' '.join(DEFAULT_PORTS)})",
    )
    up.add_argument("--health", action="store_true", help="the daemons check that the first port is served")
    up.add_argument("--no-scramble", action="store_true", help="leave the kernels' numbers as they are")
    up.add_argument("--no-fence", action="store_true", help="a host can't turn the other one off")
    up.add_argument(
        "--witness",
        action="store_true",
        help="a witness in the switch decides between hosts that don't hear each other",
    )
    up.add_argument("--plain", action="store_true", help="no daemon and no rule: what everything is compared with")


def _add_commands(commands: Any) -> None:
    server, any_node = (f"{', '.join(names)}, primary or backup" for names in (TWO_HOSTS.hosts, TWO_HOSTS.names))

    command = _add(
        commands,
        "exec",
        _exec,
        help="run a command inside a node",
        description=_EXEC,
        usage=_usage("exec NODE [--detach]"),
    )
    command.takes_command = True
    command.add_argument("node", metavar="NODE", help=any_node)
    command.add_argument("--detach", action="store_true", help="leave it running; its output goes to a file")

    command = _add(
        commands, "serve", _serve, help="run an application on both servers", description=_SERVE, usage=_usage("serve")
    )
    command.takes_command = True

    command = _add(commands, "crash", _crash, help="power loss of a server", description=_CRASH)
    command.add_argument("node", metavar="NODE", help=server)
    command = _add(commands, "restore", _restore, help="boot a server that is off", description=_RESTORE)
    command.add_argument("node", metavar="NODE", help=" or ".join(TWO_HOSTS.hosts))

    command = _add(commands, "cut", _cut, help="cut a cable, or a part of it", description=_CUT)
    command.add_argument("node", metavar="NODE", help=any_node)
    command.add_argument("--only", choices=("sync", "witness", "client"))
    command.add_argument("--direction", choices=("in", "out"))
    command = _add(commands, "heal", _heal, help="repair a cable", description="Repair all that was cut at a node.")
    command.add_argument("node", metavar="NODE", help=any_node)

    command = _add(commands, "status", _status, help="who is what", description="What both daemons say of themselves.")
    command.add_argument("--json", action="store_true", help="for programs")
    _add(commands, "down", _down, help="take it away", description="Take the lab away, also one that is half up.")


def _usage(words: str) -> str:
    return f"nfq-failover lab [--name N] {words} -- CMD..."


def _guarded(work: Callable[[Lab, argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Do the work; what goes wrong becomes one message and an exit code."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if os.geteuid():
            raise CommandError("The lab needs root, for its network namespaces. Run it with sudo.")
        code = work(Lab(arguments.name), arguments)
        sys.stdout.flush()
        return code
    except CommandError as error:
        print(f"nfq-failover lab: {error}", file=sys.stderr)
        return 2
    except LabError as error:
        print(f"nfq-failover lab: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("nfq-failover lab: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# ----------------------------------------------------------------------------------------------------- subcommands


def _up(lab: Lab, arguments: argparse.Namespace) -> int:
    options = Options(
        tap=arguments.tap,
        heartbeat_ms=arguments.heartbeat_ms,
        rate=arguments.rate,
        loss=arguments.loss,
        tap_loss=arguments.tap_loss,
        ports=tuple(arguments.port or DEFAULT_PORTS),
        scramble=not arguments.no_scramble,
        health=arguments.health,
        plain=arguments.plain,
        fence=not arguments.no_fence,
        witness=arguments.witness,
        odd_host=os.environ.get("NFQF_LAB_ODD_HOST") or None,
    )
    lab.up(options, _seed())
    kind = "plain" if options.plain else f"protected, {options.tap} tap, {lab.topology.hosts[0]} is the primary"
    print(f"Lab {lab.name} is up: {kind}, {options.rate}, seed {lab.store.read().seed}.")
    return 0


def _seed() -> int | None:
    text = os.environ.get("NFQF_LAB_SEED")
    try:
        return int(text) if text else None
    except ValueError:
        raise CommandError(f"NFQF_LAB_SEED={text} is not a number.") from None


def _exec(lab: Lab, arguments: argparse.Namespace) -> int:
    if arguments.detach:
        pid, log = lab.detach(arguments.node, arguments.command)
        print(f"process {pid}, output in {log}")
        return 0
    try:
        lab.exec(arguments.node, arguments.command)
    except OSError as error:
        print(f"nfq-failover lab: can't run {arguments.command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def _serve(lab: Lab, arguments: argparse.Namespace) -> int:
    servers = lab.serve(arguments.command)
    if others := set(lab.topology.hosts) - set(servers):
        rest = "The other server starts" if len(others) == 1 else "The other servers start"
        print(f"Only {', '.join(servers)} is on. {rest} it when it is restored.", file=sys.stderr)
    return 0


def _crash(lab: Lab, arguments: argparse.Namespace) -> int:
    event = lab.crash(arguments.node)
    print(f"{event['node']} is off, silent since {event['time_s']:.6f}.")
    return 0


def _restore(lab: Lab, arguments: argparse.Namespace) -> int:
    print(lab.restore(arguments.node))
    return 0


def _cut(lab: Lab, arguments: argparse.Namespace) -> int:
    lab.cut(Cut(arguments.node, arguments.only, arguments.direction))
    return 0


def _heal(lab: Lab, arguments: argparse.Namespace) -> int:
    lab.heal(arguments.node)
    return 0


def _status(lab: Lab, arguments: argparse.Namespace) -> int:
    status = lab.status()
    if arguments.json:
        print(json.dumps(status))
        return 0
    print(f"epoch {status['epoch']}")
    for node, row in status["nodes"].items():
        words = [node, "on" if row["alive"] else "off", row["role"] or "-", row["state"], row["reason"] or ""]
        print("  {:<3}{:<5}{:<9}{:<13}{}".format(*words).rstrip())
    print(f"connections: {len(status['connections'])}")
    for row in status["connections"]:
        kind = "protected" if row["protected"] else f"UNPROTECTED: {row['reason']}"
        print(f"  {row['client']:<22} {row['server']:<18} {kind}; {row['lag_bytes']} bytes behind")
    return 0


def _down(lab: Lab, _arguments: argparse.Namespace) -> int:
    lab.down()
    return 0
