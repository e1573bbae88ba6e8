"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nfq_failover import __version__
from nfq_failover.errors import CommandError, ConfigError, NfqFailoverError

DEFAULT_CONFIG = Path("/etc/nfq-failover/config.toml")

DESCRIPTION = """\
TCP connections that outlive their server.

Two hosts run the same server application and share a service address. One is primary; the other shadows every
connection and takes it over, byte for byte, when the primary dies. Clients, servers and kernels are unchanged.
"""

EXAMPLES = """\
examples:
  nfq-failover keygen /etc/nfq-failover/key          make the key; copy it to the other host
  nfq-failover check-config                          is the configuration right?
  nfq-failover run                                   run the daemon (on both hosts)
  nfq-failover status                                who serves, what is protected, and why not
  nfq-failover probe --help                          do both applications answer the same?
  nfq-failover claim                                 "the other host is off": serve alone
  sudo nfq-failover lab up                           a whole pair on this one machine, to try it
"""

SETTINGS = """\
Every setting, with bounds and default: docs/operate/configuration.md, or as a file to copy:
python -m nfq_failover.config.reference --sample
"""


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"configuration file ({DEFAULT_CONFIG})")


def _run(args: argparse.Namespace) -> int:
    # What numpy loads for linear algebra starts threads at once: nobody needs them, and they would keep rights.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    from nfq_failover.config import advice, load
    from nfq_failover.shell import logs

    if os.geteuid():
        raise CommandError("run as root: netfilter queues and raw sockets need it")
    config = load(args.config)
    sentences = advice(config)  # now, as root, who can see all that it asks for
    from nfq_failover.shell.daemon import Daemon, log
    from nfq_failover.shell.start import prepare

    prepared = prepare(config)
    logs.configure(args.log_level, args.log_json)
    for sentence in sentences:
        log.warning("configuration", advice=sentence)
    Daemon(prepared).run(lambda: print(f"nfq-failover {config.settings.name}: ready", flush=True))
    return 0


def _ask(args: argparse.Namespace, command: str) -> dict[str, Any]:
    from nfq_failover.config import load
    from nfq_failover.shell.control import ask

    return ask(load(args.config).state_dir / "control.sock", command)


def _status(args: argparse.Namespace) -> int:
    status = _ask(args, "status")
    if args.json:
        print(json.dumps(status, indent=2))
        return 0
    reason = f"  ({status['reason']})" if status["reason"] else ""
    peer = status["peer"]
    heartbeat = peer["heartbeat"]
    print(f"{status['name']}: {status['role']}, {status['state']}, epoch {status['epoch']}{reason}")
    print(
        f"peer {peer['name']} at {peer['address']}: {'silent' if peer['lost'] else 'alive'}, heartbeat every "
        f"{heartbeat['interval_ms']} ms ({heartbeat['bandwidth_bps'] / 1000:.1f} kbit/s each way)"
    )
    rows = status["connections"]
    print(f"{len(rows)} connections, {sum(bool(row['protected']) for row in rows)} protected")
    for row in rows[: args.rows]:
        state = "protected" if row["protected"] else f"UNPROTECTED: {row['reason']}"
        if row["protected"] and row.get("differences"):
            state += f"; the hosts' output differed in {row['differences']} places"
        print(f"  {row['client']:<22} {row['server']:<22} lag {row['lag_bytes']:>8} B  {state}")
    if len(rows) > args.rows:
        print(f"  ... and {len(rows) - args.rows} more (--rows)")
    return 0


def _claim(args: argparse.Namespace) -> int:
    answer = _ask(args, "claim")
    print(f"{answer['before']} -> {answer['state']}")
    return 0 if answer["before"] != answer["state"] else 1


def _leave(args: argparse.Namespace) -> int:
    print(f"{_ask(args, 'leave')['state']} -> leaving")
    return 0


def _witness(args: argparse.Namespace) -> int:
    from nfq_failover.config import address_and_port, read_key
    from nfq_failover.constants import DEFAULT_WITNESS_PORT
    from nfq_failover.shell import logs
    from nfq_failover.shell.witness_daemon import Witness

    try:
        listen = address_and_port(args.listen, DEFAULT_WITNESS_PORT)
    except ValueError as error:
        raise CommandError(f"--listen: {error}") from None
    key = read_key(args.key)
    logs.configure(args.log_level, args.log_json)
    witness = Witness(listen, key, args.state_dir)
    witness.run(lambda: print(f"nfq-failover witness: listening on {listen[0]}:{listen[1]}", flush=True))
    return 0


def _keygen(args: argparse.Namespace) -> int:
    try:
        fd = os.open(args.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandError(f"{args.file} exists already: remove it first if you really want a new key") from None
    except FileNotFoundError:
        raise CommandError(f"there is no directory {args.file.parent}: make it first") from None
    except OSError as error:
        raise CommandError(f"{args.file}: {error.strerror}") from None
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    print(f"wrote {args.file}; copy it to the other host, mode 600")
    return 0


def _check_config(args: argparse.Namespace) -> int:
    from nfq_failover.config import advice, load
    from nfq_failover.shell.fencing import metadata as agent_metadata
    from nfq_failover.shell.privileged.account import DEFAULT_USER, account
    from nfq_failover.shell.privileged.rights import DAEMON

    config = load(args.config)
    s = config.settings
    peers = ", ".join(f"{p.name} at {p.address}:{p.port}" for p in s.peers)
    print(f"{args.config}: right. {s.name} serves {config.service} with {peers}; tap {config.tap}.")
    print(
        f"detection {s.detection_ms} ms; {'fence: ' + ' '.join(config.fence.command) if config.fence else 'no fence'}."
    )
    who = account(config)
    if who is not None:
        note = f" (there is no user '{DEFAULT_USER}': make one, to have it alone)" if who.fallback else ""
        print(
            f"after its start the daemon is user {who.name}, uid {who.uid}, with {' and '.join(sorted(DAEMON))}{note}."
        )
    for sentence in [*advice(config), *agent_metadata.advice(config.fence)]:
        print(f"warning: {sentence}")
    if args.fence_status:
        for peer in s.peers:
            print(agent_metadata.status(config.fence, peer))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="nfq-failover",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nfq-failover {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, help_text: str, run: Callable[[argparse.Namespace], int], epilog: str | None = None
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text, epilog=epilog)
        sub.set_defaults(run=run)
        return sub

    run = command("run", "run the daemon", _run, SETTINGS)
    _config_option(run)
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    run.add_argument("--log-json", action="store_true", help="log as JSON lines")
    status = command("status", "who serves, what is protected, and why not", _status)
    _config_option(status)
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.add_argument("--rows", type=int, default=20, help="how many connections to list (20)")
    _config_option(command("leave", "end the daemon for good: hand the service over, or end it", _leave))
    _config_option(command("claim", "the other host is off, I say so: let this one serve", _claim))
    witness = command("witness", "decide between two hosts that don't hear each other (on a third machine)", _witness)
    witness.add_argument("--listen", required=True, metavar="ADDRESS[:PORT]", help="where the hosts ask (port 7767)")
    witness.add_argument("--key", type=Path, required=True, metavar="FILE", help="the hosts' key, or their witness key")
    witness.add_argument("--state-dir", type=Path, default=Path("/var/lib/nfq-failover-witness"), metavar="DIRECTORY")
    witness.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    witness.add_argument("--log-json", action="store_true", help="log as JSON lines")
    keygen = command("keygen", "make a key file", _keygen)
    keygen.add_argument("file", type=Path)
    check = command("check-config", "check the configuration file", _check_config, SETTINGS)
    _config_option(check)
    check.add_argument("--fence-status", action="store_true", help="ask the fence agent whether the peer is on")
    return parser


LAB_COMMANDS = ("lab", "bench", "campaign", "demo", "faults")
PROBE_COMMANDS = ("probe", "probe-fetch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 2 for misuse, 1 for failure."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    if not argv or argv[0] in (*LAB_COMMANDS, "-h", "--help"):
        from nfq_failover.lab import command as lab  # only here: servers need neither it nor what it needs
        from nfq_failover.lab.campaign import bench
        from nfq_failover.lab.campaign.crashes import run as crashes
        from nfq_failover.lab.campaign.faults import run as faults
        from nfq_failover.lab.demo import command as demo

        for program in (lab, demo, crashes, faults, bench):
            program.add_parser(subparsers)
    if not argv or argv[0] in (*PROBE_COMMANDS, "-h", "--help"):
        from nfq_failover.operator.probe import command as probe

        probe.add_parsers(subparsers)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except (CommandError, ConfigError) as error:
        print(f"nfq-failover: {error}", file=sys.stderr)
        return 2
    except NfqFailoverError as error:
        print(f"nfq-failover: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
