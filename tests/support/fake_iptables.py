"""A host without firewall: an `iptables` that has no rules and takes all, and a way to run the rules script on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "iptables" / "nfq-failover-rules"
REQUIRED = ("--service", "10.77.0.100", "--ports", "80,7000:7099", "--interface", "lo")
FAKE = "iptables-fake"
PEER = ("--peer", "10.77.0.3", "--peer-mac", "02:00:00:00:00:03")


def make_fake(directory: Path, refuses: str = "") -> Path:
    """The fake's path; `-save` prints nothing and `-restore` writes its input to `restored` beside it, unless there is
    the word in it that it `refuses`."""
    fake = directory / FAKE
    programs = {
        "": "echo 'iptables v1.8.9 (nf_tables)'",
        "-save": ":",
        "-restore": f"cat >>{directory}/restored",
    }
    if refuses:
        programs["-restore"] = f"""input=$(cat)
case $1$2$3$input in *{refuses}*) exit 1 ;; *--test*) exit 0 ;; esac
printf '%s\\n' "$input" >>{directory}/restored"""
    for suffix, body in programs.items():
        program = fake.with_name(fake.name + suffix)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return fake


def script(directory: Path, *arguments: str, stdin: str = "", keep: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the script with the fake and a state directory of its own. `keep`: with the fake that is there."""
    fake = directory / FAKE if keep else make_fake(directory)
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments, "--iptables", str(fake), "--state-dir", str(directory / "state")],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def plan(directory: Path, role: str, *arguments: str, stdin: str = "") -> str:
    """What an installation would do; it must not have done anything."""
    done = script(directory, "install", "--role", role, *REQUIRED, *arguments, "--dry-run", stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert "Nothing was changed" in done.stdout
    assert not (directory / "restored").exists()
    assert not (directory / "state").exists()
    return done.stdout


def rules(plan_text: str, chain: str) -> list[str]:
    """The rules that a plan appends to a chain, in order."""
    return [line.split(" ", 2)[2] for line in plan_text.splitlines() if line.startswith(f"-A {chain} ")]
