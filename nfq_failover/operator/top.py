"""`nfq-failover top`: the status, live, in a terminal. What is drawn is decided by `draw`, which needs none."""

from __future__ import annotations

import argparse
import contextlib
import curses
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from nfq_failover.errors import CommandError, ConfigError
from nfq_failover.operator.daemon import add_command, ask_daemon
from nfq_failover.operator.status import clock, is_protected, last_takeover

_KEYS: Final = "q quit  s sort  u only unprotected  arrows, PgUp, PgDn, Home move"
_MIN_WIDTH: Final = 40
_EPILOG: Final = f"""\
Keys: {_KEYS}.

It asks the daemon once a second, and changes nothing. For one look: nfq-failover status.
"""


class Style(Enum):
    """How a line looks."""

    PLAIN = "plain"
    TITLE = "title"
    GOOD = "good"
    ODD = "odd"
    BAD = "bad"
    FAINT = "faint"


Line = tuple[Style, str]


@dataclass(frozen=True, slots=True)
class View:
    """What the user has chosen: the order, whether only unprotected connections are shown, and the first row."""

    sort: int = 0
    only_unprotected: bool = False
    first: int = 0


@dataclass(frozen=True, slots=True)
class _Sort:
    name: str
    key: Callable[[dict[str, Any]], Any]


SORTS: Final = (
    _Sort("unprotected first", lambda row: (bool(row["protected"]), row["client"])),
    _Sort("not confirmed", lambda row: (-row["lag_bytes"], row["client"])),
    _Sort("replica behind", lambda row: (-row["lag_out_bytes"], row["client"])),
    _Sort("client", lambda row: row["client"]),
)


def add_parser(subparsers: Any) -> None:
    """Add the command `top`."""
    parser = add_command(subparsers, "top", "the status, live", run, _EPILOG)
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="how often to ask (1)")


def run(args: argparse.Namespace) -> int:
    """Show the status until the user has had enough. Returns the exit code. Raises `CommandError`: no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("top needs a terminal; for a program: nfq-failover status --json")
    if not 0.1 <= args.every <= 3600:
        raise CommandError(f"--every must be between 0.1 and 3600 seconds, not {args.every:g}")

    def look() -> dict[str, Any] | str:
        try:
            return ask_daemon(args, "status")
        except (CommandError, ConfigError) as error:
            return str(error)

    for name in ("LINES", "COLUMNS"):  # the terminal knows better, and it may change
        os.environ.pop(name, None)
    try:
        curses.wrapper(_loop, look, args.every)
    except curses.error as error:
        raise CommandError(f"this terminal can't be used ({error}): set TERM, or use 'nfq-failover status'") from None
    except KeyboardInterrupt:
        pass
    return 0


# ------------------------------------------------------------------------------------ the terminal


def _loop(screen: curses.window, look: Callable[[], dict[str, Any] | str], every_s: float) -> None:
    styles = _styles()
    curses.curs_set(0)
    view, status, due = View(), look(), time.monotonic() + every_s
    while True:  # Ends: when the user says so.
        height, width = screen.getmaxyx()
        screen.erase()
        for number, (style, text) in enumerate(draw(status, view, width, height)):
            with contextlib.suppress(curses.error):  # the terminal has just become smaller
                screen.addnstr(number, 0, text, width - 1, styles[style])  # the last column can't be written
        screen.refresh()
        screen.timeout(max(int((due - time.monotonic()) * 1000), 0))
        key = screen.getch()
        if key == -1:
            status, due = look(), time.monotonic() + every_s
        elif key in (ord("q"), 27):
            return
        else:
            view = press(view, key, height)


def _styles() -> dict[Style, int]:
    found = dict.fromkeys(Style, curses.A_NORMAL)
    found |= {Style.TITLE: curses.A_REVERSE, Style.BAD: curses.A_BOLD, Style.FAINT: curses.A_DIM}
    if curses.has_colors():
        curses.use_default_colors()
        for number, (style, color) in enumerate(
            ((Style.GOOD, curses.COLOR_GREEN), (Style.ODD, curses.COLOR_YELLOW), (Style.BAD, curses.COLOR_RED)), 1
        ):
            curses.init_pair(number, color, -1)
            found[style] = curses.color_pair(number) | (curses.A_BOLD if style is Style.BAD else 0)
    return found


def press(view: View, key: int, height: int) -> View:
    """The view after a key; the same for one that means nothing."""
    page = max(height // 2, 1)
    moves = {curses.KEY_UP: -1, curses.KEY_DOWN: 1, curses.KEY_PPAGE: -page, curses.KEY_NPAGE: page}
    if key in moves:
        return replace(view, first=max(view.first + moves[key], 0))
    if key == curses.KEY_HOME:
        return replace(view, first=0)
    if key == ord("s"):
        return replace(view, sort=(view.sort + 1) % len(SORTS), first=0)
    if key == ord("u"):
        return replace(view, only_unprotected=not view.only_unprotected, first=0)
    return view


# ------------------------------------------------------------------------------------ what is drawn


def draw(status: dict[str, Any] | str, view: View, width: int, height: int) -> list[Line]:
    """The lines of a screen, at most `height` of them, each cut to `width`. `status`: a text if there is none."""
    if isinstance(status, str):
        found = [(Style.TITLE, "nfq-failover"), (Style.BAD, status)]
    else:
        above = [*_wrapped([*_head(status), *_concerns(status)], max(width - 1, _MIN_WIDTH))]
        room = max(height - len(above) - 3, 1)  # with title and columns above, and the keys below
        found = [*above, *_table(status, view, room)]
    found = found[: max(height - 1, 1)]
    found += [(Style.PLAIN, "")] * (height - 1 - len(found))
    found.append((Style.FAINT, _KEYS))
    return [(style, text[: max(width, _MIN_WIDTH)]) for style, text in found[:height]]


def _wrapped(lines: Sequence[Line], width: int) -> Iterator[Line]:
    """The same with what is longer than `width` on several lines."""
    for style, text in lines:
        for part in textwrap.wrap(text, width, subsequent_indent="      "):
            yield style, part


def _head(status: dict[str, Any]) -> Iterator[Line]:
    peer, versions, pace = status["peer"], status["versions"], status["pace"]
    good = is_protected(status)
    state = Style.GOOD if good else Style.BAD if status["state"] == "unprotected" else Style.ODD
    since = f" since {clock(status['happenings'][0]['ago_s'])}" if status["happenings"] else ""
    yield Style.TITLE, f"nfq-failover {versions['own']}   {status['name']}   {time.strftime('%H:%M:%S')}"
    yield state, f"{status['role']}, {status['state']}, epoch {status['epoch']}{since}"
    if status["reason"]:
        yield state, f"  {status['reason']}"
    beat = peer["heartbeat"]
    alive = "silent" if peer["lost"] else "alive"
    yield (
        Style.BAD if peer["lost"] else Style.GOOD,
        f"peer {peer['name']} at {peer['address']}: {alive}, version {versions['peer'] or 'not told'}, "
        f"{beat['missed']} heartbeats missed",
    )
    took = status["takeover"]
    if took:
        yield Style.PLAIN, last_takeover(took)
    yield (
        Style.PLAIN,
        f"replica: {pace['worst_ms']} ms late, {pace['slowed']} connections slowed, {pace['let_go']} let go, "
        f"{pace['fetched_percent']:g} % fetched",
    )


def _concerns(status: dict[str, Any]) -> Iterator[Line]:
    for each in status["concerns"]:
        style = Style.ODD if each["weight"] == "warning" else Style.BAD
        yield style, f"{each['weight']}: {each['host'] or status['name']}: {each['what']}"
        if each["cure"]:
            yield Style.PLAIN, f"    what to do: {each['cure']}"


def _table(status: dict[str, Any], view: View, room: int) -> Iterator[Line]:
    sort, everything = SORTS[view.sort], status["connections"]
    rows = [row for row in everything if not (view.only_unprotected and row["protected"])]
    protected = sum(bool(row["protected"]) for row in everything)
    first = min(view.first, max(len(rows) - room, 0))
    shown = f", {first + 1} to {min(first + room, len(rows))} of {len(rows)}" if len(rows) > room else ""
    which = "unprotected only" if view.only_unprotected else "all"
    yield (
        Style.TITLE,
        f"{len(everything)} connections, {protected} protected   {which}, by {sort.name}{shown}",
    )
    yield Style.FAINT, f"{'client':<22} {'server':<22} {'unconfirmed':>11} {'behind':>9}  protection"
    for row in sorted(rows, key=sort.key)[first : first + room]:
        numbers = f"{row['lag_bytes']:>9} B {row['lag_out_bytes']:>7} B"
        line = f"{row['client']:<22} {row['server']:<22} {numbers}"
        if row["protected"]:
            yield Style.PLAIN, f"{line}  protected{'  slowed' if row['slowed'] else ''}"
        else:
            yield Style.BAD, f"{line}  {row['reason']}"
