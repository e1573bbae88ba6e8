"""Whatever a configuration file says, it gives a valid configuration or a `ConfigError`: nothing else ever."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_failover.config import Config, parse, schema
from nfq_failover.errors import ConfigError


@pytest.fixture(scope="module")
def key_file() -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"0123456789abcdef")
        file.flush()
        yield file.name


values = st.one_of(
    st.integers(-(2**40), 2**40),
    st.sampled_from([0, 1, 2, 10, 80, 100, 5000, 7766, 65535, 65536, True, False, 50.0, -1]),
    st.text(max_size=12),
    st.sampled_from(
        [
            *("a", "b", "eth0", "10.77.0.2", "10.77.0.3:1", "10.77.0.100", "fd77::1", "0.0.0.0", "80-90", "90-80"),
            *("clone", "multicast", "01:00:5e:4d:00:64", "wait", "fence", "accepted", "refuse", "notrack", "liberal"),
            *("/x", "\0", "", "{peer}", "{x}", "²", "٣"),
        ]
    ),
)
nested = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2))
changes = st.dictionaries(st.sampled_from(schema.names()) | st.text(max_size=8), nested, max_size=4)
peer_changes = st.dictionaries(st.sampled_from(schema.names("peer")) | st.text(max_size=8), nested, max_size=2)


@given(change=changes, peer_change=peer_changes, drop=st.sets(st.sampled_from(schema.names()), max_size=1))
def test_valid_or_refused(key_file: str, change: dict[str, Any], peer_change: dict[str, Any], drop: set[str]) -> None:
    table: dict[str, Any] = {
        "name": "a",
        "service": "10.77.0.100",
        "ports": [80, "7000-7099"],
        "interface": "eth0",
        "listen": "10.77.0.2:7766",
        "key_file": key_file,
        "peer": [{"name": "b", "address": "10.77.0.3"} | peer_change],
    }
    table |= change
    for name in drop:
        table.pop(name, None)
    try:
        config = parse(table)
    except ConfigError as error:
        assert str(error)
        return
    assert isinstance(config, Config)
    settings = config.settings
    assert len(settings.service) == 4
    assert settings.ports
    assert all(0 < low <= high < 65536 for low, high in settings.ports)
    assert len(settings.key) >= 16
    assert settings.detection_ms >= 20
    assert config.mark.bit_count() == 1
    assert config.queue_in != config.queue_out
    assert config.tap == "clone" or config.tap_mac is not None
    assert settings.has_fence == bool(config.fence)
