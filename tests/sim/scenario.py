"""What a seed stands for: hosts, wires, connections and incidents."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .network import Quality

ECHO, DOWNLOAD, UPLOAD = 7000, 7001, 7002


@dataclass(frozen=True)
class Connection:
    """One connection of the client. `abort_at`: it resets the connection after so many bytes. `again`: so many seconds
    after its end the client opens another one from the same port. `sip`: it reads so many bytes at a time, slowly.
    `early`: it closes its direction as soon as everything is sent."""

    at: float
    port: int
    server_port: int
    salt: int
    pause: float
    abort_at: int | None
    again: float | None
    sip: int
    early: bool


@dataclass(frozen=True)
class Incident:
    """What happens to whom, when, and for how long."""

    at: float
    what: str
    target: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Everything that a run needs; see `from_seed`."""

    seed: int
    kind: str
    tap: str
    fence: str
    split_brain: bool
    heartbeat_ms: int
    sack: bool
    timestamps: bool
    super_segment: int
    quality: dict[str, Quality]
    boot: dict[str, float]
    listen_after: dict[str, float]
    app_delay: dict[str, float]
    kernel_drop: dict[str, float]  # how often a host's TCP drops data that it was given, for want of memory
    connections: tuple[Connection, ...]
    incidents: tuple[Incident, ...]


CRASHES = ("crash-primary",) * 3
KINDS = ("none", *CRASHES, "crash-backup", "rejoin", "cut", "pause", "hang", "split")


def from_seed(seed: int) -> Scenario:
    """The scenario of a seed."""
    random = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    lossy = random.choice(("nothing", "nothing", "client", "tap", "sync", "all"))
    length = random.choice((0.2, 1.0, 2.0))
    heartbeat_ms = random.choice((10, 50))
    return Scenario(
        seed=seed,
        kind=kind,
        tap=random.choice(("clone", "multicast")),
        fence={"cut": random.choice(("works", "fails", "none")), "split": "none"}.get(kind, "works"),
        split_brain=kind == "split",
        heartbeat_ms=heartbeat_ms,
        sack=random.random() < 0.8,
        timestamps=random.random() < 0.8,
        super_segment=random.choice((1, 1, 4)),
        quality={
            "client": _quality(random, lossy in ("client", "all"), 0.02, 0.1),
            "tap": _quality(random, lossy in ("tap", "all"), 0.005, 0.2),
            # Detection has to be longer than a round trip, and survive the loss most of the time.
            "sync": _quality(random, lossy in ("sync", "all"), 0.001 if heartbeat_ms < 50 else 0.01, 0.05),
        },
        boot={name: random.uniform(0, 0.3) for name in "ab"},
        listen_after={"a": 0.0, "b": random.choice((0.0, 0.0, 0.5))},  # a serves first
        app_delay={name: random.choice((0.0, 0.001, 0.02)) for name in "ab"},
        kernel_drop={name: random.choice((0.0, 0.0, 0.0, 0.03)) for name in "ab"},
        connections=tuple(_connection(random, number, length) for number in range(random.choice((1, 3, 6)))),
        incidents=_incidents(random, kind, length),
    )


def _quality(random: Random, lossy: bool, most_delay: float, most_loss: float) -> Quality:
    delay = random.choice((0.0002, 0.0002, most_delay))
    if not lossy:
        return Quality(delay, delay / 10)
    return Quality(
        delay,
        delay / 10,
        loss=random.choice((most_loss / 10, most_loss)),
        duplicate=random.choice((0.0, 0.02)),
        reorder=random.choice((0.0, 0.02, 0.1)),
    )


def _connection(random: Random, number: int, length: float) -> Connection:
    return Connection(
        at=random.uniform(0, length),
        port=40_000 + number,
        server_port=random.choice((ECHO, DOWNLOAD, UPLOAD)),
        salt=random.getrandbits(32),
        pause=random.choice((0.0, 0.01, 0.1)),
        abort_at=random.choice((None,) * 9 + (1,)),
        again=random.choice((None, None, None, 0.001, 0.5)),
        sip=random.choice((0, 0, 0, 700)),
        early=random.random() < 0.25,
    )


def _incidents(random: Random, kind: str, length: float) -> tuple[Incident, ...]:
    at = random.uniform(0, length)
    if kind == "crash-primary":
        return (Incident(at, "crash", "primary"),)
    if kind == "crash-backup":
        return (Incident(at, "crash", "backup"), Incident(at + random.uniform(0.1, 3), "boot", "all"))
    if kind == "rejoin":
        back = at + random.uniform(0.5, 2)
        return (
            Incident(at, "crash", "primary"),
            Incident(back, "boot", "all"),
            Incident(back + random.uniform(0.5, 2), "crash", random.choice(("primary", "backup"))),
        )
    if kind in ("cut", "split"):
        target = random.choice(("a", "b", "both"))
        return (Incident(at, "cut", target, random.choice((0.1, 0.3, 1.0, 3.0))),)
    if kind == "pause":
        return (Incident(at, "pause", random.choice(("primary", "backup")), random.choice((0.05, 0.3, 2.0))),)
    if kind == "hang":
        return (Incident(at, "hang", random.choice(("primary", "backup")), random.choice((0.05, 0.4, 2.0))),)
    return ()
