"""The configuration file can be read by the next daemon."""

from __future__ import annotations

from nfq_failover.config import Config
from nfq_failover.core.concerns import Concern, Weight


def file_wrong(config: Config) -> list[Concern]:
    """What to say of a daemon that was started with a copy, since the file itself is wrong."""
    if not config.wrong:
        return []
    first, *more = config.wrong
    others = f" (and {len(more)} more)" if more else ""
    what = f"the configuration file was wrong at the start, and this daemon goes by the one before: {first}{others}"
    cure = f"correct it until 'nfq-failover check-config --config {config.file}' is content, then 'nfq-failover reload'"
    return [Concern("configuration-wrong", Weight.DEGRADED, what, cure)]
