"""A command that needs more than a server has says so first, and what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover import cli, extras
from nfq_failover.errors import CommandError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has nothing of it."""
    monkeypatch.setattr(extras, "_is_here", lambda name: False)


def test_a_server_can_do_what_servers_do(bare: None) -> None:
    for command in ("run", "status", "doctor", "check-config", "probe"):
        extras.need(command)


@pytest.mark.parametrize("command", ["demo", "campaign", "faults"])
def test_what_is_missing_is_named_with_its_package(
    bare: None, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([command]) == 2
    said = capsys.readouterr().err
    assert f"nfq-failover {command} needs matplotlib, ip, nft, tc, curl, nginx, tcpdump and tshark" in said
    assert "apt-get install python3-matplotlib iproute2 nftables curl nginx-light tcpdump tshark" in said
    assert "pip install 'nfq-failover[lab]'" in said
    assert list(tmp_path.iterdir()) == []  # said before anything was begun


def test_no_pip_for_what_pip_has_not(bare: None) -> None:
    with pytest.raises(CommandError, match="lab needs ip, nft and tc, which are not installed here: ") as error:
        extras.need("lab")
    assert "pip" not in str(error.value)


def test_one_module(bare: None) -> None:
    with pytest.raises(CommandError, match="needs scapy, which is not installed here: apt-get install python3-scapy"):
        extras.need("probe --recorded", ["scapy"])


def test_what_is_here_is_found() -> None:
    for command in extras.NEEDS:
        extras.need(command)
