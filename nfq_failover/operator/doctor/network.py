"""What can be seen of the network while no daemon runs on this host: who has the service address, and the peer.

A question by ARP and some greetings of the sync channel are sent: they change nothing at whoever answers.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

from nfq_failover.config import Config
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.diagnosis import Diagnosis
from nfq_failover.core.pair.session import Session
from nfq_failover.core.settings import Peer
from nfq_failover.errors import MalformedDatagram, WrongName
from nfq_failover.operator.doctor.report import Subject
from nfq_failover.shell.fencing import metadata
from nfq_failover.shell.firewall.script import RulesRunner
from nfq_failover.shell.host import arp, rtnetlink
from nfq_failover.shell.host.conflicts import mac_text
from nfq_failover.shell.host.link import Probe
from nfq_failover.shell.host.presence import find, how_to_remove
from nfq_failover.shell.host.way import Way
from nfq_failover.shell.peer.delivery import Delivery
from nfq_failover.shell.peer.socket import open_sync
from nfq_failover.shell.privileged.client import helper_settings
from nfq_failover.shell.selfcheck.foreign_rules import Hint, findings, hints
from nfq_failover.shell.selfcheck.routes import RoutesCheck
from nfq_failover.wire.datagram import Kind, read_header

TALK_S: Final = 2.5
_HELLO_EVERY_S: Final = 0.2
_ARP_S: Final = 0.8
_ARP_TIMES: Final = 3
_TARGET_S: Final = 1.0
_MAX_DATAGRAM: Final = 1 << 16
_READ_AT_ONCE: Final = 64


def subjects(config: Config) -> list[Subject]:
    """Everything of this module."""
    peer, *_ = config.settings.peers
    found = [
        Subject("way", f"{peer.name} must hear this host, or it takes over", lambda: _way(config, peer)),
        Subject(
            *(
                "address",
                "clients reach who has the service address: nobody but the host that serves may answer for it",
            ),
            lambda: _address(config, peer),
        ),
        Subject(
            *("peer", "heartbeats and confirmations go between the hosts, both ways, with one key"),
            lambda: _peer(config, peer),
        ),
        Subject(
            *("host's rules", "rules of other programs come first, and may lead the service's packets away"),
            lambda: _rules(config),
        ),
        Subject(
            *("routes", "after a takeover this host's answers must reach the clients"),
            lambda: _routes(config),
        ),
    ]
    if config.check_targets:
        about = "before it takes over, this host asks them whether it is itself cut off"
        found.append(Subject("targets", about, lambda: _targets(config)))
    if config.fence.agent:
        about = f"a takeover waits until the agent has turned {peer.name} off"
        found.append(Subject("fence agent", about, lambda: _agent(config, peer)))
    return found


# ------------------------------------------------------------------------------------ this host's way, and the address


def _way(config: Config, peer: Peer) -> tuple[str, list[Concern]]:
    way = Way(config.interface, config.listen[0], peer.address)
    try:
        found = way.look(time.monotonic(), heard=False)
    finally:
        way.close()
    return f"{config.listen[0]} is here, and there is a route to {peer.address}", [] if found is None else [found]


def _address(config: Config, peer: Peer) -> tuple[str, list[Concern]]:
    service = ip_address(config.service).packed
    present = find(service, config.interface, rtnetlink.addresses(), rtnetlink.links())
    if present.elsewhere:
        places = ", ".join(f"{name} ({address})" for name, address in present.elsewhere)
        what = f"{config.service} is configured on {places}: both hosts would be heard for it at once; the daemon puts "
        what += "it where it belongs by itself"
        cure = how_to_remove(config.service, present.elsewhere)
        return "", [Concern("address-elsewhere", Weight.UNPROTECTED, what, cure)]
    if config.tap == "multicast":
        return f"{config.service} is on no interface of this host; nobody answers ARP for a shared address", []
    owners, its = _who_has(config.interface, service, ip_address(peer.address).packed)
    strangers = owners - its
    if not owners:
        return f"nobody answers for {config.service}: no host serves it now", []
    if not strangers:
        return f"{peer.name} answers for {config.service}: it serves", []
    macs = ", ".join(sorted(mac_text(mac) for mac in strangers))
    cure = f"find it by its MAC address ({macs}) and give it another address, or turn it off"
    if its:
        what = f"another machine than {peer.name} answers for {config.service}: {macs}"
        return "", [Concern("address-conflict", Weight.UNPROTECTED, what, cure)]
    what = f"{macs} answers for {config.service}; {peer.name} is not on this segment, or off, so this may be a stranger"
    return "", [Concern("address-conflict", Weight.WARNING, what, cure)]


def _who_has(interface: str, service: bytes, peer: bytes) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Ask by ARP probes (RFC 5227). Returns the other machines' hardware addresses: who has the service address, and
    who the peer's."""
    asking = arp.ArpSocket(interface)
    own = {link.hardware for link in rtnetlink.links().values()}
    found: dict[bytes, set[bytes]] = {service: set(), peer: set()}
    try:
        for _ in range(_ARP_TIMES):
            for address in found:
                asking.send(arp.probe(asking.mac, address))
            time.sleep(_ARP_S / _ARP_TIMES)
            for frame in asking.heard():
                if frame.sender in found and frame.sender_mac not in own:
                    found[frame.sender].add(frame.sender_mac)
    finally:
        asking.close()
    return frozenset(found[service]), frozenset(found[peer])


# ------------------------------------------------------------------------------------ the peer


def _peer(config: Config, peer: Peer) -> tuple[str, list[Concern]]:
    sockets = open_sync(config.listen)
    delivery = Delivery(sockets.records, config.listen, [(peer.address, peer.port)])
    try:
        return Talk(config, peer, sockets.records, delivery).hold()
    finally:
        delivery.close()
        sockets.close()


class Talk:
    """Greets the peer again and again, without ever beginning a session: a HELLO is answered, and changes nothing.

    Its daemon's answer returns our nonce, so that both ways, both names and the key are right.
    """

    def __init__(
        self,
        config: Config,
        peer: Peer,
        udp: socket.socket,
        delivery: Delivery,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = config.settings.name
        self._peer = peer
        self._end = (peer.address, peer.port)
        self._udp = udp
        self._delivery = delivery
        self._clock = clock
        self._session = Session(config.settings, peer, os.urandom)
        self._out = Outbox()
        self._diagnosis = Diagnosis(config.settings, peer, self._out, clock())

    def hold(self) -> tuple[str, list[Concern]]:
        """Talk until the peer has answered, or for `TALK_S`. Returns what was seen, and what is wrong."""
        until = self._clock() + TALK_S
        say_at = 0.0
        while (now := self._clock()) < until:  # Ends: by the deadline.
            if now >= say_at:
                say_at = now + _HELLO_EVERY_S
                self._session.on_timer(now)
                while (data := self._session.poll_datagram()) is not None:
                    self._delivery.send(data, self._end)
                    self._diagnosis.sent()
            select.select([self._udp], [], [], _HELLO_EVERY_S / 4)
            if self._read():
                return f"{self._peer.name} answers at {self._peer.address}:{self._peer.port}, with our key", []
            for each in self._delivery.tick():
                self._diagnosis.undelivered(each, self._clock())
            self._diagnosis.on_timer(float("-inf"), self._clock())
        return "", [each.concern for each in self._out.concerns.standing()]

    def _read(self) -> bool:
        """Read what has come, of a flood a part. Returns whether the peer has answered us."""
        for _ in range(_READ_AT_ONCE):
            try:
                data, source = self._udp.recvfrom(_MAX_DATAGRAM)
            except BlockingIOError:
                break
            if self._take(data, source, self._clock()):
                return True
        return False

    def _take(self, data: bytes, source: tuple[str, int], now: float) -> bool:
        """Judge one datagram. Returns whether it is the peer's answer to us."""
        try:
            kind = read_header(data).kind
        except MalformedDatagram as error:
            self._diagnosis.refused(error, source, data, now)
            return False
        if kind not in (Kind.HELLO, Kind.REPLY):
            return False  # of a session with an earlier daemon of this host
        names = self._session.introduces(data)
        if names is None:
            self._diagnosis.refused(MalformedDatagram("bad-mac"), source, data, now)
        elif names != (self._peer.name, self._name):
            self._diagnosis.refused(WrongName(*names), source, data, now)
        elif source != self._end:
            self._diagnosis.elsewhere(source, now)
        elif self._session.answered_by(data):
            return True
        else:
            self._diagnosis.greeted(now)
        return False


# ------------------------------------------------------------------------------------ rules, and who else is asked


def _rules(config: Config) -> tuple[str, list[Concern]]:
    runner = RulesRunner(helper_settings(config, None).rules)
    said = runner.start_look().finish_check()
    return "none of them is in the way", [*findings(said or ""), *_drops(hints(said or ""))]


def _drops(found: Sequence[Hint]) -> list[Concern]:
    """Whether they do drop what the service needs, only the daemon's probes can tell."""
    cures = {hint.rule: hint.cure for hint in found}
    about = "this rule may drop the service's packets; the daemon will try it"
    return [Concern("service-perhaps-dropped", Weight.WARNING, f"{about}: {rule}", cures[rule]) for rule in cures]


def _routes(config: Config) -> tuple[str, list[Concern]]:
    check = RoutesCheck(config)
    try:
        return f"answers leave by {config.interface}", list(check.before_start(time.monotonic()))
    finally:
        check.close()


def _targets(config: Config) -> tuple[str, list[Concern]]:
    silent = []
    probes: list[Probe] = []
    try:
        for target in config.check_targets:
            try:
                probes.append(Probe(target, config.listen[0]))
            except OSError:
                silent.append(target)
        until = time.monotonic() + _TARGET_S
        waiting = list(probes)
        while waiting and time.monotonic() < until:  # Ends: by the deadline.
            waiting = [probe for probe in waiting if not probe.answered()]
            time.sleep(_TARGET_S / 20)
        silent += [probe.target for probe in waiting]
    finally:
        for probe in probes:
            probe.close()
    if not silent:
        return "all answer", []
    names = ", ".join(f"{address}:{port}" if port else address for address, port in silent)
    weight = Weight.WARNING if len(silent) < len(config.check_targets) else Weight.UNPROTECTED
    what = f"these check targets do not answer: {names}"
    return "", [Concern("targets-silent", weight, what, "correct 'check_targets', or see why they are silent")]


def _agent(config: Config, peer: Peer) -> tuple[str, list[Concern]]:
    said = metadata.status(config.fence, peer)
    if said.startswith("the fence agent says"):
        return said, []
    cure = "nfq-failover check-config --fence-status; correct [fence]"
    return "", [Concern("fence-fails", Weight.UNPROTECTED, said, cure)]
