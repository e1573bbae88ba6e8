"""The lab's faults on a real switch: cuts, power loss, the fence agent, loss on the tap. No daemons."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_failover.lab import cables, netns, nodes
from nfq_failover.lab.fence_agent import write_script
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Cut, Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.lab_world import SERVER, connect, eventually, lab, passes

pytestmark = pytest.mark.netns

SYNC = 7766


@pytest.fixture
def plain() -> Iterator[Lab]:
    with lab(Options(plain=True)) as made:
        for source, target in (("a", "b"), ("client", "a"), ("client", "b")):
            assert passes(made, source, target)
        yield made


# ------------------------------------------------------------------------------------------------------------ cuts


@pytest.mark.parametrize(
    ("cut", "stopped"),
    [
        (Cut("a"), {"a>b", "b>a", "a>client", "client>a", "a>b sync", "b>a sync"}),
        (Cut("a", None, "in"), {"b>a", "client>a", "b>a sync"}),
        (Cut("a", None, "out"), {"a>b", "a>client", "a>b sync"}),
        (Cut("a", "sync"), {"a>b sync", "b>a sync"}),
        (Cut("b", "sync", "in"), {"a>b sync"}),
        (Cut("b", "sync", "out"), {"b>a sync"}),
        (Cut("a", "client"), {"a>client", "client>a"}),
        (Cut("a", "client", "in"), {"client>a"}),
        (Cut("a", "client", "out"), {"a>client"}),
        (Cut("client"), {"a>client", "client>a", "b>client", "client>b"}),
    ],
    ids=lambda value: str(value) if isinstance(value, Cut) else "",
)
def test_a_cut_stops_what_it_says_and_nothing_else(cut: Cut, stopped: set[str], plain: Lab) -> None:
    plain.cut(cut)
    ways = [("a", "b"), ("b", "a"), ("a", "client"), ("client", "a"), ("b", "client"), ("client", "b")]
    found = {f"{source}>{target}" for source, target in ways if not passes(plain, source, target)}
    found |= {f"{source}>{target} sync" for source, target in ways[:2] if not passes(plain, source, target, SYNC)}
    assert found == stopped
    plain.heal(cut.node)
    assert all(passes(plain, source, target) for source, target in ways)
    assert all(passes(plain, source, target, SYNC) for source, target in ways[:2])


def test_cuts_add_up_and_outlive_a_power_loss(plain: Lab) -> None:
    plain.cut(Cut("a", "sync"))
    plain.cut(Cut("b", "client", "in"))
    plain.crash("b")
    plain.restore("b")
    assert not passes(plain, "a", "b", SYNC)
    assert not passes(plain, "client", "b")
    assert passes(plain, "a", "b")
    plain.heal("b")
    assert passes(plain, "client", "b")
    assert not passes(plain, "a", "b", SYNC)
    plain.heal("a")
    assert passes(plain, "a", "b", SYNC)


def frame(source: str, target_hardware: str, payload: bytes = b"") -> bytes:
    """A client's packet for the service, as it looks on a wire of the tap."""
    hardware = bytes.fromhex(target_hardware.replace(":", "")) + bytes.fromhex(
        TWO_HOSTS.hardware(source).replace(":", "")
    )
    addresses = socket.inet_aton(TWO_HOSTS.address("client")) + socket.inet_aton(TWO_HOSTS.service)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 253, 0) + addresses  # 253: RFC 3692
    return hardware + b"\x08\x00" + header + payload


@contextlib.contextmanager
def wire_end(made: Lab, node: str, protocol: int = 0x0800) -> Iterator[socket.socket]:
    """A packet socket at the node's eth0."""
    with netns.entered(namespace(made.name, node)):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    with end:
        end.bind(("eth0", protocol))
        end.settimeout(0.3)
        yield end


def copies_seen(made: Lab, source: str, target_hardware: str, count: int) -> int:
    seen = 0
    with wire_end(made, source) as sender, wire_end(made, "b") as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        for _ in range(count):
            sender.send(frame(source, target_hardware))
        with contextlib.suppress(TimeoutError):
            while True:
                if receiver.recv(100)[30:34] == socket.inet_aton(TWO_HOSTS.service):
                    seen += 1
    return seen


def test_cutting_the_client_from_a_backup_cuts_the_taps_copies(plain: Lab) -> None:
    assert copies_seen(plain, "a", TWO_HOSTS.hardware("b"), 3) == 3
    plain.cut(Cut("b", "client", "in"))
    assert copies_seen(plain, "a", TWO_HOSTS.hardware("b"), 3) == 0
    assert copies_seen(plain, "client", TWO_HOSTS.multicast_hardware, 3) == 0


@pytest.mark.parametrize("tap", ["clone", "multicast"])
def test_tap_loss_takes_the_taps_frames_only(tap: str, plain: Lab) -> None:
    copy, other = ("a", "client") if tap == "clone" else ("client", "a")
    hardware = TWO_HOSTS.hardware("b") if tap == "clone" else TWO_HOSTS.multicast_hardware
    with plain.store.changing() as state:
        state.options = replace(state.options, plain=False, tap=tap, tap_loss=10)
        state.tap_loss_at = "b" if tap == "multicast" else None
        cables.apply(plain.name, state)
    arrived = sum(copies_seen(plain, copy, hardware, 500) for _ in range(4))
    assert abs(2000 - arrived - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert plain.losses() == {**plain.losses(), "tap": 2000, "tap_lost": 2000 - arrived}
    assert copies_seen(plain, other, TWO_HOSTS.hardware("b"), 300) == 300
    if tap == "multicast":
        plain.crash("a")  # with one server there is no tap
        assert copies_seen(plain, copy, hardware, 300) == 300


# ------------------------------------------------------------------------------------------------------ power loss


def test_a_crash_is_silent_at_once(plain: Lab, tmp_path: Path) -> None:
    """A chatty host: thousands of datagrams per second, and an open connection. Then nothing: no FIN, no RST."""
    plain.serve(SERVER)
    connection = connect(plain)
    source = f"""if True:
        import socket, time
        s = socket.socket(type=socket.SOCK_DGRAM)
        while not time.sleep(0.0001): s.sendto(b"x", ("{TWO_HOSTS.address("client")}", 9))"""
    flood = plain.popen("a", [sys.executable, "-c", source])
    path = tmp_path / "client.pcap"
    argv = ["tcpdump", "-i", "eth0", "-n", "-U", "-w", str(path), "ether", "src", TWO_HOSTS.hardware("a")]
    capture = plain.popen("client", argv, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: path.exists() and path.stat().st_size > 10_000)
        event = plain.crash("a")
        time.sleep(0.5)
    finally:
        capture.terminate()
        capture.wait(timeout=10)
    assert flood.wait(timeout=5) == -signal.SIGKILL
    times = capture_times(path)
    # What the switch had taken before is still delivered: a scheduler's slice on a busy machine.
    assert event["time_s"] - 0.5 < times[-1] < event["time_s"] + 0.02
    connection.settimeout(0.5)
    with connection, pytest.raises(TimeoutError):
        connection.recv(1)


def capture_times(path: Path) -> list[float]:
    said = subprocess.run(["tcpdump", "-r", path, "-n", "-tt"], capture_output=True, text=True, check=True).stdout
    return [float(line.split()[0]) for line in said.splitlines()]


def test_a_crash_takes_all_processes_and_a_restore_brings_the_same_host(plain: Lab) -> None:
    script = "trap '' TERM INT HUP; (setsid sleep 1000 &) ; sleep 1000; :"
    plain.popen("a", ["sh", "-c", script])
    assert eventually(lambda: len(netns.pids(namespace(plain.name, "a"))) >= 3)
    inside = netns.pids(namespace(plain.name, "a"))
    event = plain.crash("a")
    assert event["monotonic_s"] < time.monotonic()
    for pid in inside:
        with contextlib.suppress(FileNotFoundError):  # dead and not yet collected is dead
            assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    assert not netns.exists(namespace(plain.name, "a"))
    plain.restore("a")
    assert passes(plain, "b", "a")
    with wire_end(plain, "a") as end:
        assert end.getsockname()[4] == bytes.fromhex(TWO_HOSTS.hardware("a").replace(":", ""))


def test_crash_and_restore_many_times(plain: Lab) -> None:
    for _ in range(5):
        plain.crash("b")
        plain.restore("b")
        assert passes(plain, "a", "b")
    assert [event["event"] for event in plain.store.read().events] == ["crash", "restore"] * 5


# ------------------------------------------------------------------------------------------------------- the fence


@pytest.fixture
def fenced(plain: Lab) -> Lab:
    nodes.start_agent(plain.store, TWO_HOSTS)
    for node in ("a", "b"):
        write_script(plain.store, TWO_HOSTS, node)
    return plain


def fence(made: Lab, node: str, target: str, timeout_s: float = 5.0) -> subprocess.CompletedProcess[str]:
    return made.run(node, [str(made.store.directory / node / "fence"), target], timeout_s)


def test_the_fence_answers_when_the_other_server_is_off(fenced: Lab) -> None:
    victim = fenced.popen("a", ["sleep", "1000"])
    done = fence(fenced, "b", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert victim.wait(timeout=0.1) == -signal.SIGKILL
    row = fenced.status()["nodes"]["a"]
    assert (row["alive"], row["state"]) == (False, "off")
    assert eventually(lambda: not netns.exists(namespace(fenced.name, "a")))
    assert eventually(lambda: "turned off by b" in fenced.status()["nodes"]["a"]["reason"])
    assert fence(fenced, "b", "a").returncode == 0  # off is off
    fenced.restore("a")
    assert passes(fenced, "a", "b")


@pytest.mark.parametrize(
    ("cut", "works"),
    [
        (Cut("b"), False),
        (Cut("b", None, "in"), False),
        (Cut("b", None, "out"), False),
        (Cut("b", "sync"), True),
        (Cut("b", "client"), True),
        (Cut("a"), True),
    ],
    ids=lambda value: str(value) if isinstance(value, Cut) else "",
)
def test_a_server_that_is_cut_cannot_fence(cut: Cut, works: bool, fenced: Lab) -> None:
    fenced.cut(cut)
    if works:
        assert fence(fenced, "b", "a").returncode == 0
        return
    with pytest.raises(subprocess.TimeoutExpired):
        fence(fenced, "b", "a", timeout_s=0.7)
    assert fenced.status()["nodes"]["a"]["alive"]


def test_the_agent_refuses_what_is_not_its_business(fenced: Lab) -> None:
    secret = (fenced.store.directory / "secret").read_text().strip()
    ask = "exec 3<>/dev/tcp/10.77.0.254/7767; printf '%s\\n' \"$1\" >&3; cat <&3"
    for node, request in (
        ("b", "wrong a off"),
        ("b", f"{secret} b off"),
        ("b", f"{secret} client off"),
        ("b", f"{secret} a on"),
        ("b", f"{secret} a"),
        ("b", ""),
        ("client", f"{secret} a off"),
    ):
        said = fenced.run(node, ["bash", "-c", ask, "ask", request]).stdout
        assert said.startswith("error: "), request
    assert all(row["alive"] for row in fenced.status()["nodes"].values())


def test_the_fence_answers_at_once_while_others_say_nothing(fenced: Lab) -> None:
    """Ten connections that never ask must not delay the one that does."""
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            with netns.entered(namespace(fenced.name, "b")):
                stack.enter_context(socket.create_connection(("10.77.0.254", 7767), timeout=5))
        began = time.monotonic()
        assert fence(fenced, "b", "a").returncode == 0
        assert time.monotonic() - began < 1
