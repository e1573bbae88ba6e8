"""The corpus of golden bytes: what hosts of this version of the sync channel say, one line for each thing that is said.

    .venv/bin/python -m tests.unit.wire.golden --write

adds what is new to `golden-VERSION.txt`, and refuses to change a line that is there: a host of an earlier release says
it like that, and reads it like that. What is to look different gets a new number (docs/design/wire.md). With a new
`VERSION` the script begins a new file, and the old one goes.

A line is: kind, name, bytes in hexadecimal. The handshake is that of two hosts whose random numbers are known; the
datagrams that follow are of the session that it has made, so the keys are pinned by them, too.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from nfq_failover.core.pair.inquiry import Inquiry
from nfq_failover.core.pair.session import handshake_key
from nfq_failover.core.shadow.checkpoint import MAGIC
from nfq_failover.wire import witness
from nfq_failover.wire.datagram import NONCE_BYTES, VERSION, Header, Kind, seal
from nfq_failover.wire.heartbeat import HeartbeatBody, HeartbeatTemplate
from nfq_failover.wire.inquiry import Answer
from nfq_failover.wire.records import Concerned, Confirm, Facts, WallClock, encode_record
from tests.support import configured
from tests.support.records import PINNED
from tests.support.session_pair import SessionPair, make, template

PATH = Path(__file__).with_name(f"golden-{VERSION}.txt")
NONCE = bytes(range(witness.NONCE_BYTES))
WITNESS_KEY = witness.witness_key(b"k" * 32)
ASKED = witness.Question(NONCE, "192.0.2.100", "alpha", 7, 9)
ANSWERED = witness.Answer(NONCE, "192.0.2.100", "alpha", 9, True)


def records() -> dict[str, bytes]:
    """Each record as tests/support/records.py pins it."""
    seen: Counter[str] = Counter()
    said = {}
    for record, _ in PINNED:
        name = type(record).__name__
        seen[name] += 1
        said[f"record {name}-{seen[name]}"] = encode_record(record)
    return said


def conversation() -> dict[str, bytes]:
    """All datagrams of a handshake, and those of its session."""
    pair = SessionPair(make("a", "b"), make("b", "a")).agree()
    said = {f"datagram handshake-{number}-to-{to}": data for number, (to, data) in enumerate(pair.sent, 1)}
    a = pair.ends["a"]
    [data] = a.seal([Confirm(1, 2, 3), Confirm(4, 5, 6, ((7, 8),), True)], epoch=9)
    said["datagram records-to-b"] = data
    said["datagram heartbeat-to-b"] = template(a).datagram(counter=10, sent_ms=11, loop_age_ms=12)
    known = template(a)
    body = HeartbeatBody(2, 3, 1, 5, 7, 0, 0, 11, 2300, pact=13, lease_ms=14)
    leased = HeartbeatTemplate(known.session, known.key, known.direction, known.epoch, body)
    said["datagram heartbeat-with-lease-to-b"] = leased.datagram(counter=11, sent_ms=12, loop_age_ms=70000)
    return said


def asking() -> Inquiry:
    """The inquiry of host `a`."""
    return Inquiry(configured.settings(key=b"k" * 32), configured.peer(), lambda size: bytes(range(size)))


def inquiry() -> dict[str, bytes]:
    """A question that belongs to no session, and an answer of one part."""
    asked = asking()
    records = (WallClock(1), Facts((("tap", "clone"),)), Concerned(((1, "code", "what", "cure"),)))
    told = Answer(bytes(range(NONCE_BYTES)), ("b", "a"), 0, 1, records).encode()
    key = handshake_key(b"k" * 32)
    return {
        "inquiry question": asked.question(),
        "inquiry answer": seal(Header(Kind.TOLD, True, 0, 0, 1), told, key),
    }


def everything() -> dict[str, bytes]:
    """All that the corpus has, by kind and name."""
    return {
        **records(),
        **conversation(),
        "witness question": witness.seal(ASKED, WITNESS_KEY),
        "witness answer": witness.seal(ANSWERED, WITNESS_KEY),
        **inquiry(),
        "memory checkpoint": MAGIC,
    }


def written(text: str) -> dict[str, bytes]:
    """What a corpus has, by kind and name."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines())
    return {name: bytes.fromhex(data) for name, data in lines}


def main() -> int:
    """Add what is new; the exit code is 1 if something that is there would change."""
    text = PATH.read_text() if PATH.exists() else ""
    there = written(text)
    now = everything()
    changed = [name for name, data in there.items() if now.get(name) != data]
    if changed:
        print(
            f"golden: {', '.join(changed)}: other bytes than an earlier release's. Give it a new number",
            file=sys.stderr,
        )
        return 1
    if sys.argv[1:] == ["--write"]:
        added = [f"{name} {data.hex()}\n" for name, data in now.items() if name not in there]
        PATH.write_text(text + "".join(added))
    return 0


if __name__ == "__main__":
    sys.exit(main())
