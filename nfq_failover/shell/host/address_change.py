"""The service address: a /32 on lo."""

from __future__ import annotations

import subprocess


def has_address(service: str) -> bool:
    """Whether the service address is configured on this host."""
    out = subprocess.run(["ip", "-o", "addr", "show", "to", service], capture_output=True, check=False)
    return bool(out.stdout.strip())


def change_address(service: str, add: bool) -> str:
    """Configure the address, or take it away; '' if that was done, else why not. Needs CAP_NET_ADMIN."""
    if add:
        subprocess.run(["ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    command = ["ip", "addr", "add" if add else "del", f"{service}/32", "dev", "lo"]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    return (out.stderr.strip() or f"exit code {out.returncode}") if out.returncode else ""
