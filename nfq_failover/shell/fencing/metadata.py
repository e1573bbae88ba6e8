"""What a fence agent says of itself, and whether the configuration agrees with it: for `check-config`."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from xml.etree import ElementTree

from nfq_failover.config.fence import FencePlan
from nfq_failover.core.settings import Peer
from nfq_failover.shell.fencing.agent import AGENT_OFF, AGENT_ON, FenceProgram

_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Metadata:
    """The agent's parameters, those that it can't do without (each with its older names), and its actions."""

    known: frozenset[str]
    required: dict[str, frozenset[str]]
    actions: frozenset[str]


def parse(text: str) -> Metadata:
    """Returns what the agent's XML says. Raises ValueError."""
    found = re.search(r"<resource-agent\b.*</resource-agent>", text, re.DOTALL)
    if found is None:
        raise ValueError("it does not describe itself as a fence agent")
    try:
        root = ElementTree.fromstring(found.group())  # noqa: S314  # of a program that we run as root anyway
    except ElementTree.ParseError as error:
        raise ValueError(f"its description can't be read: {error}") from None
    known: set[str] = set()
    required: dict[str, frozenset[str]] = {}
    for parameter in root.iter("parameter"):
        names = {parameter.get("name", ""), *parameter.get("obsoletes", "").split(",")} - {""}
        known |= names
        if parameter.get("required") == "1" and not parameter.get("deprecated") and "action" not in names:
            required[parameter.get("name", "")] = frozenset(names)
    return Metadata(frozenset(known), required, frozenset(a.get("name", "") for a in root.iter("action")))


def read(plan: FencePlan) -> Metadata:
    """Ask the agent to describe itself. Raises OSError, ValueError."""
    try:
        out = subprocess.run(
            plan.command, input="action=metadata\n", capture_output=True, text=True, timeout=_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError("it does not answer") from None
    return parse(out.stdout)


def advice(plan: FencePlan) -> list[str]:
    """Returns a sentence for each thing in the plan that the agent would not understand, or would miss."""
    agent = plan.command[0] if plan.command else ""
    if not plan.agent:
        return []
    try:
        metadata = read(plan)
    except (OSError, ValueError) as error:
        return [f"the fence agent {agent}: {error}"]
    given = {name for name, _ in plan.parameters}
    said = [f"the fence agent {agent} has no parameter '{name}'" for name in sorted(given - metadata.known)]
    for name, names in metadata.required.items():
        if not names & given:
            said.append(f"the fence agent {agent} needs the parameter '{name}'")
    if "off" not in metadata.actions:
        said.append(f"the fence agent {agent} can't turn anything off")
    if plan.verify and "status" not in metadata.actions:
        said.append(f"the fence agent {agent} has no status, so its 'off' is never believed: set verify = false")
    return said


def status(plan: FencePlan, peer: Peer) -> str:
    """Ask the device whether the peer is on; nothing is turned off. Returns a sentence."""
    if not plan.agent:
        return "a fence command has no status to ask for"
    try:
        program = FenceProgram(plan, peer, "status")
    except OSError as error:
        return f"the fence agent can't be started: {error}"
    code, said = program.wait(_WAIT_S)
    if code in (AGENT_ON, AGENT_OFF):
        return f"the fence agent says that {peer.name} is {'on' if code == AGENT_ON else 'off'}"
    return f"the fence agent can't tell whether {peer.name} is on: {said or 'no answer'}"
