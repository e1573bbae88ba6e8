"""What keeps two hosts from serving at once: how to fence the peer, and where the witness is."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nfq_failover.config import schema

PLACEHOLDERS = ("{peer}", "{address}")
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]*\}")
_PARAMETER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_SECRET_NAMES = re.compile(r"pass|secret|token|key|community", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FencePlan:
    """How to make sure that the peer is off.

    `command` alone: any program and its arguments; exit code 0 says that the peer is off. `agent`: the program is a
    fence agent (the fence agent API of the cluster projects: `key=value` lines on standard input, exit code 0 done, 1
    failed, and for `status` 0 on, 2 off); `verify`: off is believed only when its status says off. `attempts`: 0 for as
    many as the deadline allows. Secrets are in `parameters`, which no `repr` shows.
    """

    command: tuple[str, ...] = ()
    agent: bool = False
    parameters: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    verify: bool = True
    attempts: int = 0
    inline_secret: str = ""  # the name of a parameter that is a secret, and stands in the configuration itself

    def __bool__(self) -> bool:
        """Whether there is a fence."""
        return bool(self.command)

    def hide(self, text: str) -> str:
        """`text` without what nobody may read in a log."""
        for value in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(value, "***")
        return text


@dataclass(frozen=True, slots=True)
class WitnessPlan:
    """Where the witness is, and the key that it shares with us."""

    address: tuple[str, int]
    key: bytes = field(repr=False)
    pair: str = ""


def words(value: Any) -> tuple[str, ...]:
    """A command without a shell. ValueError."""
    if not isinstance(value, list) or not all(isinstance(w, str) and w and "\0" not in w for w in value):
        raise ValueError("must be a list of words: the command and its arguments")
    for word in value:
        _check_placeholders(word)
    return tuple(value)


def _check_placeholders(word: str) -> None:
    for placeholder in _PLACEHOLDER.findall(word):
        if placeholder not in PLACEHOLDERS:
            raise ValueError(f"there is no placeholder {placeholder}: use {' or '.join(PLACEHOLDERS)}")


class Wrong(ValueError):
    """A fence that can't be used: `reasons` has all that is wrong, as (setting of the table, or "", and what)."""

    def __init__(self, *reasons: tuple[str, str]) -> None:
        super().__init__("; ".join(what for _, what in reasons))
        self.reasons = reasons


def fence(value: Any) -> FencePlan:
    """`fence = [words]`, or the table `[fence]`, of which unknown settings are ignored. Raises `Wrong`."""
    if isinstance(value, list):
        try:
            return FencePlan(words(value))
        except ValueError as error:
            raise Wrong(("", str(error))) from None
    if not isinstance(value, dict):
        raise Wrong(("", "must be a list in [brackets], or a table [fence]"))
    wrong = [*_together(value)]
    read: dict[str, Any] = {}
    for name, given in value.items():
        if name in _READERS:
            try:
                read[name] = _READERS[name](given)
            except ValueError as error:
                wrong.append((name, str(error)))
    if both := sorted(read.get("parameters", {}).keys() & read.get("secrets", {}).keys()):
        wrong.append(("secrets", f"'{both[0]}' is a parameter and a secret: leave one out"))
    if wrong:
        raise Wrong(*wrong)
    return _plan(read)


def _together(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What does not go together."""
    if ("agent" in table) == ("command" in table):
        yield "", "set either 'agent' or 'command'"
    elif "command" in table:
        for name in ("parameters", "secrets", "verify"):
            if name in table:
                yield name, f"'{name}' is for an agent: a command has its arguments"


def _plan(read: dict[str, Any]) -> FencePlan:
    if "command" in read:
        return FencePlan(read["command"])
    given, secrets = read.get("parameters", {}), read.get("secrets", {})
    hidden = {text for name, text in given.items() if is_secret(name) and text} | {t for t in secrets.values() if t}
    inline = next((name for name in given if is_secret(name)), "")
    parameters = (*given.items(), *secrets.items())
    verify = read.get("verify", schema.find("verify", "fence").default)
    return FencePlan((read["agent"],), True, parameters, frozenset(hidden), verify, inline_secret=inline)


def _agent(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("'agent' must be the name or path of a fence agent, like \"fence_virsh\"")
    return value


def _verify(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("'verify' must be true or false")
    return value


def is_secret(name: str) -> bool:
    """Whether a parameter of that name is something that nobody else may know."""
    return bool(_SECRET_NAMES.search(name)) and not name.endswith(("_file", "_script", "_timeout"))


def _parameters(table: Any) -> dict[str, str]:
    if not isinstance(table, Mapping):
        raise ValueError("'parameters' must be a table: [fence.parameters]")
    made = {}
    for name, value in table.items():
        if not _PARAMETER.fullmatch(name) or name in ("action", "option"):
            raise ValueError(f"'{name}' can't be a parameter: the agent gets its 'action' from us")
        text = ("true" if value else "false") if isinstance(value, bool) else str(value)
        if not isinstance(value, str | int | bool) or any(c in text for c in "\n\r\0"):
            raise ValueError(f"parameter '{name}' must be a text in quotes, in one line")
        _check_placeholders(text)
        made[name] = text
    return made


def _secrets(table: Any) -> dict[str, str]:
    if not isinstance(table, Mapping):
        raise ValueError("'secrets' must be a table of files: [fence.secrets]")
    made = {}
    for name, file in table.items():
        if not _PARAMETER.fullmatch(name) or not isinstance(file, str) or not Path(file).is_absolute():
            raise ValueError(f"secret '{name}' must be the absolute path of a file that holds it")
        path = Path(file)
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"secret '{name}' can't be read from {path}: {error}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"{path} is readable by others (mode {mode & 0o777:03o}): run 'chmod 600 {path}'")
        if any(c in text for c in "\n\r\0"):
            raise ValueError(f"{path} must hold one line, the secret")
        made[name] = text
    return made


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "agent": _agent,
    "command": words,
    "verify": _verify,
    "parameters": _parameters,
    "secrets": _secrets,
}
"""How each setting of the table is read. They raise ValueError."""
