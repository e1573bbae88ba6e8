"""The fence between the lab's machines: what a key may say, what the agent believes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nfq_failover.config.fence import FencePlan
from nfq_failover.core.settings import Peer
from nfq_failover.shell.fencing import metadata as agent_metadata

VAGRANT = Path(__file__).parents[3] / "vagrant"
HYPERVISOR = '#!/bin/sh\necho "$*" >>"$(dirname "$0")/asked"\necho off\n'
# Answers as the file beside it says: the exit code, then the text.
SSH = """#!/bin/sh
here=$(dirname "$0")
printf '%s\\n' "$@" >"$here/words"
sed 1d "$here/answer"
exit "$(head -n 1 "$here/answer")"
"""


def gate(directory: Path, may: str, said: str | None) -> tuple[int, list[str]]:
    """Exit code of the gate, and what the hypervisor was asked."""
    (directory / "fence-gate").write_text((VAGRANT / "fence-gate").read_text())
    (directory / "hypervisor").write_text(HYPERVISOR)
    (directory / "hypervisor").chmod(0o755)
    env = {"PATH": os.defpath} | ({} if said is None else {"SSH_ORIGINAL_COMMAND": said})
    done = subprocess.run(["sh", str(directory / "fence-gate"), may], env=env, capture_output=True, timeout=30)
    asked = directory / "asked"
    return done.returncode, asked.read_text().splitlines() if asked.exists() else []


@pytest.mark.parametrize("action", ["off", "status"])
def test_a_key_may_ask_for_the_other_machine(tmp_path: Path, action: str) -> None:
    assert gate(tmp_path, "primary", f"{action} primary") == (0, [f"{action} primary"])


@pytest.mark.parametrize(
    "said",
    [
        None,
        "",
        "off backup",
        "off",
        "off primary; id",
        "off primary backup",
        "cut primary",
        "off  primary",
        "id\noff primary",
    ],
)
def test_a_key_may_ask_for_nothing_else(tmp_path: Path, said: str | None) -> None:
    code, asked = gate(tmp_path, "primary", said)
    assert code == 1
    assert asked == []


class Agent:
    """`vagrant/fence_lab_vm` with a stand-in for ssh."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "ssh").write_text(SSH)
        (directory / "ssh").chmod(0o755)

    def ask(self, action: str, code: int, answer: str, **changes: str) -> subprocess.CompletedProcess[str]:
        (self.directory / "answer").write_text(f"{code}\n{answer}\n")
        given = {
            "action": action,
            "ip": "192.168.60.1",
            "ipport": "7722",
            "username": "me",
            "plug": "primary",
            "identity_file": "/k",
            "known_hosts": "/h",
        } | changes
        return subprocess.run(
            [str(VAGRANT / "fence_lab_vm")],
            input="".join(f"{name}={value}\n" for name, value in given.items() if value),
            env={"PATH": f"{self.directory}:{os.defpath}"},
            capture_output=True,
            text=True,
            timeout=30,
        )


@pytest.mark.parametrize(
    ("action", "code", "answer", "expected"),
    [
        ("off", 0, "off", 0),
        ("off", 0, "on", 1),
        ("off", 0, "", 1),
        ("off", 1, "off", 1),
        ("off", 255, "", 1),
        ("status", 0, "on", 0),
        ("status", 0, "off", 2),
        ("status", 0, "perhaps", 1),
        ("status", 255, "", 1),
        ("monitor", 0, "off", 0),
        ("monitor", 255, "", 1),
        ("reboot", 0, "off", 1),
        ("on", 0, "on", 1),
        ("", 0, "off", 1),
    ],
)
def test_only_the_right_answer_is_believed(tmp_path: Path, action: str, code: int, answer: str, expected: int) -> None:
    assert Agent(tmp_path).ask(action, code, answer).returncode == expected


@pytest.mark.parametrize("missing", ["ip", "plug", "identity_file", "known_hosts"])
def test_without_a_parameter_nothing_is_off(tmp_path: Path, missing: str) -> None:
    done = Agent(tmp_path).ask("off", 0, "off", **{missing: ""})
    assert done.returncode == 1
    assert missing in done.stderr


def test_the_host_is_who_it_was_and_only_this_key_is_tried(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.ask("off", 0, "off")
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-2:] == ["me@192.168.60.1", "off primary"]
    assert {"StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "UserKnownHostsFile=/h"} <= set(words)


def test_check_config_understands_the_agent() -> None:
    given = tuple((name, "x") for name in ("ip", "ipport", "username", "plug", "identity_file", "known_hosts"))
    plan = FencePlan((str(VAGRANT / "fence_lab_vm"),), True, given, verify=False)
    assert agent_metadata.advice(plan) == []
    assert agent_metadata.advice(FencePlan(plan.command, True, given[:2], verify=False)) != []
    assert "can't tell" in agent_metadata.status(plan, Peer("primary", "192.168.60.11", 7766))
