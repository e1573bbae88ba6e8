"""The lab without daemons: wires, rates, losses, commands, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab import netns
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import ROOT, Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.lab_world import PORT, SERVER, command, connect, eventually, fresh_name, lab, passes, workload

pytestmark = pytest.mark.netns


@pytest.fixture
def plain() -> Iterator[Lab]:
    with lab(Options(plain=True)) as made:
        yield made


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def report(process: subprocess.Popen[str]) -> dict[str, object]:
    out, _ = process.communicate(timeout=60)
    values: dict[str, object] = json.loads(out)
    assert values["ok"], values
    return values


# ------------------------------------------------------------------------------------------------------- the wires


def test_addresses_and_hardware_addresses(plain: Lab) -> None:
    found = {}
    for node in ("client", "a", "b", "switch"):
        rows = json.loads(
            netns.tool(["ip", "-j", "address", "show", "scope", "global"], None, namespace(plain.name, node))
        )
        for row in rows:
            if row["addr_info"]:
                found[node] = (row["ifname"], row["address"], [info["local"] for info in row["addr_info"]])
    assert found == {
        "client": ("eth0", "02:77:00:00:00:01", ["10.77.0.1"]),
        "a": ("eth0", "02:77:00:00:00:02", ["10.77.0.2", "10.77.0.100"]),
        "b": ("eth0", "02:77:00:00:00:03", ["10.77.0.3"]),
        "switch": ("br0", "02:77:00:00:00:fe", ["10.77.0.254"]),
    }
    assert all(
        passes(plain, one, other) for one in ("client", "a", "b") for other in ("client", "a", "b") if one != other
    )


def test_the_hosts_have_different_window_scales() -> None:
    with lab(Options(plain=True, odd_host="b")) as made:
        scales = {}
        for node in ("a", "b"):
            with netns.entered(namespace(made.name, node)):
                listener = socket.create_server(("", PORT))
                timestamps = Path("/proc/sys/net/ipv4/tcp_timestamps").read_text().strip()
                cookies = Path("/proc/sys/net/ipv4/tcp_syncookies").read_text().strip()
            with listener, netns.entered(namespace(made.name, "client")):
                address = {"a": "10.77.0.2", "b": "10.77.0.3"}[node]
                with socket.create_connection((address, PORT), timeout=5) as connection:
                    # struct tcp_info, linux/tcp.h: the byte at 6 is snd_wscale and rcv_wscale, four bits each.
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            scales[node] = info[6] & 0xF
            assert (timestamps, cookies) == (("2", "2") if node == "b" else ("1", "1"))
        assert scales == {"a": 7, "b": 9}


@pytest.mark.parametrize(("kind", "rate", "mbit"), [("bulk", "40mbit", 40.0), ("upload", "100mbit", 100.0)])
def test_rate(kind: str, rate: str, mbit: float) -> None:
    with lab(Options(plain=True, rate=rate)) as made:
        made.serve(SERVER)
        reached = report(workload(made, kind, "--size", f"{int(mbit / 8 * 1.5)}M"))["mbit_per_s"]
        assert isinstance(reached, float)
        assert 0.85 * mbit < reached < mbit


def test_loss_is_of_single_frames_after_transmission_and_as_ordered() -> None:
    with lab(Options(plain=True, rate="200mbit", loss=5)) as made:
        made.serve(SERVER)
        report(workload(made, "bulk", "--size", "20M"))
        report(workload(made, "upload", "--size", "20M"))
        count = made.losses()
        for way in ("from_client", "to_client"):
            frames, lost = count[way], count[f"{way}_lost"]
            assert frames > 20_000_000 / 1448  # nothing longer than an MTU
            # Five standard deviations of the binomial distribution.
            assert abs(lost - 0.05 * frames) < 5 * (0.05 * 0.95 * frames) ** 0.5
        for node in ("client", "a"):
            # What TCP sent went out at eth0, so no loss was a local one; and what it sent again was lost.
            tcp = dict(
                line.split()[:2]
                for line in netns.tool(["nstat", "-asz"], None, namespace(made.name, node)).splitlines()[1:]
            )
            stats = json.loads(netns.tool(["ip", "-s", "-j", "link", "show", "eth0"], None, namespace(made.name, node)))
            sent = stats[0]["stats64"]["tx"]  # read later: some of the last ACKs may still be on their way
            assert sent["dropped"] == 0
            # A SYN-ACK that a server repeats is in both of these counters (a SYN that a client repeats is not).
            twice = int(tcp["TcpExtTCPSynRetrans"]) if node == "a" else 0
            assert sent["packets"] >= int(tcp["TcpOutSegs"]) + int(tcp["TcpRetransSegs"]) - twice
            way = "from_client" if node == "client" else "to_client"
            assert int(tcp["TcpRetransSegs"]) < 1.3 * count[f"{way}_lost"] + 50


def test_nothing_is_lost_or_reordered_when_nothing_is_ordered() -> None:
    with lab(Options(plain=True, rate="200mbit")) as made:
        made.serve(SERVER)
        report(workload(made, "bulk", "--size", "20M"))
        tcp = netns.tool(["nstat", "-asz"], None, namespace(made.name, "a"))
        again = next(int(line.split()[1]) for line in tcp.splitlines() if line.startswith("TcpRetransSegs"))
        assert again <= 5
        assert set(made.losses().values()) == {0}


# --------------------------------------------------------------------------------------------------- the commands


def test_exec_passes_on_exit_code_directory_environment_and_output(plain: Lab, tmp_path: Path) -> None:
    script = "pwd; echo $COLOUR; cat /proc/sys/net/ipv4/tcp_rmem; exit 7"
    argv = [sys.executable, "-m", "nfq_failover", "lab", "--name", plain.name, "exec", "a", "--", "sh", "-c", script]
    done = subprocess.run(
        argv, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLOUR": "green"}, timeout=30
    )
    assert done.returncode == 7
    assert done.stdout.split() == [str(tmp_path), "green", "4096", "131072", "6291456"]


def test_exec_becomes_the_command_so_signals_reach_it(plain: Lab) -> None:
    argv = [sys.executable, "-m", "nfq_failover", "lab", "--name", plain.name, "exec", "client", "--", "sleep", "1000"]
    process = subprocess.Popen(argv)
    assert eventually(lambda: netns.pids(namespace(plain.name, "client")) == [process.pid])
    # It is in the namespace a moment before it becomes the command: until then the signal is our program's.
    assert eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM


def test_exec_of_what_is_not_there(plain: Lab) -> None:
    assert command(plain.name, "exec", "client", "--", "no-such-program").returncode == 127
    assert command(plain.name, "exec", "client", "--", "/etc/passwd").returncode == 126


def test_detached_commands_run_on_and_leave_their_output(plain: Lab) -> None:
    done = command(plain.name, "exec", "b", "--detach", "--", "sh", "-c", "echo begun; sleep 1000")
    assert done.returncode == 0
    words = done.stdout.replace(",", "").split()
    pid, log = int(words[1]), Path(words[-1])
    assert eventually(lambda: log.read_text() == "begun\n")
    assert pid in netns.pids(namespace(plain.name, "b"))


def test_serve_returns_when_both_listen_and_restore_starts_it_again(plain: Lab) -> None:
    done = command(plain.name, "serve", "--", *SERVER)
    assert (done.returncode, done.stderr) == (0, "")
    for node in ("a", "b"):
        assert list(netns.listeners(namespace(plain.name, node), lambda port: True).values()) == [PORT]
    connect(plain).close()
    plain.crash("a")
    assert "on" in plain.restore("a")
    connect(plain).close()
    assert list(netns.listeners(namespace(plain.name, "a"), lambda port: True).values()) == [PORT]


def test_serve_may_be_called_again_for_more(plain: Lab) -> None:
    for port in ("7001", "7002"):
        plain.serve([*SERVER[:-1], port])
    plain.crash("b")
    plain.restore("b")
    assert sorted(netns.listeners(namespace(plain.name, "b"), lambda port: True).values()) == [7001, 7002]


def test_serve_takes_an_application_that_goes_to_the_background(plain: Lab) -> None:
    plain.serve(["sh", "-c", f"(sleep 0.3; exec {' '.join(SERVER)}) & exit 0"])
    connect(plain).close()


def test_serve_says_why_an_application_is_not_there(plain: Lab) -> None:
    with pytest.raises(LabError, match=r"exit code 3 before it listened:\s+the disk is full"):
        plain.serve(["sh", "-c", "echo the disk is full; exit 3"])
    with pytest.raises(LabError, match="can't start no-such-program"):
        plain.serve(["no-such-program"])
    assert plain.store.read().applications == []
    assert [netns.pids(namespace(plain.name, node)) for node in ("a", "b")] == [[], []]


def test_two_labs_at_once() -> None:
    with lab(Options(plain=True)) as one, lab(Options(plain=True)) as two:
        one.serve(SERVER)
        connect(one).close()
        with pytest.raises(ConnectionRefusedError):
            connect(two)
        two.crash("a")
        connect(one).close()


def test_down_leaves_nothing(plain: Lab) -> None:
    plain.serve(SERVER)
    stubborn = plain.popen("client", ["sh", "-c", "trap '' TERM HUP INT; sleep 1000; :"], start_new_session=True)
    inside = [pid for target in TWO_HOSTS.namespaces(plain.name) for pid in netns.pids(target)]
    assert len(inside) >= 3
    plain.crash("b")
    done = command(plain.name, "down")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    stubborn.wait(timeout=5)
    assert not any(alive(pid) for pid in inside)
    assert netns.present(TWO_HOSTS.namespaces(plain.name)) == []
    assert not (ROOT / plain.name).exists()


def test_down_of_half_a_lab() -> None:
    made = Lab(fresh_name())
    made.up(Options(plain=True))
    netns.tool(["ip", "netns", "delete", namespace(made.name, "switch")])
    made.store.remove()
    assert command(made.name, "up", "--plain").returncode == 2
    assert command(made.name, "down").returncode == 0
    assert netns.present(TWO_HOSTS.namespaces(made.name)) == []


def test_down_of_a_lab_that_another_version_has_made(plain: Lab) -> None:
    (plain.store.directory / "lab.json").write_text('{"options": {"colour": "green"}}')
    done = command(plain.name, "status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not of this version" in done.stderr
    assert command(plain.name, "down").returncode == 0
    assert netns.present(TWO_HOSTS.namespaces(plain.name)) == []
    assert not (ROOT / plain.name).exists()


# ---------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["up", "--plain"], "up already"),
        (["exec", "c", "--", "true"], "no node 'c'"),
        (["crash", "client"], "no node 'client'"),
        (["crash", "b"], "off already"),
        (["exec", "b", "--", "true"], "b is off"),
        (["cut", "b"], "b is off"),
        (["restore", "a"], "a is on"),
        (["restore", "client"], "no node"),
        (["cut", "client", "--only", "sync"], "--only"),
    ],
)
def test_misuse_of_a_lab_whose_b_is_off(words: list[str], says: str, half_off: Lab) -> None:
    done = command(half_off.name, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def half_off() -> Iterator[Lab]:
    with lab(Options(plain=True)) as made:
        made.crash("b")
        yield made


@pytest.mark.parametrize(
    "words", [["status"], ["down"], ["crash", "a"], ["heal", "a"], ["serve", "--", "true"], ["exec", "a", "--", "true"]]
)
def test_misuse_without_a_lab(words: list[str]) -> None:
    done = command(fresh_name(), *words)
    assert done.returncode == 2
    assert "There is no lab" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["up", "--rate", "quick"], ["up", "--loss", "101"], ["up", "--port", "0"], ["up", "--heartbeat-ms", "1"]]
)
def test_misuse_of_up_makes_nothing(words: list[str]) -> None:
    name = fresh_name()
    done = command(name, *words)
    assert done.returncode == 2
    assert netns.present(TWO_HOSTS.namespaces(name)) == []
    assert not (ROOT / name).exists()


def test_a_name_that_is_too_long() -> None:
    done = command("n" * 11, "up", "--plain")
    assert done.returncode == 2
    assert "10" in done.stderr


def test_status_of_a_plain_lab(half_off: Lab) -> None:
    status = json.loads(command(half_off.name, "status", "--json").stdout)
    assert status == {
        "epoch": None,
        "nodes": {
            "a": {"alive": True, "role": None, "state": "plain", "reason": "the lab is plain: no daemon"},
            "b": {"alive": False, "role": None, "state": "off", "reason": "crashed"},
        },
        "connections": [],
    }
    with pytest.raises(CommandError, match="off already"):
        half_off.crash("backup")
