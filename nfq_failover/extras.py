"""What only some commands need, and servers go without: said before the command begins, with how to install it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from nfq_failover.errors import CommandError

_MODULES: Final = {"matplotlib": "python3-matplotlib", "scapy": "python3-scapy"}
"""Of the extra `nfq-failover[lab]`: module, and Debian's package of it."""

_PROGRAMS: Final = {
    "curl": "curl",
    "ip": "iproute2",
    "nft": "nftables",
    "nginx": "nginx-light",
    "tc": "iproute2",
    "tcpdump": "tcpdump",
    "tshark": "tshark",
}

_NETWORK: Final = ("ip", "nft", "tc")
_DOWNLOADS: Final = ("matplotlib", *_NETWORK, "curl", "nginx", "tcpdump", "tshark")
NEEDS: Final = {
    "lab": _NETWORK,
    "demo": _DOWNLOADS,
    "campaign": _DOWNLOADS,
    "faults": _DOWNLOADS,
    "bench": _NETWORK,
    "programs": (*_NETWORK, "tcpdump", "tshark"),
}
"""By command."""


def need(command: str, names: Sequence[str] | None = None) -> None:
    """See that what the command needs is here: `names`, or what `NEEDS` has. Raises CommandError."""
    wanted = NEEDS.get(command, ()) if names is None else names
    missing = [name for name in wanted if not _is_here(name)]
    if not missing:
        return
    packages = dict.fromkeys(_MODULES.get(name) or _PROGRAMS[name] for name in missing)
    cure = f"apt-get install {' '.join(packages)}"
    if any(name in _MODULES for name in missing):
        cure += " (or, in a virtual environment: pip install 'nfq-failover[lab]')"
    there = "is not installed here" if len(missing) == 1 else "are not installed here"
    raise CommandError(f"nfq-failover {command} needs {_and(missing)}, which {there}: {cure}")


def _is_here(name: str) -> bool:
    if name in _MODULES:
        return find_spec(name) is not None
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin") is not None


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
