"""The neighbours that send clients' packets here, and how each one is told that the service address has moved.

Some hosts and switches ignore gratuitous ARP. None ignores an ordinary request for its own address, and on receiving
one it learns where the sender is (RFC 826). So after a takeover each client on the segment, or the router before it, is
asked for its address in the name of the service address: at its known hardware address, then by broadcast, until it has
answered. The answer says that it has learnt.

Before a takeover (`prepare`) the kernel finds the neighbours' hardware addresses, so that neither this nor the first
packet to them has to wait. One call of `tick` does a bounded part of what is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

AFTER_S: Final = (0.0, 0.1, 0.5, 1.5, 3.5)  # a request that is not answered is repeated at these times
WARM_S: Final = 60.0  # between two times that the kernel is asked to find the same neighbour
_WARM_EVERY_S: Final = 0.25
_MOST_LOOKUPS: Final = 64  # in one call
_MOST_REQUESTS: Final = 32
_MOST_WARMED: Final = 16
_MOST_WARM: Final = 256  # in all: the kernel's table is small

NextHop = Callable[[bytes], bytes | None]
Neighbours = Callable[[], dict[bytes, bytes]]


@dataclass(slots=True)
class _Hop:
    """`tries`: requests that were sent; `due`: of the next one, None for none."""

    warmed: float
    tries: int = 0
    answered: bool = False
    began: float = 0.0
    due: float | None = None


class NextHops:
    """Packed addresses throughout. `next_hop` gives a client's, None if packets to it leave by another interface;
    `neighbours` gives the hardware addresses that the kernel knows; `resolve` has the kernel find one."""

    def __init__(self, next_hop: NextHop, neighbours: Neighbours, resolve: Callable[[bytes], object]) -> None:
        self._next_hop, self._neighbours, self._resolve = next_hop, neighbours, resolve
        self._by_client: dict[bytes, bytes | None] = {}
        self._unknown: dict[bytes, None] = {}  # clients whose next hop is to be looked up, in order
        self._hops: dict[bytes, _Hop] = {}
        self._telling = False
        self._known: dict[bytes, bytes] = {}
        self._known_at = self._warmed_at = float("-inf")
        self.asked = self.answered = 0

    def prepare(self, clients: Iterable[bytes]) -> None:
        """Know these clients, and no others: a takeover would have to tell them."""
        if self._telling and (self._unknown or any(state.due is not None for state in self._hops.values())):
            return  # first things first
        wanted = set(clients)
        self._by_client = {client: hop for client, hop in self._by_client.items() if client in wanted}
        hops = set(self._by_client.values())
        self._hops = {hop: state for hop, state in self._hops.items() if hop in hops}
        self._unknown = dict.fromkeys(wanted - self._by_client.keys())
        self._telling = False

    @property
    def clients(self) -> list[bytes]:
        """The clients that are known, whether their neighbours have been looked up or not."""
        return [*self._by_client, *self._unknown]

    @property
    def known(self) -> list[bytes]:
        """The neighbours of the clients that have been looked up so far."""
        return list(self._hops)

    def tell(self, clients: Iterable[bytes], now: float) -> None:
        """Begin to tell these clients' neighbours."""
        self._telling = True
        self._known_at = float("-inf")
        self.asked = self.answered = 0
        self._hops = {hop: _Hop(state.warmed) for hop, state in self._hops.items()}
        for client in clients:
            if client in self._by_client:
                self._begin(self._by_client[client], now)
            else:
                self._unknown[client] = None

    def stop(self) -> None:
        """Tell nobody any more, and forget all."""
        self._by_client.clear()
        self._unknown.clear()
        self._hops.clear()
        self._telling = False

    def _begin(self, hop: bytes | None, now: float) -> None:
        if hop is None:
            return
        state = self._hops.setdefault(hop, _Hop(float("-inf")))
        if not state.tries and state.due is None:
            state.began = state.due = now

    def heard(self, hop: bytes) -> None:
        """A neighbour has answered the service address, so it knows where that is."""
        state = self._hops.get(hop)
        if state is not None and state.tries and not state.answered:
            state.answered, state.due = True, None
            self.answered += 1

    def tick(self, now: float) -> list[tuple[bytes, bytes | None]]:
        """Do a part of what is due. Returns requests to send: (neighbour, its hardware address or None: to all)."""
        self._look_up(now)
        return self._requests(now) if self._telling else self._warm(now)

    def _look_up(self, now: float) -> None:
        for _ in range(min(len(self._unknown), _MOST_LOOKUPS)):
            client = next(iter(self._unknown))
            del self._unknown[client]
            hop = self._by_client[client] = self._next_hop(client)
            if self._telling:
                self._begin(hop, now)
            elif hop is not None:
                self._hops.setdefault(hop, _Hop(float("-inf")))

    def _warm(self, now: float) -> list[tuple[bytes, bytes | None]]:
        if now < self._warmed_at + _WARM_EVERY_S or len(self._hops) > _MOST_WARM:
            return []
        self._warmed_at = now
        cold = [hop for hop, state in self._hops.items() if now >= state.warmed + WARM_S]
        for hop in cold[:_MOST_WARMED]:
            self._hops[hop].warmed = now
            self._resolve(hop)
        return []

    def _requests(self, now: float) -> list[tuple[bytes, bytes | None]]:
        due = [hop for hop, state in self._hops.items() if state.due is not None and now >= state.due][:_MOST_REQUESTS]
        if due and now >= self._known_at + 0.1:
            self._known, self._known_at = self._neighbours(), now
        requests = []
        for hop in due:
            state = self._hops[hop]
            # By turns: what the kernel knows may be out of date, and a broadcast may be kept from it.
            requests.append((hop, self._known.get(hop) if state.tries % 2 == 0 else None))
            state.tries += 1
            self.asked += 1
            state.due = state.began + AFTER_S[state.tries] if state.tries < len(AFTER_S) else None
        return requests
