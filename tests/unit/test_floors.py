"""The oldest versions that pyproject.toml allows are those of Debian 12: its own packages are enough to run from."""

from __future__ import annotations

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]

# apt-cache policy python3 python3-pyroute2 python3-structlog python3-xxhash ... (bookworm)
DEBIAN_12 = {
    "python": "3.11",
    "pyroute2": "0.7.2",
    "structlog": "22.3.0",
    "xxhash": "3.2.0",
    "numpy": "1.24.2",
    "matplotlib": "3.6.3",
    "scapy": "2.5.0",
}
# No distribution's package of ours depends on it: nfq_failover/shell/packets/binding.py.
NOT_OF_A_DISTRIBUTION = "NetfilterQueue"


def floors() -> dict[str, str]:
    extras = PROJECT["optional-dependencies"]
    found = {"python": PROJECT["requires-python"].removeprefix(">=")}
    for requirement in [*PROJECT["dependencies"], *extras["fast"], *extras["lab"]]:
        if not requirement.startswith(NOT_OF_A_DISTRIBUTION):
            name, floor = requirement.split(">=")
            assert found.setdefault(name, floor) == floor, f"two floors for {name}"
    return found


def test_floors_are_debian_12s() -> None:
    assert floors() == DEBIAN_12
