"""The window that the gate lets the client see."""

from __future__ import annotations

from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.wire.records import (
    Progress,
)
from tests.support.gate import HELD, TS, Gated, ack
from tests.support.transcript import (
    After,
    Copy,
    client,
    client_seq,
    confirmed,
    server,
)


def test_window_stays_within_what_the_backup_takes() -> None:
    with Gated() as t:
        t >> confirmed(1000, 41000)
        t >> ack(1000, edge=50000) << "pass [.] 0 ack 1000 wnd 10000 ts 2000010/1010"
        t >> server(0, 100, ack=1000, wnd=12250, ts=TS) << "pass [.] 0:100 ack 1000 wnd 10000 ts 2000010/1010"


def test_window_that_was_clamped_is_opened_later() -> None:
    with Gated() as t:
        t >> confirmed(1000, 41000)
        t >> ack(1000, edge=50000) << "pass [.] 0 ack 1000 wnd 10000 ts 2000010/1010"
        t >> confirmed(1000, 50000) << "client [.] 0 ack 1000 wnd 12250 ts 2000010/1010"
        t >> confirmed(1000, 60000)  # the primary's own TCP takes no more


def test_window_opens_in_steps_of_a_segment() -> None:
    with Gated() as t:
        t >> confirmed(1000, 41000)
        t >> ack(1000, edge=50000) << "pass [.] 0 ack 1000 wnd 10000 ts 2000010/1010"
        t >> confirmed(1000, 41400)
        t >> confirmed(1000, 42800) << "client [.] 0 ack 1000 wnd 10450 ts 2000010/1010"


def test_closed_window_is_asked_about_until_it_opens() -> None:
    with Gated() as t:
        t >> confirmed(40000, 40000)
        t >> ack(40000, edge=90000) << "pass [.] 0 ack 40000 wnd 0 ts 2000010/1010"
        t >> After(0.004) << Progress(1, client_seq(40000), True)
        t >> After(0.01) << Progress(1, client_seq(40000), True)
        t >> confirmed(40000, 80000) << "client [.] 0 ack 40000 wnd 10000 ts 2000010/1010"
        t >> After(0.1)


def test_client_that_has_ended_gets_no_window_update() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000, flags="F."))
        t >> confirmed(1001, 41000)
        t >> ack(1001, edge=50000) << "pass [.] 0 ack 1001 wnd 9999 ts 2000010/1010"
        t >> confirmed(1001, 50000)
        t >> After(0.1)


def test_right_edge_never_moves_left() -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000, edge=39000) << "pass [.] 0 ack 1000 wnd 9750 ts 2000010/1010"


def test_rounding_to_the_scale_creeps_no_further_than_the_backup_has_room_for() -> None:
    before = 40000
    with Gated() as t:
        for at in range(1, 3000):
            t >> confirmed(at, 40000)
            t >> server(0, ack=at, wnd=20000)
            text = str(t.effects.popleft())
            edge = at + 4 * int(text.split()[6])
            assert edge >= before or (before - edge < 4 and before > 40000 + ROUNDING_BYTES - 4), text
            assert 40000 <= edge <= 40000 + ROUNDING_BYTES, text
            before = edge


def test_window_that_the_scale_can_not_say_is_not_repeated() -> None:
    with Gated() as t:
        t >> confirmed(1000, 60000)
        t >> ack(1000, edge=40000) << "pass"
        # Our TCP would give two bytes more than a window field in units of four can say with this ACK number.
        t >> server(0, ack=1002, wnd=9750, ts=TS) << HELD
        for _ in range(20):
            t >> After(0.05) << Progress(1, client_seq(1002), True)
