"""Who is answered on which interface: set for all interfaces, watched, and put back by the last one that needs it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.shell.host.arp_settings import ArpSettings, life


class Kernel:
    """A directory like /proc/sys/net/ipv4/conf."""

    def __init__(self, root: Path) -> None:
        self.conf = root / "conf"
        for name in ("all", "default", "lo", "eth0", "eth1"):
            self.interface(name)

    def interface(self, name: str, ignore: int = 0) -> None:
        (self.conf / name).mkdir(parents=True)
        (self.conf / name / "arp_ignore").write_text(f"{ignore}\n")
        (self.conf / name / "arp_announce").write_text("0\n")

    def set(self, name: str, value: int) -> None:
        (self.conf / name).write_text(f"{value}\n")

    def get(self, name: str) -> int:
        return int((self.conf / name).read_text())

    def answers(self, interface: str) -> bool:
        """Whether an address of lo is answered for: arp_ignore() in net/ipv4/arp.c."""
        return max(self.get("all/arp_ignore"), self.get(f"{interface}/arp_ignore")) not in (1, 2, 8)

    def values(self) -> dict[str, int]:
        return {str(path.relative_to(self.conf)): int(path.read_text()) for path in self.conf.glob("*/*")}


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


Make = Callable[..., ArpSettings]


@pytest.fixture
def make(kernel: Kernel, tmp_path: Path) -> Iterator[Make]:
    made = []

    def one(user: str, interface: str = "eth0") -> ArpSettings:
        record = os.open(tmp_path / "arp.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        made.append(ArpSettings(record, user, interface, kernel.conf))
        return made[-1]

    yield one
    for each in made:
        each.close()


def test_no_interface_answers_for_lo_not_even_one_that_appears_later(kernel: Kernel, make: Make) -> None:
    before = kernel.values()
    settings = make("one")
    assert kernel.answers("eth1")
    settings.acquire()
    kernel.interface("br0")
    assert not any(kernel.answers(name) for name in ("eth0", "eth1", "br0"))
    assert kernel.get("all/arp_announce") == 2
    settings.release()
    assert kernel.values() == before | {"br0/arp_ignore": 0, "br0/arp_announce": 0}


@pytest.mark.parametrize("value", [3, 4, 7])
def test_an_interface_with_a_setting_of_its_own_that_answers(kernel: Kernel, make: Make, value: int) -> None:
    kernel.set("eth1/arp_ignore", value)
    settings = make("one")
    settings.acquire()
    assert not kernel.answers("eth1")
    kernel.interface("wlan0", ignore=value)
    assert settings.look() == [] and kernel.answers("wlan0")
    assert settings.look(everywhere=True) == [f"net.ipv4.conf.wlan0.arp_ignore was {value}"]
    assert not kernel.answers("wlan0")
    settings.release()
    assert (kernel.get("eth1/arp_ignore"), kernel.get("wlan0/arp_ignore")) == (value, value)


def test_what_others_change_is_set_again_and_said(kernel: Kernel, make: Make) -> None:
    settings = make("one")
    settings.acquire()
    assert settings.look(everywhere=True) == []
    kernel.set("all/arp_ignore", 0)  # sysctl --system
    kernel.set("all/arp_announce", 0)
    assert settings.look() == ["net.ipv4.conf.all.arp_ignore was 0", "net.ipv4.conf.all.arp_announce was 0"]
    assert settings.look() == [] and not kernel.answers("eth0")
    kernel.set("eth0/arp_ignore", 8)  # the service's interface would never answer, though this host may serve
    assert settings.look() == ["net.ipv4.conf.eth0.arp_ignore was 8"]
    settings.release()
    assert kernel.get("all/arp_ignore") == 0 and kernel.get("all/arp_announce") == 0


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_of_two_services_the_last_one_puts_back_what_the_first_one_found(
    kernel: Kernel, make: Make, first_to_leave: int
) -> None:
    before = kernel.values()
    services = [make("one"), make("two", "eth1")]
    for each in services:
        each.acquire()
    services.pop(first_to_leave).release()
    assert not kernel.answers("eth0") and not kernel.answers("eth1")
    services[0].release()
    assert kernel.values() == before


def test_one_that_was_killed_still_needs_them_until_its_next_life_has_ended(kernel: Kernel, make: Make) -> None:
    before = kernel.values()
    make("one").acquire()  # and is never heard of again
    other = make("two")
    other.acquire()
    other.release()
    assert not kernel.answers("eth0")
    again = make("one")
    again.acquire()
    again.release()
    assert kernel.values() == before


def test_one_that_stays_leaves_them_as_they_are(kernel: Kernel, make: Make) -> None:
    settings = make("one")
    settings.acquire()
    settings.close()
    settings.release()
    assert not kernel.answers("eth0")


def test_a_decision_of_somebody_else_is_not_undone(kernel: Kernel, make: Make) -> None:
    settings = make("one")
    settings.acquire()
    kernel.set("all/arp_ignore", 2)
    assert settings.look() == []  # it does as well
    settings.release()
    assert kernel.get("all/arp_ignore") == 2


@pytest.mark.parametrize("value", [3, 8])
def test_a_value_for_all_that_no_interface_can_do_less_than_is_refused(kernel: Kernel, make: Make, value: int) -> None:
    kernel.set("all/arp_ignore", value)
    with pytest.raises(CommandError, match=rf"all\.arp_ignore is {value}.*set it to 0"):
        make("one").acquire()
    assert kernel.get("all/arp_ignore") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not JSON\n",
        '{"life": ["another", "boot"], "found": {"all/arp_ignore": 7}, "users": ["other"]}\n',
        "[1, 2]\n",
        '{"life": null}',
    ],
)
def test_a_record_that_is_not_of_this_life_counts_for_nothing(
    kernel: Kernel, make: Make, tmp_path: Path, text: str
) -> None:
    (tmp_path / "arp.json").write_text(text)
    before = kernel.values()
    settings = make("one")
    settings.acquire()
    settings.release()
    assert kernel.values() == before


def test_the_record_names_our_settings_and_nothing_else(kernel: Kernel, make: Make, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("1\n")
    names = ["../../victim", "../victim", "all/../../victim", "eth0/arp_filter", "../conf/all/arp_ignore", ""]
    record = {"life": life(), "found": dict.fromkeys([*names, "all/arp_announce"], 0), "users": []}
    (tmp_path / "arp.json").write_text(json.dumps(record) + "\n")
    settings = make("one")
    assert settings._load().found == {"all/arp_announce": 0}
    settings.acquire()
    settings.release()
    assert victim.read_text() == "1\n"


def test_a_shorter_record_leaves_nothing_of_the_longer_one(kernel: Kernel, make: Make, tmp_path: Path) -> None:
    one, two = make("a-service-with-a-long-name"), make("b")
    one.acquire()
    two.acquire()
    one.release()
    (line,) = (tmp_path / "arp.json").read_text().splitlines()
    assert json.loads(line)["users"] == ["b"]
    two.release()
