"""Is the service address where a takeover needs it, and nowhere else? What is ours to mend is mended here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import structlog

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.shell.host.address import RECENT_S, ServiceAddress
from nfq_failover.shell.host.presence import Presence, how_to_remove
from nfq_failover.shell.selfcheck.checks import CHEAP_S, DEAR_S

OFTEN: Final = 3  # so many times within `RECENT_S` it is no accident
_WHO = "see who does that: systemd-networkd, NetworkManager (nmcli), a DHCP client's script, a configuration tool"
_SHOWN: Final = 4

log = structlog.get_logger()


class AddressCheck:
    """The service address, the interface, and the settings that say who is answered for it.

    `mend` False: look only, and expect nothing of a host where no daemon runs.
    """

    name = "address"
    every_s = CHEAP_S

    def __init__(self, address: ServiceAddress, mend: bool = True) -> None:
        self._address = address
        self._mend = mend
        self._everywhere_at = 0.0
        self._known = -1
        self._changed: deque[tuple[float, str]] = deque(maxlen=64)  # settings that others have changed, and when
        self._cure: tuple[object, str] = ((), "")

    def run(self, now: float) -> tuple[Concern, ...]:
        """Returns what is wrong after what could be mended has been. Raises OSError if the kernel can't be asked."""
        found = self._address.repair(now) if self._mend else self._address.look()
        return (*self._place(found, now), *(self._settings(now) if self._mend else ()))

    # ------------------------------------------------------------------------------------ the address

    def _place(self, found: Presence, now: float) -> Iterator[Concern]:
        service, interface = self._address.service, self._address.interface
        if found.interface is None:
            what = f"there is no interface {interface}"
            yield Concern("interface-missing", Weight.UNPROTECTED, what, "bring it back, or correct 'interface'")
        if self._mend:
            yield from self._missing(found, now)
        if found.elsewhere:
            places = ", ".join(f"{name} ({address})" for name, address in found.elsewhere)
            what = f"{service} is configured on {places}: this host is heard for it also when the other one serves"
            yield Concern("address-elsewhere", Weight.UNPROTECTED, what, self._how_to_remove(found), bears=Part.BACKUP)
        if found.odd is not None:
            what = f"{service} is on lo as {found.odd}: all addresses of that network count as this host's own"
            yield Concern("address-prefix", Weight.DEGRADED, what, f"ip addr del {found.odd} dev lo")

    def _how_to_remove(self, found: Presence) -> str:
        if self._cure[0] != found.elsewhere:  # it reads files
            self._cure = (found.elsewhere, how_to_remove(self._address.service, found.elsewhere))
        return self._cure[1]

    def _missing(self, found: Presence, now: float) -> Iterator[Concern]:
        address = self._address
        where = []
        if not found.anywhere:
            where.append(f"ip addr add {address.service}/32 dev lo")
        if not found.lo_up:
            where.append("ip link set lo up")
        if address.serves and not found.heard and found.interface is not None:
            where.append(f"ip addr add {address.service}/32 dev {address.interface} scope host")
        if where:
            reason = f" ({address.problem})" if address.problem else ""
            what = f"the service address {address.service} is missing on this host{reason}"
            yield Concern("address-missing", Weight.UNPROTECTED, what, "; ".join(where))
        # Who removes it in several steps has done so once.
        times = len({int(at) for at in address.repairs if now < at + RECENT_S})
        if times:
            often = times >= OFTEN
            what = f"somebody has taken the service address {address.service} away; it has been put back"
            if often:
                what = f"somebody takes the service address {address.service} away again and again; it is put back"
            yield Concern("address-taken-away", Weight.DEGRADED if often else Weight.WARNING, what, _WHO)

    # ------------------------------------------------------------------------------------ the settings

    def _settings(self, now: float) -> Iterator[Concern]:
        settings = self._address.settings
        everywhere = now >= self._everywhere_at or self._known != self._address.links_seen
        if everywhere:
            self._everywhere_at, self._known = now + DEAR_S, self._address.links_seen
        try:
            wrong = settings.look(everywhere)
        except OSError as error:
            what = f"can't set how this host answers ARP ({error}): it may be heard although the other one serves"
            cure = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"
            yield Concern("arp-settings", Weight.UNPROTECTED, what, cure, bears=Part.BACKUP)
            return
        if wrong:
            log.warning("somebody has changed how this host answers ARP; set again", found="; ".join(wrong[:_SHOWN]))
        self._changed.extend((now, each) for each in wrong)
        recent = dict.fromkeys(each for at, each in self._changed if now < at + RECENT_S)
        if recent:
            what = f"somebody has changed how this host answers ARP ({'; '.join([*recent][:_SHOWN])}); it is set again"
            cure = "take it out of /etc/sysctl.conf and /etc/sysctl.d, or see who else sets it"
            yield Concern("arp-settings-changed", Weight.WARNING, what, cure)
