"""Incidents of hosts, daemons, paths and clocks, drawn for each kind of scenario."""

from __future__ import annotations

from random import Random

from tests.sim.generate.times import release
from tests.sim.scenario import Incident

# What a host may die at: "any" often hits the packets, the others what happens once in a takeover.
EFFECTS = ("any", "Inject", "SendDatagram", "Verdict", "PublishHeartbeat", "QueryFlows")
EFFECTS_OF_TAKEOVER = ("any", "CheckLink", "Fence", "StoreEpoch", "OwnAddress", "Inject", "ApplyRules", "Verdict")
PATHS = ("sync>a", "sync>b", "sync", "client>service", "service>client", "client", "tap>a", "tap>b", "tap")


def draw(random: Random, kind: str, length: float, detection_s: float) -> tuple[Incident, ...]:
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
    if kind == "strand":
        return _strand(random, at, detection_s)
    if kind == "clock":
        # Forward by less than half the detection time, or by enough to be noticed: what lies between is not
        # tolerated on a primary (docs/design/pair.md). Not beyond what a takeover adds to the timestamps.
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


def _strand(random: Random, at: float, detection_s: float) -> tuple[Incident, ...]:
    """A host that can't talk to the other for a while, sometimes more than once, and knows it."""
    what, target = random.choice(("strand", "strand", "mute")), random.choice(("backup", "backup", "primary"))
    stranded = [Incident(at, what, target, random.choice((0.5 * detection_s, 1.5 * detection_s, 0.5, 1.0, 3.0)))]
    if random.random() < 0.3:
        again = at + stranded[0].seconds + random.choice((0.3, 0.9, 1.5)) * detection_s
        stranded.append(Incident(again, what, target, random.choice((0.5, 1.5)) * detection_s))
    then = random.choice(("crash", "kill", "nothing"))
    if then == "crash":
        stranded.append(Incident(at + random.uniform(0, 2), "crash", "primary"))
    elif then == "kill":  # what its next life says is not heard by a host that can't answer
        dies = at + random.uniform(0, 1)
        stranded += [Incident(dies, "kill", "primary"), Incident(dies + random.choice((0.02, 0.3)), "restart", "all")]
    return tuple(stranded)


def boot(random: Random, at: float) -> tuple[Incident, ...]:
    """Sometimes all that is down boots again, some time after `at`."""
    return random.choice(((), (Incident(at + random.uniform(0.3, 3), "boot", "all"),)))


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
