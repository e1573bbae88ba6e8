"""The command line: which commands there are. What they do is elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nfq_failover import __version__, extras
from nfq_failover.errors import CommandError, ConfigError, NfqFailoverError, StartRefused
from nfq_failover.operator import check, claim, doctor, keygen, metrics, orders, reload, status, top, web
from nfq_failover.operator.daemon import SETTINGS, add_config_option

DESCRIPTION = """\
TCP connections that outlive their server.

Two hosts run the same server application and share a service address. One is primary; the other shadows every
connection and takes it over, byte for byte, when the primary dies. Clients, servers and kernels are unchanged.
"""

EXAMPLES = """\
examples:
  nfq-failover keygen /etc/nfq-failover/key          make the key; copy it to the other host
  nfq-failover check-config                          is the configuration right?
  nfq-failover doctor                                what would keep a takeover from working? (on both hosts)
  nfq-failover run                                   run the daemon (on both hosts)
  nfq-failover reload                                take over what has changed in the configuration
  nfq-failover status                                who serves, what is protected, and why not
  nfq-failover probe --help                          do both applications answer the same?
  nfq-failover claim                                 "the other host is off": serve alone
  nfq-failover replica-is-whole                      "its application has the server's state": protect again
  sudo nfq-failover lab up                           a whole pair on this one machine, to try it
"""

RUN = """\
signals: SIGTERM ends the daemon, and leaves the service up where nobody could take it over; SIGINT ends that, too.
SIGHUP reloads the configuration, SIGUSR1 writes the status into the log, SIGUSR2 does nothing.

exit code: 0 ended as it was told to; 1 the host is not as a daemon needs it (start again); 2 the configuration is wrong
(starting again is of no use); 70 the privileged helper has ended; 71 out of memory
"""


def _run(args: argparse.Namespace) -> int:
    # What numpy loads for linear algebra starts threads at once: nobody needs them, and they would keep rights.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    from nfq_failover.config import advice, load
    from nfq_failover.shell import logs, signals
    from nfq_failover.shell.privileged.last_good import load_and_keep

    signals.survive()  # until the daemon stands and takes them
    if os.geteuid():
        raise CommandError("run as root: netfilter queues and raw sockets need it")
    file = args.config.absolute()  # to be found again
    config, problem = load_and_keep(file, args.last_good.absolute()) if args.last_good else (load(file), "")
    sentences = [*advice(config), problem] if problem else advice(config)  # now, as root, who can see all it asks for
    from nfq_failover.shell.daemon import Daemon, log
    from nfq_failover.shell.start import prepare
    from nfq_failover.shell.trouble import prepare_last_words

    try:
        prepared = prepare(config)
    except CommandError as error:
        raise StartRefused(str(error)) from None
    logs.configure(args.log_level or config.log_level, args.log_json)
    prepare_last_words(partial(logs.last_words, args.log_json))
    for sentence in sentences:
        log.warning("configuration", advice=sentence)
    for fault in config.wrong:
        log.error("configuration wrong, going on with the one before", error=str(fault))
    try:
        daemon = Daemon(prepared, follows_level=args.log_level is None)
        daemon.run(lambda: log.info("ready", name=config.settings.name, service=config.service))
    except CommandError as error:
        raise StartRefused(str(error)) from None
    return 0


def _witness(args: argparse.Namespace) -> int:
    from nfq_failover.config import address_and_port, read_key
    from nfq_failover.constants import DEFAULT_WITNESS_PORT
    from nfq_failover.shell import logs
    from nfq_failover.shell.witness_daemon import Witness, log

    try:
        listen = address_and_port(args.listen, DEFAULT_WITNESS_PORT)
    except ValueError as error:
        raise CommandError(f"--listen: {error}") from None
    key = read_key(args.key)
    logs.configure(args.log_level, args.log_json)
    witness = Witness(listen, key, args.state_dir)
    witness.run(lambda: log.info("listening", address=f"{listen[0]}:{listen[1]}"))
    return 0


def _say(args: argparse.Namespace, error: str) -> None:
    """Say why a command has not been done, in one line or more: a daemon in the form of its log."""
    for line in error.splitlines():
        if not hasattr(args, "log_json"):
            print(f"nfq-failover: {line}", file=sys.stderr)
            continue
        from nfq_failover.shell import logs

        sys.stderr.buffer.write(logs.last_words(args.log_json, line))


def _crashed(args: argparse.Namespace, error: Exception) -> bool:
    """Whether a daemon's log has taken what ends it."""
    if not hasattr(args, "log_json"):
        return False
    from nfq_failover.shell import logs

    return logs.crashed(error)


def _log_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default=default, help="what is logged, at the least")
    parser.add_argument("--log-json", action="store_true", help="log as JSON lines")


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
        form = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=help_text, description=help_text, epilog=epilog, formatter_class=form)
        sub.set_defaults(run=run)
        return sub

    run = command("run", "run the daemon", _run, f"{RUN}\n{SETTINGS}")
    add_config_option(run)
    run.add_argument(
        "--last-good",
        type=Path,
        metavar="FILE",
        help="keep a copy of a right configuration there, and go on with that, and an alarm, while the file is wrong",
    )
    _log_options(run, None)  # the configuration has it
    status.add_parser(commands)
    top.add_parser(commands)
    metrics.add_parser(commands)
    web.add_parser(commands)
    claim.add_parser(commands)
    reload.add_parser(commands)
    orders.add_parsers(commands)
    witness = command("witness", "decide between two hosts that don't hear each other (on a third machine)", _witness)
    witness.add_argument("--listen", required=True, metavar="ADDRESS[:PORT]", help="where the hosts ask (port 7767)")
    witness.add_argument("--key", type=Path, required=True, metavar="FILE", help="the hosts' key, or their witness key")
    witness.add_argument("--state-dir", type=Path, default=Path("/var/lib/nfq-failover-witness"), metavar="DIRECTORY")
    _log_options(witness, "info")
    keygen.add_parser(commands)
    check.add_parser(commands)
    doctor.add_parser(commands)
    return parser


LAB_COMMANDS = ("lab", "bench", "campaign", "demo", "faults", "programs")
PROBE_COMMANDS = ("probe", "probe-fetch")


def parser_for(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The command line, with the commands that are loaded only when they are meant, or when all are shown."""
    parser = build_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    if not argv or argv[0] in (*LAB_COMMANDS, "-h", "--help"):
        from nfq_failover.lab import command as lab  # only here: servers need neither it nor what it needs
        from nfq_failover.lab.campaign import bench
        from nfq_failover.lab.campaign.crashes import run as crashes
        from nfq_failover.lab.campaign.faults import run as faults
        from nfq_failover.lab.campaign.programs import run as programs
        from nfq_failover.lab.demo import command as demo

        for program in (lab, demo, crashes, faults, bench, programs):
            program.add_parser(subparsers)
    if not argv or argv[0] in (*PROBE_COMMANDS, "-h", "--help"):
        from nfq_failover.operator.probe import command as probe

        probe.add_parsers(subparsers)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """The command line with every command there is: what the man pages and the shell's completion are made of."""
    return parser_for(())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 2 for misuse, 1 for failure."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    args = parser_for(argv).parse_args(argv)
    try:
        extras.need(argv[0])  # `args.command` is another command in `lab exec`
        code: int = args.run(args)
    except NfqFailoverError as error:
        _say(args, str(error))
        return 2 if isinstance(error, CommandError | ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not _crashed(args, error):
            raise
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
