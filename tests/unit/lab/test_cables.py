"""Which frames a fault takes: the rules, word by word. What they do is tested on a real switch in tests/netns."""

from __future__ import annotations

import pytest

from nfq_failover.lab.cables import ruleset
from nfq_failover.lab.state import Cut, LabState, Options


def rules(state: LabState) -> list[str]:
    prefix = "add rule bridge lab "
    return [line.removeprefix(prefix) for line in ruleset(state).splitlines() if line.startswith(prefix)]


def test_no_fault_no_table() -> None:
    assert ruleset(LabState(Options(), 1)) == "add table bridge lab\ndelete table bridge lab\n"


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (Cut("a"), ["arriving iifname p-a drop", "leaving oifname p-a drop"]),
        (Cut("a", None, "in"), ["leaving oifname p-a drop"]),
        (Cut("b", None, "out"), ["arriving iifname p-b drop"]),
        (
            Cut("b", "sync", "out"),
            ["arriving iifname p-b udp sport 7766 drop", "arriving iifname p-b udp dport 7766 drop"],
        ),
        (
            Cut("b", "client"),
            [
                "passing iifname p-b oifname p-client drop",
                "passing iifname p-client oifname p-b drop",
                "leaving oifname p-b ip saddr 10.77.0.1 drop",
            ],
        ),
        (Cut("b", "client", "out"), ["passing iifname p-b oifname p-client drop"]),
    ],
)
def test_cuts(cut: Cut, expected: list[str]) -> None:
    assert rules(LabState(Options(), 1, cuts=[cut])) == expected


def test_cuts_add_up() -> None:
    state = LabState(Options(), 1, cuts=[Cut("a", None, "in"), Cut("b", None, "in")])
    assert rules(state) == ["leaving oifname p-a drop", "leaving oifname p-b drop"]


def test_loss_is_on_both_directions_of_the_clients_link() -> None:
    lost = "numgen random mod 1000000 < 12500 counter name"
    assert rules(LabState(Options(loss=1.25), 1)) == [
        "arriving iifname p-client counter name from_client",
        f"arriving iifname p-client {lost} from_client_lost drop",
        "leaving oifname p-client counter name to_client",
        f"leaving oifname p-client {lost} to_client_lost drop",
    ]


def test_clone_tap_loss_spares_what_the_client_sends_itself() -> None:
    copies = "ether saddr != 02:77:00:00:00:01 ip daddr 10.77.0.100"
    found = rules(LabState(Options(tap_loss=10), 1))
    assert [rule for rule in found if "drop" in rule] == [
        f"leaving oifname p-{node} {copies} numgen random mod 1000000 < 100000 counter name tap_lost drop"
        for node in "ab"
    ]


def test_multicast_tap_loss_is_at_the_backup_only() -> None:
    options = Options(tap="multicast", tap_loss=10)
    found = rules(LabState(options, 1, tap_loss_at="a"))
    assert len(found) == 2
    assert all(rule.startswith("leaving oifname p-a ether saddr 02:77:00:00:00:01 ip daddr") for rule in found)
    alone = LabState(options, 1)
    assert rules(alone) == []
    assert "delete table" not in ruleset(alone)  # the counters go on


def test_a_plain_lab_has_no_tap_to_lose() -> None:
    assert rules(LabState(Options(plain=True, tap_loss=10), 1)) == []
