"""What a host tells of itself, besides its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover.config.parse import load
from nfq_failover.shell.selfcheck import facts
from nfq_failover.shell.selfcheck.facts import HostFactsReader, mtu

SYSCTLS = {"tcp_timestamps": "2", "tcp_sack": "0", "tcp_window_scaling": "1", "tcp_ecn": "2"}


@pytest.fixture
def sysctls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in SYSCTLS.items():
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(facts, "_SYSCTLS", tmp_path)
    return tmp_path


def reader(tmp_path: Path, more: str = "") -> HostFactsReader:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    key.chmod(0o600)
    path = tmp_path / "config.toml"
    path.write_text(
        f'name = "a"\nservice = "192.0.2.100"\nports = [80]\ninterface = "lo"\nlisten = "192.0.2.11"\n'
        f'key_file = "{key}"\n{more}\n[[peer]]\nname = "b"\naddress = "192.0.2.12"\n'
    )
    return HostFactsReader(load(path))


def test_facts_are_read_and_told_when_they_change(tmp_path: Path, sysctls: Path) -> None:
    reading = reader(tmp_path)
    first = reading.tick(100.0)
    assert first is not None
    assert dict(first.facts) == {
        "tap": "clone",
        "conntrack": "notrack",
        "witness": "none",
        "mtu": str(mtu("lo")),
        "timestamps": "1",  # 2 grants them as well
        "sack": "0",
        "window-scaling": "1",
        "ecn": "2",
    }
    assert reading.tick(100.5) is None
    assert reading.tick(101.0) is None
    (sysctls / "tcp_sack").write_text("1\n")
    assert reading.tick(101.5) is None, "once a second"
    second = reading.tick(102.0)
    assert second is not None
    assert dict(second.facts) == dict(first.facts) | {"sack": "1"}


def test_the_mac_address_counts_where_it_is_used(tmp_path: Path, sysctls: Path) -> None:
    told = reader(tmp_path, 'tap = "multicast"\ntap_mac = "01:00:5e:4d:00:64"').tick(1.0)
    assert told is not None
    assert dict(told.facts)["tap"] == "multicast 01:00:5e:4d:00:64"


def test_what_cannot_be_read_is_not_told(tmp_path: Path, sysctls: Path) -> None:
    (sysctls / "tcp_sack").unlink()
    told = reader(tmp_path).tick(1.0)
    assert told is not None
    assert "sack" not in dict(told.facts)
    assert mtu("no-such-thing") is None
    assert (mtu("lo") or 0) >= 1500
