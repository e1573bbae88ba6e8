"""What the Debian package is made of: the parts that building it would show only on another machine."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

from nfq_failover import cli, extras

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "script" / "debian"


def test_every_command_of_the_help_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    helped = capsys.readouterr().out
    runpy.run_path(str(DEBIAN / "commands.py"), run_name="__main__")
    pages = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert {"all", "run", "status", "doctor", "lab", "demo", "probe", "keygen"} <= pages.keys()
    for command, summary in pages.items():
        assert summary.strip()
        assert command == "all" or f"\n    {command} " in helped or f"\n    {command}\n" in helped


def test_the_parser_of_a_page_is_the_commands_own(monkeypatch: pytest.MonkeyPatch) -> None:
    page = runpy.run_path(str(DEBIAN / "commands.py"))["page"]
    for command, prog in (("status", "nfq-failover status"), ("lab", "nfq-failover lab"), ("all", "nfq-failover")):
        monkeypatch.setenv("NFQF_PAGE", command)
        assert page().prog == prog


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (
            "nfq-failover",
            "run --config /etc/nfq-failover/config.toml --last-good /run/nfq-failover/last-good.toml",
        ),
        ("nfq-failover-witness", "witness --listen ${LISTEN} --key ${CREDENTIALS_DIRECTORY}/key"),
    ],
)
def test_a_unit_runs_the_packages_program_and_has_all_its_sections(name: str, start: str) -> None:
    unit = (ROOT / "vagrant" / f"{name}.service").read_text()
    done = subprocess.run(
        ["sh", str(DEBIAN / "unit")], input=unit, capture_output=True, text=True, check=True, timeout=30
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "[Unit]"
    assert f"ExecStart=/usr/bin/nfq-failover {start}" in lines
    assert not any("/usr/local" in line or "docs/" in line for line in lines)
    assert [line for line in lines if line.startswith("[")] == [
        line for line in unit.splitlines() if line.startswith("[")
    ]


def test_the_daemons_unit_leaves_the_state_directory_to_the_daemon() -> None:
    """For ExecReload=, too, systemd gives a StateDirectory= to the unit's user: root, under a running daemon."""
    lines = (ROOT / "vagrant" / "nfq-failover.service").read_text().splitlines()
    assert any(line.startswith("ExecReload=") for line in lines)
    assert not any(line.startswith(("User=", "StateDirectory", "CacheDirectory", "LogsDirectory")) for line in lines)


def test_what_is_installed_is_there() -> None:
    for name in ("nfq-failover.install", "nfq-failover.docs"):
        for line in (DEBIAN / name).read_text().splitlines():
            source = line.split()[0]
            assert source.startswith("debian/generated/") or (ROOT / source).exists(), source


def test_the_demo_installs_the_programs_that_it_needs_and_no_others_of_the_tests() -> None:
    script = (ROOT / "script" / "bootstrap").read_text()
    rows = [line.split() for line in script.partition("done <<'LIST'\n")[2].partition("\nLIST\n")[0].splitlines()]
    of_the_demo = {proof for _, proof, *scope in rows if scope == ["demo"]}
    assert {name for name in extras.NEEDS["demo"] if name != "matplotlib"} <= of_the_demo
    assert not {"cc", "make", "ruby", "sshd", "redis-server", "shellcheck"} & of_the_demo
    assert 'script/bootstrap" --demo' in (ROOT / "script" / "demo").read_text()
