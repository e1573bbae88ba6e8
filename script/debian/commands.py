"""The parsers that the man pages are made of: `page` for argparse-manpage; run as a program, the list of the pages."""

from __future__ import annotations

import argparse
import os

from nfq_failover.cli import whole_parser


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def page() -> argparse.ArgumentParser:
    """The parser of the command that NFQF_PAGE names; `all` is the program's own."""
    whole, wanted = whole_parser(), os.environ["NFQF_PAGE"]
    return whole if wanted == "all" else _subparsers(whole).choices[wanted]


def main() -> None:
    """Print each page's command and its summary, with a tab between. Without a summary it is no command for people."""
    print("all\tTCP connections that outlive their server")
    for command in _subparsers(whole_parser())._choices_actions:
        if command.help:
            print(command.dest, command.help, sep="\t")


if __name__ == "__main__":
    main()
