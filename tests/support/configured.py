"""The core's settings as a configuration file would have them: the only place where tests make some."""

from __future__ import annotations

from typing import Any

from nfq_failover.config import schema
from nfq_failover.constants import DEFAULT_SYNC_PORT
from nfq_failover.core.settings import Peer, Settings


def peer(name: str = "b", address: str = "10.77.0.3", port: int = DEFAULT_SYNC_PORT) -> Peer:
    """The other host."""
    return Peer(name, address, port)


def settings(**overrides: Any) -> Settings:
    """The settings of a host `a` with a peer `b` that has no fence, witness, targets or checks of the application.

    All else has the schema's defaults. `overrides` are fields of `Settings`.
    """
    values = {
        **schema.core_defaults(),
        "name": "a",
        "service": bytes((10, 77, 0, 100)),
        "ports": ((80, 80),),
        "peers": (peer(),),
        "key": b"k" * 32,
        "has_fence": True,
        "split_brain_accepted": False,
        "has_witness": False,
        "checks_target": False,
        "health_checked": False,
    }
    return Settings(**values | overrides)
