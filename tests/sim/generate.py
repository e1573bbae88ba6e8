"""From a seed to a scenario. A change here changes what the seeds mean; scenarios worth keeping get a name."""

from __future__ import annotations

from random import Random

from .generate_more import MORE_KINDS, extend
from .network import Quality
from .scenario import DOWNLOAD, ECHO, UPLOAD, Connection, HostPlan, Incident, Limits, Scenario

FENCE_DEADLINE_MS = 400
KINDS = (
    "none",
    *("crash-primary",) * 2,
    "crash-backup",
    "rejoin",
    "cut",
    "pause",
    "hang",
    "split",
    *("effect-primary",) * 2,  # the primary dies between two effects
    "effect-backup",
    *("effect-takeover",) * 2,  # the survivor dies as well, while it takes over
    "kill-primary",
    "kill-backup",
    "kill-survivor",  # the daemon of a host that has taken over, again and again
    "kill-any",
    "partition",
    "flapping",
    "unplug",
    "clock",
    *MORE_KINDS,
)
# What a host may die at: "any" often hits the packets, the others what happens once in a takeover.
EFFECTS = ("any", "Inject", "SendDatagram", "Verdict", "PublishHeartbeat", "QueryFlows")
EFFECTS_OF_TAKEOVER = ("any", "CheckLink", "Fence", "StoreEpoch", "OwnAddress", "Inject", "ApplyRules", "Verdict")
PATHS = ("sync>a", "sync>b", "sync", "client>service", "service>client", "client", "tap>a", "tap>b", "tap")


def from_seed(seed: int, kind: str = "") -> Scenario:
    """The scenario of a seed, of the kind that is asked for, or of the seed's own."""
    random = Random(seed)
    kind = kind or KINDS[seed % len(KINDS)]
    lossy = random.choice(("nothing", "nothing", "client", "tap", "sync", "all"))
    length = random.choice((0.2, 1.0, 2.0))
    heartbeat_ms = random.choice((10, 50))
    detection_s = 3 * heartbeat_ms / 1000
    fences = {"cut": ("works", "fails", "none"), "flapping": ("works", "works", "fails", "none")}
    scenario = Scenario(
        seed=seed,
        kind=kind,
        tap=random.choice(("clone", "multicast")),
        fence="none" if kind == "split" else random.choice(fences.get(kind, ("works",))),
        split_brain=kind == "split",
        heartbeat_ms=heartbeat_ms,
        sack=random.random() < 0.8,
        timestamps=random.random() < 0.8,
        super_segment=random.choice((1, 1, 4)),
        drain=heartbeat_ms == 50 and random.random() < 0.05,
        quality={
            "client": _quality(random, lossy in ("client", "all"), 0.02, 0.1),
            "tap": _quality(random, lossy in ("tap", "all"), 0.005, 0.2),
            # Detection has to be longer than a round trip, and survive the loss most of the time.
            "sync": _quality(random, lossy in ("sync", "all"), 0.001 if heartbeat_ms < 50 else 0.01, 0.05),
        },
        hosts={name: _host(random, name, most_rate(detection_s) if kind == "clock" else 0.0) for name in "ab"},
        client=_client(random),
        limits=_limits(random),
        connections=tuple(_connection(random, number, length) for number in range(random.choice((1, 3, 6)))),
        incidents=_incidents(random, kind, length, detection_s),
    )
    return extend(scenario, length, detection_s) if kind in MORE_KINDS else scenario


def most_rate(detection_s: float) -> float:
    """How far one clock may be off, so that two that are off in opposite directions are still tolerated.

    A backup may continue connections for `release - detection / 2` of its own clock, a primary waits for `release` of
    its own (docs/design.md, "The backup's time to act").
    """
    release_s = release(detection_s)
    margin = (detection_s / 2) / (release_s - detection_s / 2)
    return min(0.02, 0.45 * margin)


def release(detection_s: float) -> float:
    """After how much silence a primary with a fence lets everything go (`Settings.release_after_ms`)."""
    return 2 * detection_s + FENCE_DEADLINE_MS / 1000 + 1.0


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


def _host(random: Random, name: str, rate: float) -> HostPlan:
    return HostPlan(
        boot=random.uniform(0, 0.3),
        listen_after=0.0 if name == "a" else random.choice((0.0, 0.0, 0.5)),  # a serves first
        app_delay=random.choice((0.0, 0.001, 0.02, 0.05)),
        read_size=random.choice((0, 0, 0, 5000)),
        write_size=random.choice((0, 0, 1000, 7000)),
        kernel_drop=random.choice((0.0, 0.0, 0.0, 0.03)),
        rate=1.0 + random.choice((-1, -1, 0, 1, 1)) * random.choice((0.0003, rate, rate)) if rate else 1.0,
        uptime=random.uniform(1, 5000),
        ts_base=random.choice((random.getrandbits(32), -random.randrange(5_000_000) & 0xFFFFFFFF)),
        wscale=random.choice((2, 5, 7, 9)),
        buffer=random.choice((4_000, 12_000, 65_000, 200_000)),
        wrap=random.choice((0, 0, 40_000)),
    )


def _client(random: Random) -> HostPlan:
    return HostPlan(
        ts_base=random.getrandbits(32),
        wscale=random.choice((2, 5, 7, 9)),
        buffer=random.choice((12_000, 65_000, 200_000)),
        wrap=random.choice((0, 0, 40_000)),
    )


def _limits(random: Random) -> Limits:
    if random.random() < 0.8:
        return Limits()
    return Limits(
        max_connections=random.choice((0, 2)),
        max_log_bytes=random.choice((0, 10_000, 40_000)),
        max_unacked_bytes=random.choice((0, 10_000, 40_000)),
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


def _incidents(random: Random, kind: str, length: float, detection_s: float) -> tuple[Incident, ...]:
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
        target = random.choice(("sync>a", "sync>b", "sync"))
        return (Incident(at, "cut", target, random.choice((0.1, 0.3, 1.0, 3.0))),)
    if kind == "pause":
        pause = Incident(at, "pause", random.choice(("primary", "backup")), random.choice((0.05, 0.3, 2.0)))
        return (pause, *_maybe_crash(random, at))
    if kind == "hang":
        hang = Incident(at, "hang", random.choice(("primary", "backup")), random.choice((0.05, 0.4, 2.0)))
        return (hang, *_maybe_crash(random, at))
    if kind.startswith(("effect", "kill")):
        return _deaths(random, kind, at)
    if kind == "partition":
        cuts = (Incident(at, "cut", target, random.choice((0.1, 0.5, 2.0))) for target in random.sample(PATHS, 2))
        return (*cuts, *_maybe_crash(random, at))
    if kind == "flapping":
        target = random.choice(PATHS)
        period = random.choice((0.5, 1.0, 2.0)) * detection_s
        cuts = (Incident(at + turn * period, "cut", target, period * random.uniform(0.2, 0.9)) for turn in range(8))
        return (*cuts, *_maybe_crash(random, at))
    if kind == "unplug":
        unplug = Incident(at, "unplug", random.choice(("primary", "backup")), random.choice((0.1, 0.5, 2.0)))
        return (unplug, *_maybe_crash(random, at))
    if kind == "clock":
        # Forward by less than half the detection time, or by so much that it is seen: what lies between is not
        # tolerated on a primary (docs/design.md). Not beyond what a takeover adds to the timestamps.
        jump = random.choice((0.4 * detection_s, 2.1 * detection_s + 0.05, 0.7))
        jumps = Incident(at, "jump", random.choice(("primary", "backup")), min(jump, 0.7))
        then = random.choice(("crash", "cut", "late", "nothing"))
        if then == "late":  # the backup takes over when the primary is about to let everything go
            lasts = release(detection_s) * random.uniform(0.7, 1.05)
            return (jumps, Incident(at, "cut", "sync", 4.0), Incident(at, "pause", "backup", lasts))
        if then == "cut":
            cut = Incident(at + random.uniform(-0.1, 0.1), "cut", random.choice(PATHS[:3]), random.choice((0.3, 3.0)))
            return (jumps, cut)
        return (jumps, *((Incident(at + random.uniform(0, 0.5), "crash", "primary"),) if then == "crash" else ()))
    return ()


def _maybe_crash(random: Random, at: float) -> tuple[Incident, ...]:
    return random.choice(((), (Incident(at + random.uniform(0, 2), "crash", "primary"),)))


def _deaths(random: Random, kind: str, at: float) -> tuple[Incident, ...]:
    """Hosts or daemons that die at the boundary of an effect."""
    what, target = kind.split("-")
    if target in ("survivor", "any"):
        crash = (Incident(at, "crash", "primary"),) if target == "survivor" else ()
        kills: list[Incident] = []
        for _ in range(random.choice((1, 2, 4))):
            at += random.uniform(0.4, 1.2)
            kills.append(Incident(at, "kill", "primary" if crash else random.choice("ab")))
            kills.append(Incident(at + random.choice((0.0, 0.02, 0.2, 1.0)), "restart", "all"))
        return (*crash, *kills)
    if what == "kill":
        effect = random.choice(("", "", *EFFECTS))
        back = at + random.choice((0.02, 0.1, 0.5, 2.0))
        return (
            Incident(at, "kill", target, effect=effect, count=random.randrange(1, 30), before=random.random() < 0.5),
            Incident(back, "restart", "all"),
        )
    if target != "takeover":
        back = at + random.uniform(0.1, 3)
        death = Incident(at, "crash", target, 0.0, random.choice(EFFECTS), random.randrange(1, 60))
        return (death, Incident(back, "boot", "all")) if random.random() < 0.5 else (death,)
    effect = random.choice(EFFECTS_OF_TAKEOVER)
    count = random.randrange(1, 40) if effect in ("any", "Inject", "Verdict") else 1
    back = at + random.uniform(0.5, 3)
    return (
        Incident(at, "crash", "backup", 0.0, effect, count, random.random() < 0.5),  # it counts before the primary dies
        Incident(at, "crash", "primary"),
        Incident(back, "boot", "all"),
    )
