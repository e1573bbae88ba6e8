"""What a host needs so that the service address is there, and is heard only by the one that serves.

The address is a /32 on lo, and the kernel's settings (arp_settings.py) let nobody be answered for it. With the clone
tap, whoever serves has it on the service's interface as well (presence.py), so it is answered for there and nowhere
else, and announces it by gratuitous ARP and by asking its clients' neighbours (next_hops.py). With the multicast tap
nobody answers: the client or router has a static entry with a multicast MAC, and both hosts join it. Everything is put
back by `restore`; what has to be put back is on record in a file, so that the daemon's next life can do it too.

`repair` mends what others have done to it, and is to be called whenever something may have changed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from nfq_failover.errors import CommandError
from nfq_failover.shell.host import rtnetlink
from nfq_failover.shell.host.allowance import Allowance
from nfq_failover.shell.host.announcer import Announcer
from nfq_failover.shell.host.arp_settings import CONF, ArpSettings
from nfq_failover.shell.host.conflicts import mac_text
from nfq_failover.shell.host.loopback import change_address, has_address
from nfq_failover.shell.host.neighbourhood import Neighbourhood
from nfq_failover.shell.host.presence import Presence, find, heard_address

_OLD_SETTINGS = ("arp_announce", "arp_ignore")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETNS = Path("/proc/thread-self/ns/net")
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0
RECENT_S = 60.0  # so long it is remembered that the address was taken away
_BURST, _REPAIR_EVERY_S = 5, 1.0  # repairs at once, and then one in a while: whoever removes it may do so each time
_LOOKS, _LOOK_EVERY_S = 10, 0.1  # upon changes: each look reads the kernel's tables, and may open sockets anew
_PROBES, _PROBE_WAIT_S = 2, 0.03

log = structlog.get_logger()


class ServiceAddress:
    """The service address, and how this host is heard for it."""

    def __init__(
        self,
        service: str,
        interface: str,
        tap: str,
        tap_mac: str | None,
        record: Path,
        settings: ArpSettings,
        change: Callable[[bool], str] | None = None,
        announce_refresh_s: float = 30.0,
        peers: Iterable[tuple[str, str | None]] = (),
    ) -> None:
        """`record`: the file that remembers what is ours to put back, for as long as this host is up.

        `change` adds the address (True) or removes it, and returns '' or the reason why not; this process does it by
        default. `peers`: their own addresses, and their hardware addresses where the configuration has them.
        """
        self.service = service
        self._packed = socket.inet_aton(service)
        self._change = change or (lambda add: change_address(service, add))
        self.interface = interface
        self.tap = tap
        self.settings = settings
        self._record = record
        self._life = [_BOOT_ID.read_text().strip(), str(_NETNS.readlink())]
        self._earlier: dict[str, str] = {}  # settings that an older version has changed
        self._owns_address = False
        self._wanted = False  # the address is ours to keep on lo
        self.serves = False
        self.announcer = Announcer(announce_refresh_s)
        self.neighbourhood = Neighbourhood(self._packed, interface, peers, announces=tap == "clone")
        self._announce = 0  # how many announcements follow a change of place
        self._hardware = b""
        self._membership: socket.socket | None = None
        self._index = 0
        self._netlink: socket.socket | None = None
        self.reopened = 0  # how often the interface has become another one
        self._links: frozenset[int] = frozenset()
        self.links_seen = 0  # how often other interfaces than before were there
        self.lived = False  # an earlier daemon has left traces on this boot
        self.repairs: deque[float] = deque(maxlen=64)
        self._may_repair = Allowance(_BURST, _REPAIR_EVERY_S)
        self._may_look = Allowance(_LOOKS, _LOOK_EVERY_S)
        self.problem = ""  # why the last repair has failed
        self._tap_mac = bytes.fromhex(tap_mac.replace(":", "")) if tap_mac else None
        self._read_record()

    # ------------------------------------------------------------------------------------ the record

    def _read_record(self) -> None:
        """Read what an earlier daemon, which was killed, has left to be put back."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["life"] == self._life:
                self.lived = True
                # Whoever can write the record must not have us write elsewhere, nor anything else.
                ours = {str(CONF / self.interface / name) for name in _OLD_SETTINGS}
                found = {str(path): str(int(value)) for path, value in record["sysctls"].items()}
                self._earlier = {path: value for path, value in found.items() if path in ours}
                self._owns_address = bool(record["address"])

    def _write_record(self) -> None:
        if not self._earlier and not self._owns_address:
            self._record.unlink(missing_ok=True)
            return
        record = {"life": self._life, "sysctls": self._earlier, "address": self._owns_address}
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(self._record)

    # ------------------------------------------------------------------------------------ start

    def prepare(self, silent: bool = True) -> None:
        """Set how ARP is answered and join the tap's group; silent until `own_address`, or heard as it was.

        Raises `CommandError`.
        """
        try:
            self._index = socket.if_nametoindex(self.interface)
        except OSError:
            raise CommandError(
                f"there is no interface '{self.interface}': set 'interface' to one of 'ip -br link'"
            ) from None
        self._netlink = rtnetlink.open_socket()
        self.serves = not silent and self.tap == "clone"
        self._be_heard(self.serves)
        self.settings.acquire()
        for path, value in self._earlier.items():
            with contextlib.suppress(OSError):
                Path(path).write_text(f"{value}\n")
        self._earlier.clear()
        self._open()
        self._hardware = self.neighbourhood.hardware

    def _open(self) -> None:
        """Open what belongs to the interface of this moment. Raises OSError."""
        self.neighbourhood.open(self._index)
        if self.tap == "multicast" and self._tap_mac:
            request = struct.pack("iHH8s", self._index, _PACKET_MR_MULTICAST, 6, self._tap_mac + b"\0\0")
            self._membership = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._membership.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)

    def _close(self) -> None:
        self.neighbourhood.close()
        if self._membership is not None:
            self._membership.close()
            self._membership = None

    def refuse_if_taken(self) -> None:
        """Raises `CommandError` if another machine, and not a peer, has the address (RFC 5227 section 2.1).

        The waits of the RFC are for a thousand hosts that boot at once; here one host asks, on one segment.
        """
        found, peers = self._ask_who_has_it()
        strangers = ", ".join(map(mac_text, sorted(found - peers)))
        if strangers and peers:
            raise CommandError(
                f"{self.service} belongs to another machine already: {strangers} on {self.interface} answers for it, "
                "and is not the peer. Find it (by this MAC address, in the switch's table), give it another address, "
                "then start again"
            )
        if strangers:
            log.warning("somebody has the service address: the peer, or else a stranger", mac=strangers)

    def refuse_claim(self) -> str:
        """Returns why no operator may say that this host is alone with the address: somebody answers; '' if nobody."""
        found, peers = self._ask_who_has_it()
        if not found:
            return ""
        macs = ", ".join(mac_text(mac) + (" (the peer)" if mac in peers else "") for mac in sorted(found))
        return f"{macs} still answers for {self.service}: turn that machine off first"

    def _ask_who_has_it(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """The other machines that answer for the address, and the peers that are known. Waits for the answers."""
        for _ in range(_PROBES):
            self.neighbourhood.probe()
            time.sleep(_PROBE_WAIT_S)
        return self.neighbourhood.who_has_it()

    def has_address(self) -> bool:
        """Returns whether the service address is configured on this host."""
        return has_address(self.service)

    def add_address(self) -> None:
        """Configure the service address, unless it is there, and keep it there. Raises `CommandError`."""
        self._wanted = True
        if self.has_address():
            if not self._owns_address:
                log.warning("the service address was there already and will stay", address=self.service)
            return
        self._owns_address = True
        try:
            self._write_record()
        except OSError as error:
            self._owns_address = False
            where = self._record.parent
            with contextlib.suppress(OSError):
                where = where.readlink()  # it may be named by a descriptor
            raise CommandError(
                f"can't write {self._record.name} in {where} ({error.strerror}): make room there, or set 'state_dir' "
                "to a directory on another disk"
            ) from None
        if problem := self._change(True):
            raise CommandError(f"can't configure the service address: {problem}")

    # ------------------------------------------------------------------------------------ being heard

    def own_address(self, own: bool, announce: int, now: float) -> None:
        """Answer ARP for the service address and announce it, at least `announce` times; or do neither."""
        self.announcer.stop()
        self.neighbourhood.serve(own, now)
        if self.tap != "clone":
            return
        self.serves = own
        self._announce = announce
        self._be_heard(own)
        if own:
            self.announcer.start(announce, now)
            self._announce_if_due(now)

    def _be_heard(self, heard: bool) -> None:
        """Have the service's interface answer for the address, or not. What fails now, `repair` tries again."""
        if not self._index:
            return
        link = rtnetlink.Link(self._index, self.interface, 0)
        try:
            rtnetlink.change_address(heard, heard_address(link, self._packed), self._netlink)
        except OSError as error:
            if error.errno == errno.ENODEV and not heard:
                return  # the address has gone with the interface
            log.error(
                "can't change who is answered for the service address",
                interface=self.interface,
                answer=heard,
                error=error.strerror,
            )

    def heard(self, now: float) -> None:
        """Note that a client's packet for the service has come in while this host serves."""
        if self.announcer.heard(now):
            log.info("clients reach this host", **self.announcer.describe())

    def tick(self, now: float) -> None:
        """Send the announcement that is due, and listen to what others say of the address."""
        self._announce_if_due(now)
        self.neighbourhood.tick(now)

    def _announce_if_due(self, now: float) -> None:
        if self.announcer.due(now):
            self.neighbourhood.announce()

    # ------------------------------------------------------------------------------------ repair

    def look(self) -> Presence:
        """Returns where the address is at this moment. Raises OSError."""
        links = rtnetlink.links(self._netlink)
        if links.keys() != self._links:
            self._links = frozenset(links)
            self.links_seen += 1
        return find(self._packed, self.interface, rtnetlink.addresses(kept=self._netlink), links)

    def changed(self, now: float) -> None:
        """Something of the host has changed: `repair`, unless that happens all the time. Somebody who fights for an
        address, or an interface that comes and goes, must not take the daemon's time; the self-check looks once a
        second in any case. Raises OSError."""
        if self._may_look.take(now):
            self.repair(now)

    def repair(self, now: float) -> Presence:
        """Put back what somebody has taken away, as far as it is ours to keep, and not too often.

        Returns where the address is then. Raises OSError.
        """
        found = self.look()
        if found.interface is not None:
            if found.interface.index != self._index:
                self._follow(found.interface.index)
            self._note_hardware(found.interface.hardware, now)
        missing = []
        if self._wanted and not (found.on_lo and found.lo_up):
            missing.append("lo")
        if found.interface is not None and self.serves != found.heard:
            missing.append(self.interface)
        if not missing or not self._may_repair.take(now):
            return found
        problems = [self._mend(place, now) for place in missing]
        self.problem = "; ".join(filter(None, problems))
        return self.look()

    def _mend(self, place: str, now: float) -> str:
        """Returns why not, '' if it is as it should be again."""
        try:
            if place == "lo":
                problem = change_address(self.service, True)  # not by the helper: nothing waits here
            else:
                problem = ""
                mine = heard_address(rtnetlink.Link(self._index, place, 0), self._packed)
                rtnetlink.change_address(self.serves, mine, self._netlink)
        except OSError as error:
            problem = error.strerror or str(error)
        self.repairs.append(now)
        if problem:
            log.error("the service address can't be put in order", address=self.service, place=place, error=problem)
        elif place == "lo" or self.serves:
            log.error("the service address had been taken away; it is back", address=self.service, place=place)
        else:
            log.error("the service address was to be heard on a host that does not serve; it is not", place=place)
        return problem

    def _follow(self, index: int) -> None:
        """The interface has been made anew: what was bound to the old one hears and says nothing any more."""
        log.warning("the interface is another one now", interface=self.interface, index=index)
        self._close()
        self._index = index
        self.reopened += 1
        try:
            self._open()
        except OSError as error:
            self._index = 0  # it has gone again: tried anew at the next look
            log.error("the interface can't be used", interface=self.interface, error=error.strerror)
            return
        self._be_heard(self.serves)

    def _note_hardware(self, hardware: bytes, now: float) -> None:
        """Clients have to learn the place again if the interface has got another hardware address."""
        before, self._hardware = self._hardware, hardware
        if not before or before == hardware or not self.serves:
            return
        log.warning("the interface has another hardware address; announced again", mac=mac_text(hardware))
        self.announcer.start(self._announce, now)
        self._announce_if_due(now)
        self.neighbourhood.tell_again(now)

    # ------------------------------------------------------------------------------------ end

    def remove_address(self) -> None:
        """Be heard no more, and remove the service address if it was added here. Can be repeated."""
        self._wanted = self.serves = False
        self._be_heard(False)
        if not self._owns_address:
            return
        problem = self._change(False)
        if problem and self.has_address():
            log.error("the service address can't be removed", address=self.service, error=problem)
            return
        self._owns_address = False
        self._write_record()

    def restore(self, stay: bool = False) -> None:
        """Put the settings back, unless the host goes on serving (`stay`), and leave the group. Can be repeated."""
        self.announcer.stop()
        if stay:
            self.settings.close()
        else:
            self._be_heard(False)
            self.settings.release()
            self._write_record()
        self._close()
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
