"""The service address as a /32 on lo: whether it is there, and how it comes and goes.

This is all of `host/` that the privileged helper loads.
"""

from __future__ import annotations

import subprocess


def has_address(service: str) -> bool:
    """Whether the service address is configured on this host."""
    out = subprocess.run(["ip", "-o", "addr", "show", "to", service], capture_output=True, check=False)
    return bool(out.stdout.strip())


def change_address(service: str, add: bool) -> str:
    """Add the address to lo, or remove it. Returns '' on success, otherwise the reason. Needs CAP_NET_ADMIN."""
    if add:
        subprocess.run(["ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    command = ["ip", "addr", "add" if add else "del", f"{service}/32", "dev", "lo"]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    return (out.stderr.strip() or f"exit code {out.returncode}") if out.returncode else ""
