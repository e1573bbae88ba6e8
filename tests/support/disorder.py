"""A switch that reorders and repeats: every few frames of the service are taken out, and put back later, some twice.

nftables hands the frames to one end of a veth pair in the switch (netdev `fwd`); a thread reads them at the other end
and sends them out of the port where they were going. The nodes must cut their segments and write their checksums
themselves: a super-segment has no frame on a real wire.
"""

from __future__ import annotations

import heapq
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nfq_failover.lab import netns
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, namespace, port

_TABLE: Final = "netdev disorder"
_ALL: Final = 3  # linux/if_ether.h, ETH_P_ALL
_DELAYS_S: Final = (0.0005, 0.008)
_REPEATED: Final = 0.4  # of the frames that are taken out


class Disorder:
    """The thread in the switch, and what it did."""

    def __init__(self, name: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._to = {bytes.fromhex(TWO_HOSTS.hardware(node).replace(":", "")): node for node in TWO_HOSTS.names}
        self.late = dict.fromkeys(TWO_HOSTS.names, 0)  # frames put back, by where they went
        self.twice = dict.fromkeys(TWO_HOSTS.names, 0)
        with netns.entered(namespace(name, SWITCH)):
            self._reader = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._writers = {node: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) for node in TWO_HOSTS.names}
        self._reader.bind(("odd1", _ALL))
        for node, writer in self._writers.items():
            writer.bind((port(node), 0))
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
        for one in (self._reader, *self._writers.values()):
            one.close()

    def _run(self) -> None:
        due: list[tuple[float, int, bytes]] = []
        number = 0
        while not self._stop.is_set():
            wait = due[0][0] - time.monotonic() if due else 0.02
            if wait > 0:
                self._reader.settimeout(wait)
                try:
                    frame = self._reader.recv(65536)
                except TimeoutError:
                    continue
                node = self._to.get(frame[:6])
                if node is None:
                    continue
                self.late[node] += 1
                times = [self._random.uniform(*_DELAYS_S)]
                if self._random.random() < _REPEATED:
                    times.append(self._random.uniform(*_DELAYS_S))
                    self.twice[node] += 1
                for delay in times:
                    number += 1
                    heapq.heappush(due, (time.monotonic() + delay, number, frame))
                continue
            frame = heapq.heappop(due)[2]
            try:
                self._writers[self._to[frame[:6]]].send(frame)
            except OSError:
                pass  # the port has gone with its host


def _rules(every: int) -> str:
    chains = []
    for node in TWO_HOSTS.names:
        matches = [f"ip daddr {TWO_HOSTS.service}"]  # from the client, and from a server's clone tap
        if node in TWO_HOSTS.hosts:
            matches.append(f"ip saddr {TWO_HOSTS.service}")
        chains.append(
            f'add chain {_TABLE} from_{node} {{ type filter hook ingress device "{port(node)}" priority 0 ; }}'
        )
        chains += [
            f"add rule {_TABLE} from_{node} {match} tcp flags & (syn | rst) == 0x0 numgen inc mod {every} 3 fwd to odd0"
            for match in matches
        ]
    return "\n".join([f"add table {_TABLE}", *chains, ""])


@contextmanager
def disorder(name: str, every: int = 8, seed: int = 1) -> Iterator[Disorder]:
    """While inside, one in `every` frames of each direction, and of the clone tap, comes late or twice."""
    switch = namespace(name, SWITCH)
    for node in TWO_HOSTS.names:
        offloads = [word for feature in ("tx", "tso", "gso", "gro") for word in (feature, "off")]
        netns.tool(["ethtool", "-K", "eth0", *offloads], None, namespace(name, node))
    netns.tool(["ip", "link", "add", "odd0", "up", "type", "veth", "peer", "name", "odd1"], None, switch)
    try:
        netns.tool(["ip", "link", "set", "odd1", "up"], None, switch)
        thread = Disorder(name, seed)
        try:
            netns.tool(["nft", "-f", "-"], _rules(every), switch)
            yield thread
            netns.tool(["nft", "delete", "table", *_TABLE.split()], None, switch)
            time.sleep(2 * _DELAYS_S[1])
        finally:
            thread.stop()
    finally:
        netns.tool(["nft", "delete", "table", *_TABLE.split()], None, switch, check=False)
        netns.tool(["ip", "link", "delete", "odd0"], None, switch)
