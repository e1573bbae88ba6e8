"""The status of a real node, as the control socket gives it, without a daemon around it."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.core.test_node_packets import Protected


def sample_status(**changes: Any) -> dict[str, Any]:
    """A primary with one protected connection. `changes` replace members of the status."""
    host = Protected()
    status: dict[str, Any] = json.loads(json.dumps(host.node.status(host.now).as_dict()))
    status["shell"] = {
        "queues": {
            "in": {"now": 1, "limit": 8192, "dropped": 0},
            "out": {"now": 2, "limit": 8192, "dropped": 7},
        },
        "injected": 12,
        "decided_late": 0,
        "internal_errors": 0,
    }
    return status | changes
