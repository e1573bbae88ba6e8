"""The service address as a /32 on lo: whether it is there, and how it comes and goes.

This and rtnetlink.py is all of `host/` that the privileged helper loads.
"""

from __future__ import annotations

import socket

from nfq_failover.shell.host import rtnetlink


def has_address(service: str) -> bool:
    """Whether the service address is configured on this host."""
    wanted = socket.inet_aton(service)
    try:
        return any(address.local == wanted for address in rtnetlink.addresses())
    except OSError:
        return False


def change_address(service: str, add: bool) -> str:
    """Add the address to lo, or remove it. Returns '' on success, otherwise the reason. Needs CAP_NET_ADMIN."""
    try:
        index = socket.if_nametoindex("lo")
        if add:
            rtnetlink.set_up(index)
        rtnetlink.change_address(add, rtnetlink.Address(index, socket.inet_aton(service), 32))
    except OSError as error:
        return error.strerror or str(error)
    return ""
