"""Every sync record: its bytes on the wire, pinned, and the values that property tests draw.

A new record gets a line in `PINNED` and one in `STRATEGIES`; a test compares both with what is declared.
"""

from __future__ import annotations

from hypothesis import strategies as st

from nfq_failover.core.concerns import MAX_CLIENTS
from nfq_failover.wire.records import (
    DIGEST_BLOCK,
    MAX_DATA,
    MAX_HASHES,
    MAX_MARKS,
    MAX_NEIGHBOURS,
    AckAsked,
    BegunAnew,
    Believed,
    BytesAsked,
    BytesSent,
    Close,
    Closed,
    Concerned,
    Confirm,
    Data,
    Digest,
    DigestSeen,
    End,
    EndAsked,
    EndKind,
    Facts,
    Fed,
    FedSeen,
    Handed,
    HandedOver,
    HandOver,
    HeardBefore,
    Hindered,
    InputMissed,
    Listens,
    Lives,
    Mark,
    Missing,
    OnLink,
    Open,
    Opened,
    PaceAsked,
    PaceTold,
    ProbeAsked,
    Progress,
    Record,
    SentAsked,
    SentUpTo,
    Served,
    Unprotected,
    UnprotectedSeen,
    WallClock,
    Whole,
    WholeSaid,
)
from tests.support.strategies import flows, text, u16, u32, u64

CLIENT, SERVER = bytes((10, 77, 0, 1)), bytes((10, 77, 0, 100))
FLOW = (CLIENT, 40000, SERVER, 80)
OPEN = Open(1, FLOW, 2, 3, 4, 7, 1460, True, 64240, b"\2\4\5\xb4")

PINNED: list[tuple[Record, str]] = [
    (OPEN, "01 0028 00000001 00000002 00000003 01 00000004 07 05b4 01 faf0 04 0a4d0001 0a4d0064 9c40 0050 020405b4"),
    (
        Open(1, FLOW, 2, 3, None, None, 536, False, 1, b""),
        "01 0024 00000001 00000002 00000003 00 00000000 ff 0218 00 0001 04 0a4d0001 0a4d0064 9c40 0050",
    ),
    (Opened(1, True, 9), "02 0009 00000001 01 00000009"),
    (Opened(1, False, 0, "no"), "02 000b 00000001 00 00000000 6e6f"),
    (Progress(1, 2**32 - 1, True), "03 0009 00000001 ffffffff 01"),
    (Confirm(1, 2, 3), "04 000e 00000001 00000002 00000003 00 00"),
    (Confirm(1, 2, 3, ((4, 5),), True), "04 0016 00000001 00000002 00000003 01 01 00000004 00000005"),
    (Missing(1, 2, 3), "05 000c 00000001 00000002 00000003"),
    (Data(1, 2, b"ab", True), "06 000b 00000001 00000002 01 6162"),
    (Close(1, "done"), "07 0008 00000001 646f6e65"),
    (Closed(1), "08 0004 00000001"),
    (Unprotected(1, "\u00e9"), "09 0006 00000001 c3a9"),
    (UnprotectedSeen(1), "0a 0004 00000001"),
    (EndAsked(1, 2, EndKind.FIN), "14 0009 00000001 00000002 01"),
    (End(1, 2, 3, EndKind.RST), "15 000e 00000001 00000002 00000003 02 01"),
    (End(1, 2, 3, EndKind.OPEN, False), "15 000e 00000001 00000002 00000003 00 00"),
    (Digest(1, 2, 0), "1e 000c 00000001 00000002 00000000"),
    (Digest(1, 2, 9000), "1e 000c 00000001 00000002 00002328"),
    (
        Digest(1, 2, 1281, (3, 4)),
        "1e 001c 00000001 00000002 00000501 0000000000000003 0000000000000004",
    ),
    (
        Digest(1, 2, 3, (4,), (Mark(1, 5, 6, 7), Mark(2, 8, 9, 10))),
        "1e 0034 00000001 00000002 00000003 0000000000000004"
        "00000001 00000005 00000006 00000007 00000002 00000008 00000009 0000000a",
    ),
    (DigestSeen(1, 2, 3), "1f 000c 00000001 00000002 00000003"),
    (DigestSeen(1, 2, 3, True), "1f 000c 00000001 00000002 80000003"),
    (BytesAsked(1, 2, 3), "20 000c 00000001 00000002 00000003"),
    (BytesSent(1, 2, b"ab"), "21 000a 00000001 00000002 6162"),
    (SentAsked(1), "28 0004 00000001"),
    (AckAsked(1, 0x01020304), "2a 0008 00000001 01020304"),
    (HeardBefore(1, 2, 3), "48 000c 00000001 00000002 00000003"),
    (SentUpTo(1, 2), "29 0008 00000001 00000002"),
    (
        HandOver(1, (b"\x0a\0\0\1", 40000, b"\x0a\0\0\2", 80), 2, 3, 4),
        "32 001d 00000001 00000002 00000003 00000004 04 0a000001 0a000002 9c40 0050",
    ),
    (HandedOver(1, Handed.REFUSED, "no"), "33 0007 00000001 01 6e6f"),
    (Fed(1, "no"), "0d 0006 00000001 6e6f"),
    (FedSeen(1), "0e 0004 00000001"),
    (PaceAsked(1, 2), "46 0008 00000001 00000002"),
    (PaceTold(1, 2, 3, 4, 5), "47 0014 00000001 00000002 00000003 00000004 00000005"),
    (InputMissed(1, 2), "0f 0008 00000001 00000002"),
    (Whole(1, 2, 3), "10 000c 00000001 00000002 00000003"),
    (WholeSaid(1), "11 0004 00000001"),
    (Lives(1, 2, 1), "13 0009 00000001 00000002 01"),
    (BegunAnew(1), "16 0004 00000001"),
    (Believed(1), "17 0004 00000001"),
    (Served(1, FLOW, 2, 3, 7), "12 001a 00000001 00000002 00000003 07 04 0a4d0001 0a4d0064 9c40 0050"),
    (Facts(()), "3c 0000"),
    (Facts((("a", "b"), ("\u00e9", ""))), "3c 0008 01 61 01 62 02 c3a9 00"),
    (OnLink(b"\2\0\0\0\0\1"), "3e 0007 06 020000000001"),
    (
        OnLink(b"", ((b"\x0a\0\0\1", b"\2\0\0\0\0\2"),)),
        "3e 000d 00 04 0a000001 06 020000000002",
    ),
    (Hindered("a", (b"\x0a\0\0\1",)), "3f 0007 01 61 04 0a000001"),
    (ProbeAsked(7), "40 0004 00000007"),
    (WallClock(1000), "41 0008 00000000000003e8"),
    (Concerned(()), "3d 0000"),
    (Concerned(((3, "a", "b", ""),)), "3d 0006 03 01 61 01 62 00"),
    (Listens(((80, 80), (7000, 7010))), "42 0008 0050 0050 1b58 1b62"),
]

openings = st.builds(
    Open,
    conn=u32,
    flow=flows(),
    irs=u32,
    iss=u32,
    tsval=st.none() | u32,
    wscale=st.none() | st.integers(0, 14),
    mss=u16,
    sack_permitted=st.booleans(),
    syn_wnd=u16,
    syn_options=st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
)
ranges = st.lists(st.tuples(u32, u32), max_size=4).map(tuple)
digests = st.lists(u64, min_size=1, max_size=MAX_HASHES).flatmap(
    lambda hashes: st.builds(
        Digest,
        u32,
        u32,
        st.integers((len(hashes) - 1) * DIGEST_BLOCK + 1, len(hashes) * DIGEST_BLOCK),
        st.just(tuple(hashes)),
    )
)
marked = st.lists(st.builds(Mark, st.integers(1, 80), u32, u32, u32), min_size=1, max_size=MAX_MARKS).flatmap(
    lambda marks: st.builds(
        Digest, u32, u32, st.just(sum(mark.length for mark in marks)), st.tuples(u64), st.just(tuple(marks))
    )
)
words = st.text(st.characters(codec="utf-8"), max_size=40)
facts = st.lists(st.tuples(words, words), max_size=4).map(tuple)
concerns = st.lists(st.tuples(st.integers(0, 255), words, words, words), max_size=2).map(tuple)
packed = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
on_link = st.lists(st.tuples(packed, st.binary(min_size=1, max_size=8)), max_size=MAX_NEIGHBOURS).map(tuple)
STRATEGIES: dict[type[Record], st.SearchStrategy[Record]] = {
    Open: openings,
    Opened: st.builds(Opened, u32, st.booleans(), u32, text),
    Progress: st.builds(Progress, u32, u32, st.booleans()),
    Confirm: st.builds(Confirm, u32, u32, u32, ranges, st.booleans()),
    PaceAsked: st.builds(PaceAsked, u32, u32),
    PaceTold: st.builds(PaceTold, u32, u32, u32, u32, u32),
    Missing: st.builds(Missing, u32, u32, u32),
    Data: st.builds(Data, u32, u32, st.binary(max_size=MAX_DATA), st.booleans()),
    Close: st.builds(Close, u32, text),
    Closed: st.builds(Closed, u32),
    Unprotected: st.builds(Unprotected, u32, text),
    UnprotectedSeen: st.builds(UnprotectedSeen, u32),
    EndAsked: st.builds(EndAsked, u32, u32, st.sampled_from(EndKind)),
    End: st.builds(End, u32, u32, u32, st.sampled_from(EndKind), st.booleans()),
    Digest: st.builds(Digest, u32, u32, u32) | digests,
    DigestSeen: st.builds(DigestSeen, u32, u32, st.integers(0, 2**31 - 1), st.booleans()),
    BytesAsked: st.builds(BytesAsked, u32, u32, u32),
    BytesSent: st.builds(BytesSent, u32, u32, st.binary(max_size=MAX_DATA)),
    SentAsked: st.builds(SentAsked, u32),
    HeardBefore: st.builds(HeardBefore, u32, u32, u32),
    SentUpTo: st.builds(SentUpTo, u32, u32),
    AckAsked: st.builds(AckAsked, u32, u32),
    HandOver: st.builds(HandOver, u32, flows(), u32, u32, u32),
    HandedOver: st.builds(HandedOver, u32, st.sampled_from(Handed), text),
    Fed: st.builds(Fed, u32, text),
    FedSeen: st.builds(FedSeen, u32),
    InputMissed: st.builds(InputMissed, u32, u32),
    Whole: st.builds(Whole, u32, u32, u32),
    WholeSaid: st.builds(WholeSaid, u32),
    Lives: st.builds(Lives, u32, u32, st.integers(0, 255)),
    BegunAnew: st.builds(BegunAnew, u32),
    Believed: st.builds(Believed, u32),
    Served: st.builds(Served, u32, flows(), u32, u32, st.integers(0, 14)),
    Facts: st.builds(Facts, facts),
    Concerned: st.builds(Concerned, concerns),
    Hindered: st.builds(Hindered, words, st.lists(packed, max_size=MAX_CLIENTS).map(tuple)),
    ProbeAsked: st.builds(ProbeAsked, u32),
    WallClock: st.builds(WallClock, st.integers(0, 2**64 - 1)),
    OnLink: st.builds(OnLink, st.binary(max_size=8), on_link),
    Listens: st.builds(Listens, st.lists(st.tuples(u16, u16), max_size=9).map(tuple)),
}
records: st.SearchStrategy[Record] = st.one_of(*STRATEGIES.values())
