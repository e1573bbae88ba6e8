"""The rules script's arguments: what it refuses and what it makes of them. No root, no firewall: a fake iptables."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nfq_failover.shell.packets.inject import OWNER
from nfq_failover.wire.checksum import ipv4_header_checksum
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tap_probe import TTL, is_probe, tap_probe
from tests.support.fake_iptables import PEER, REQUIRED, SCRIPT, make_fake, plan, rules, script

PARTS = sorted((SCRIPT.parent / "lib").glob("*.sh"))


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", SCRIPT, *PARTS], capture_output=True, text=True, timeout=60)
    assert len(PARTS) == 6
    assert done.returncode == 0, done.stdout


def test_help_names_every_option(tmp_path: Path) -> None:
    done = script(tmp_path, "--help")
    assert done.returncode == 0
    text = (SCRIPT.parent / "lib" / "options.sh").read_text()
    options = set(re.findall(r"^ *(--[a-z-]+)\)", text, re.MULTILINE))
    assert {"--role", "--service", "--inherited", "--dry-run"} <= options
    assert not [option for option in options if not re.search(rf"{option}\b", done.stdout)]


@pytest.mark.parametrize(("boot", "role"), [("this", "primary"), ("another", "unknown")])
def test_a_daemons_record_is_found(tmp_path: Path, boot: str, role: str) -> None:
    """By whoever asks without --state-dir; one of an earlier boot is not believed."""
    parts = tmp_path / "iptables"
    shutil.copytree(SCRIPT.parent, parts)
    options = parts / "lib" / "options.sh"
    place = "daemon_root=/var/lib/nfq-failover/rules"
    assert place in options.read_text()
    options.write_text(options.read_text().replace(place, f"daemon_root={tmp_path}/rules"))
    record = tmp_path / "rules" / "daemons"
    record.mkdir(parents=True)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip() if boot == "this" else "0"
    namespace = str(Path("/proc/self/ns/net").readlink()).strip("net:[]")
    (record / "state").write_text(f"role=primary\nera={boot_id}/{namespace}\n")
    for name in ("list", "wanted", "guard"):
        (record / name).write_text("")
    fake = make_fake(tmp_path)
    command = ["sh", str(parts / SCRIPT.name), "show", "--instance", "daemons", "--iptables", str(fake)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    shown = re.findall(r"^ *role +(\w+)", done.stdout, re.MULTILINE) or ["unknown"]
    assert shown == [role], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "install, remove, show, check or host"),
        (("install", "remove"), "Give one of"),
        (("install", "--rolle", "backup"), "unknown option --rolle"),
        (("install", "more"), "unexpected 'more'"),
        (("install", "--role"), "--role needs a value"),
        (("install", *REQUIRED), "--role backup, primary or alone"),
        (("install", "--role", "both", *REQUIRED), "not 'both'"),
        (("install", "--role", "backup"), "needs --service"),
        (("install", "--role", "backup", *REQUIRED[:2]), "needs --ports"),
        (("install", "--role", "backup", *REQUIRED[:4]), "needs --interface"),
        (("install", "--role", "backup", *REQUIRED, "--service", "10.77.0.256"), "no IPv4 address"),
        (("install", "--role", "backup", *REQUIRED, "--service", "10.77.0"), "no IPv4 address"),
        (("install", "--role", "backup", *REQUIRED, "--service", "fd77::100"), "no IPv4 address"),
        (("install", "--role", "backup", *REQUIRED, "--ports", "80,x"), "'x' is no port"),
        (("install", "--role", "backup", *REQUIRED, "--ports", "0"), "'0' is no port"),
        (("install", "--role", "backup", *REQUIRED, "--ports", "65536"), "'65536' is no port"),
        (("install", "--role", "backup", *REQUIRED, "--ports", "90:80"), "'90:80' is no port"),
        (("install", "--role", "backup", *REQUIRED, "--interface", "no such"), "no interface name"),
        (("install", "--role", "backup", *REQUIRED, "--interface", "absent0"), "there is no 'absent0'"),
        (("install", "--role", "backup", *REQUIRED, "--mark", "0"), "bit mask"),
        (("install", "--role", "backup", *REQUIRED, "--mark", "0x1ffffffff"), "bit mask"),
        (("install", "--role", "backup", *REQUIRED, "--queue-in", "65536"), "--queue-in"),
        (("install", "--role", "backup", *REQUIRED, "--queue-in", "7761"), "must differ"),
        (("install", "--role", "backup", *REQUIRED, "--instance", "a-b"), "letters, digits and underscores"),
        (("install", "--role", "backup", *REQUIRED, "--conntrack", "none"), "notrack or liberal"),
        (("install", "--role", "backup", *REQUIRED, "--guard", "yes"), "auto, tc, nft or none"),
        (("install", "--role", "backup", *REQUIRED, "--tap", "mirror"), "clone or multicast"),
        (("install", "--role", "primary", *REQUIRED), "needs --peer"),
        (("install", "--role", "primary", *REQUIRED, *PEER[:2]), "one --peer-mac for each --peer"),
        (("install", "--role", "primary", *REQUIRED, *PEER[:2], "--peer-mac", "2:0:0:0:0:3"), "no MAC address"),
        (("install", "--role", "primary", *REQUIRED, "--peer", "10.77.0.100", *PEER[2:]), "own address"),
        (("install", "--role", "alone", *REQUIRED, "--inherited", "/nowhere"), "can't read '/nowhere'"),
    ],
)
def test_misuse_is_refused_with_advice(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = script(tmp_path, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("nfq-failover-rules: ")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    "line", ["10.0.0.1 40000", "10.0.0.1 40000 80 1", "host 40000 80", "10.0.0.1 0 80", "1.2.3.4 1 x"]
)
def test_bad_inherited_line_is_refused(tmp_path: Path, line: str) -> None:
    arguments = ("install", "--role", "alone", *REQUIRED, *PEER, "--inherited", "-")
    done = script(tmp_path, *arguments, stdin=f"# comment\n10.0.0.9 5 80\n{line}\n")
    assert done.returncode == 2
    assert f"'{line}' should read" in done.stderr


def test_a_missing_iptables_is_explained(tmp_path: Path) -> None:
    command = ["sh", str(SCRIPT), "install", "--role", "backup", *REQUIRED, "--iptables", "/nowhere/iptables"]
    done = subprocess.run([*command, "--state-dir", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "install the package iptables" in done.stderr


def test_option_with_equals_sign_and_long_way_agree(tmp_path: Path) -> None:
    short = plan(tmp_path, "backup", "--queue-in=5", "--mark=0x2")
    assert short == plan(tmp_path, "backup", "--queue-in", "5", "--mark", "2")
    assert "--queue-num 5" in short
    assert "0x2/0x2" in short


def test_queues_of_the_backup_have_no_bypass_and_nothing_else_leaves(tmp_path: Path) -> None:
    text = plan(tmp_path, "backup")
    assert rules(text, "NFQF-default-PRE")[-1].endswith("-j NFQUEUE --queue-num 7760")
    assert rules(text, "NFQF-default-OUT")[-2:] == [
        "-s 10.77.0.100 -p tcp -m multiport --sports 80,7000:7099 -j NFQUEUE --queue-num 7761",
        "-s 10.77.0.100 -j DROP",
    ]
    assert "bypass" not in text
    assert "TEE" not in text


@pytest.mark.parametrize("role", ["backup", "primary", "alone"])
def test_the_daemons_own_packets_pass_first_and_no_mark_is_believed(tmp_path: Path, role: str) -> None:
    text = plan(tmp_path, role, *PEER)
    assert rules(text, "NFQF-default-PRE")[0] == "-i lo -j RETURN"
    assert rules(text, "NFQF-default-OUT")[:2] == [
        "-o lo -j RETURN",
        f"-m owner --gid-owner {OWNER} -g NFQF-default-OWN",
    ]
    assert rules(text, "NFQF-default-OWN") == ["-j MARK --set-xmark 0x10000000/0x10000000"]
    assert "-m mark" not in text


def test_a_kernel_without_the_owner_match_goes_by_the_mark(tmp_path: Path) -> None:
    without = plan(tmp_path, "backup", "--own", "mark")
    assert "owner" not in without
    assert rules(without, "NFQF-default-OUT")[1] == "-m mark --mark 0x10000000/0x10000000 -j RETURN"
    make_fake(tmp_path, refuses="owner")
    for role in ("backup", "alone"):
        done = script(tmp_path, "install", "--role", role, *REQUIRED, "--guard", "none", keep=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "owner" not in (tmp_path / "restored").read_text()
    assert "the owner match is missing" in script(tmp_path, "show", keep=True).stdout


def test_primary_queues_syns_in_and_everything_out_without_bypass(tmp_path: Path) -> None:
    text = plan(tmp_path, "primary", *PEER)
    assert rules(text, "NFQF-default-IN")[-1] == "-p tcp --syn -j NFQUEUE --queue-num 7760"
    assert rules(text, "NFQF-default-OUT")[-1].endswith("--sports 80,7000:7099 -j NFQUEUE --queue-num 7761")
    assert "bypass" not in text


def test_alone_bypasses_except_for_inherited_connections(tmp_path: Path) -> None:
    text = plan(tmp_path, "alone", *PEER, "--inherited", "-", stdin="10.77.0.1 40000 80\n10.77.0.9 50000 7001\n")
    queued = [line for line in text.splitlines() if "NFQUEUE" in line]
    assert len(queued) == 7
    for line in queued:
        assert ("--queue-bypass" in line) == ("40000" not in line and "50000" not in line)
    assert "-s 10.77.0.9 -p tcp --sport 50000 --dport 7001 -j NFQUEUE --queue-num 7760" in text
    assert "-d 10.77.0.9 -p tcp --dport 50000 --sport 7001 -j NFQUEUE --queue-num 7761" in text
    chain = rules(text, "NFQF-default-IN")
    assert chain.index("-p tcp --sport 0:65535 -j NFQF-default-I0") < len(chain) - 1, "inherited ones come first"


def test_every_peer_is_cloned_to_and_none_is_cloned_from(tmp_path: Path) -> None:
    second = ("--peer", "10.77.0.4", "--peer-mac", "02:00:00:00:00:04")
    assert rules(plan(tmp_path, "primary", *PEER, *second), "NFQF-default-TAP") == [
        "-m mac --mac-source 02:00:00:00:00:03 -j RETURN",
        "-m mac --mac-source 02:00:00:00:00:04 -j RETURN",
        "-j TEE --gateway 10.77.0.3",
        "-j TEE --gateway 10.77.0.4",
    ]


def test_a_probe_of_the_tap_is_cloned_though_a_peer_sends_it_and_its_clone_is_not(tmp_path: Path) -> None:
    chain = rules(plan(tmp_path, "primary", *PEER), "NFQF-default-IN")
    probe = '-i lo -p tcp -m tcp --sport 0 --tcp-flags ALL RST -m u32 --u32 "8>>24=2" -j TEE --gateway 10.77.0.3'
    assert chain.index(probe) < chain.index("-i lo -j NFQF-default-TAP")
    packet = tap_probe(bytes((10, 77, 0, 3)), (bytes((10, 77, 0, 100)), 80), 7)
    assert packet[8] == TTL == 2
    assert Segment(packet).checksum_ok() and is_probe(Segment(packet))
    assert ipv4_header_checksum(packet[:20]) == 0
    assert "TEE" not in plan(tmp_path, "primary", "--tap", "multicast")
    assert "TEE" not in plan(tmp_path, "backup", *PEER)


def test_multicast_tap_repairs_the_packet_type_before_notrack(tmp_path: Path) -> None:
    chain = rules(plan(tmp_path, "primary", "--tap", "multicast"), "NFQF-default-RPRE")
    assert "-m cluster" in chain[0]
    assert all("notrack" in rule for rule in chain[1:])
    assert len(chain) == 3


def test_liberal_does_not_untrack(tmp_path: Path) -> None:
    switch = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
    done = script(tmp_path, "install", "--role", "backup", *REQUIRED, "--conntrack", "liberal", "--dry-run")
    if switch.exists():
        assert done.returncode == 0
        assert "nf_conntrack_tcp_be_liberal" in done.stdout
        assert "notrack" not in done.stdout
    else:
        assert done.returncode == 2
        assert "connection tracking is not loaded" in done.stderr


def ports_of(text: str) -> list[list[str]]:
    """The multiport lists of the rules that lead to the in queue."""
    chain = rules(text, "NFQF-default-PRE")
    return [rule.split("--dports ")[1].split()[0].split(",") for rule in chain if "--dports" in rule]


@pytest.mark.parametrize(
    ("ports", "merged"),
    [
        ("80", [(80, 80)]),
        ("443,80", [(80, 80), (443, 443)]),
        ("7000-7099,80", [(80, 80), (7000, 7099)]),
        ("90:100,80:95,1,101", [(1, 1), (80, 101)]),
        ("5:6,1:2,3:4", [(1, 6)]),
        ("10,20,30,15:25", [(10, 10), (15, 25), (30, 30)]),
        ("1:65535,80", [(1, 65535)]),
    ],
)
def test_ports_are_sorted_and_merged(tmp_path: Path, ports: str, merged: list[tuple[int, int]]) -> None:
    done = script(
        tmp_path, "install", "--role", "backup", *REQUIRED[:2], "--ports", ports, "--interface", "lo", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    written = [item for group in ports_of(done.stdout) for item in group]
    assert written == [str(low) if low == high else f"{low}:{high}" for low, high in merged]


def test_more_ports_than_one_match_takes_are_spread(tmp_path: Path) -> None:
    singles = [str(port) for port in range(100, 160, 2)]
    ranges = [f"{port}:{port + 3}" for port in range(1000, 1100, 10)]
    ports = ",".join(singles + ranges)
    done = script(
        tmp_path, "install", "--role", "backup", *REQUIRED[:2], "--ports", ports, "--interface", "lo", "--dry-run"
    )
    groups = ports_of(done.stdout)
    assert [item for group in groups for item in group] == singles + ranges
    assert len(groups) == 4
    for group in groups:
        assert sum(2 if ":" in item else 1 for item in group) <= 15


def test_hundreds_of_inherited_connections_are_spread_by_port(tmp_path: Path) -> None:
    flows = [(f"10.0.{n % 7}.{n % 250 + 1}", 32768 + n * 67 % 28000, 80) for n in range(300)]
    text = plan(tmp_path, "alone", *PEER, "--inherited", "-", stdin="".join(f"{a} {c} {s}\n" for a, c, s in flows))
    for address, client_port, _ in flows:
        bucket = client_port // 512
        rule = f"-s {address} -p tcp --sport {client_port} --dport 80 -j NFQUEUE --queue-num 7760"
        assert rule in rules(text, f"NFQF-default-I{bucket}")
        assert f"-p tcp --sport {bucket * 512}:{bucket * 512 + 511} -j NFQF-default-I{bucket}" in text
    assert len(rules(text, "NFQF-default-IN")) < 70


def test_an_instance_has_its_own_names(tmp_path: Path) -> None:
    text = plan(tmp_path, "backup", "--instance", "web_2")
    assert "NFQF-web_2-PRE" in text
    assert "default" not in text
    assert "nfq_failover_web_2" in text


def test_templates_leave_no_placeholder(tmp_path: Path) -> None:
    for role in ("backup", "primary", "alone"):
        for tap in ("clone", "multicast"):
            text = plan(tmp_path, role, *PEER, "--tap", tap, "--inherited", "-", stdin="10.0.0.1 1 80\n")
            assert "@" not in text.replace("&0x3C@", "")
            assert "[" not in text.replace("[0:0]", "")
