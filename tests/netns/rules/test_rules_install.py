"""The rules script and the host's firewall: idempotent, beside the host's own rules, undone whole, losses noticed."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import SERVICE
from tests.support.rules_world import SCRIPT, VARIANTS, RulesHost, RulesWorld, world

pytestmark = pytest.mark.netns

ROLES = ("backup", "primary", "alone")
LIBERAL = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"


@pytest.fixture(params=VARIANTS)
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RulesWorld]:
    with world(request.param, tmp_path) as built:
        yield built


def touch_tables(host: RulesHost) -> None:
    """Make the tables exist, so that what a removal leaves can be compared byte for byte."""
    for table in ("raw", "mangle", "filter"):
        host.iptables("-t", table, "-nL")
        host.iptables("-t", table, "-N", "host-own")
        host.iptables("-t", table, "-A", "host-own", "-s", "192.0.2.1", "-j", "RETURN")


def own_rules(host: RulesHost) -> None:
    """A host with rules of its own, some with names much like ours."""
    touch_tables(host)
    for rule in (
        ("filter", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP"),
        ("filter", "-A", "OUTPUT", "-m", "comment", "--comment", "like -j NFQ-default", "-j", "host-own"),
        ("mangle", "-A", "PREROUTING", "-p", "udp", "-j", "MARK", "--set-mark", "1"),
        ("mangle", "-N", "NFQF-default2-PRE"),
        ("mangle", "-A", "PREROUTING", "-j", "NFQF-default2-PRE"),
        ("mangle", "-N", "NFQFdefault"),
        ("raw", "-A", "OUTPUT", "-d", "192.0.2.2", "-j", "DROP"),
    ):
        host.iptables("-t", *rule)


def foreign(host: RulesHost) -> list[str]:
    return [line for line in host.saved() if "NFQF-default-" not in line]


def everything(host: RulesHost) -> list[str]:
    """All firewall state there is: rules, egress filters, nft tables."""
    tc = host.namespace.run("tc", "qdisc", "show") + host.namespace.run("tc", "filter", "show", "dev", "eth0", "egress")
    return [*host.saved(), tc, host.namespace.run("nft", "-s", "list", "ruleset", "netdev")]


@pytest.mark.parametrize("guard", ["tc", "nft"])
def test_installing_twice_is_installing_once(net: RulesWorld, guard: str) -> None:
    for role in ROLES:
        net.a.install(role, "--guard", guard, peer=net.b)
        first = everything(net.a)
        again = net.a.rules(
            *("install", "--role", role, "--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0"),
            *("--peer", net.b.address, "--peer-mac", net.b.mac, "--guard", guard),
        )
        assert again.stdout.startswith("already installed")
        assert everything(net.a) == first
        (net.a.directory / "default" / "wanted").write_text("")
        net.a.install(role, "--guard", guard, peer=net.b)
        assert everything(net.a) == first, "also if the record was lost and all is written again"


@pytest.mark.parametrize("guard", ["tc", "nft"])
def test_every_role_leaves_the_hosts_rules_and_removal_leaves_nothing(net: RulesWorld, guard: str) -> None:
    own_rules(net.a)
    before = everything(net.a)
    others = foreign(net.a)
    for role in (*ROLES, "primary", "backup", "alone", "backup"):
        net.a.install(role, "--guard", guard, "--tap", "multicast" if role == "alone" else "clone", peer=net.b)
        assert foreign(net.a) == others
        assert everything(net.a) != before
        assert net.a.rules("check").returncode == 0
    assert net.a.rules("remove").returncode == 0
    assert everything(net.a) == before
    assert not (net.a.directory / "default").exists()
    assert net.a.rules("remove").stdout.startswith("nothing to remove")


def test_removal_without_the_record(net: RulesWorld) -> None:
    own_rules(net.a)
    before = everything(net.a)
    net.a.install("backup")
    (net.a.directory / "default" / "state").unlink()
    refused = net.a.rules("remove")
    assert refused.returncode == 2
    assert "give --service" in refused.stderr
    assert net.a.rules("remove", "--service", SERVICE).returncode == 0
    assert everything(net.a) == before


def test_a_record_from_before_a_reboot_counts_for_nothing(net: RulesWorld) -> None:
    net.b.install("backup", "--conntrack", "liberal")
    record = net.b.directory / "default" / "state"
    text = record.read_text()
    era = text.splitlines()[0]
    assert era.startswith("era=")
    record.write_text(text.replace(era, "era=another-boot/1"))
    assert net.b.rules("check").stderr == "no rules are installed for instance default\n"
    net.b.install("backup", "--conntrack", "liberal")
    assert record.read_text().startswith(era)
    assert net.b.rules("check").returncode == 0


def test_others_egress_filters_stay(net: RulesWorld) -> None:
    net.a.namespace.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    pass_all = ("bpf", "bytecode", "1,6 0 0 4294967295", "direct-action")
    net.a.namespace.run("tc", "filter", "add", "dev", "eth0", "egress", "protocol", "all", "pref", "1", *pass_all)
    touch_tables(net.a)
    before = everything(net.a)
    net.a.install("backup")
    net.a.install("backup", "--instance", "second", "--queue-in", "1", "--queue-out", "2")
    shown = net.a.namespace.run("tc", "filter", "show", "dev", "eth0", "egress")
    assert shown.count("handle 0x1") == 5, "and for each what turns its probes round"
    assert net.a.rules("remove").returncode == 0
    assert net.a.rules("check", "--instance", "second").returncode == 0
    assert net.a.rules("remove", "--instance", "second").returncode == 0
    assert everything(net.a) == before


def test_two_instances_live_side_by_side(net: RulesWorld) -> None:
    touch_tables(net.a)
    before = everything(net.a)
    net.a.install("backup", "--instance", "one", "--conntrack", "liberal")
    second = ("--instance", "two", "--service", "10.77.0.101", "--queue-in", "1", "--queue-out", "2")
    net.a.install("primary", *second, "--conntrack", "liberal", peer=net.b)
    for instance in ("one", "two"):
        assert net.a.rules("check", "--instance", instance).returncode == 0
    net.a.install("alone", "--instance", "one", "--conntrack", "liberal", peer=net.b)
    assert net.a.rules("check", "--instance", "two").returncode == 0
    assert net.a.rules("remove", "--instance", "one").returncode == 0
    assert net.a.rules("check", "--instance", "two").returncode == 0
    assert net.a.namespace.run("cat", LIBERAL) == "1\n", "the second still needs it"
    assert net.a.rules("remove", "--instance", "two").returncode == 0
    assert net.a.namespace.run("cat", LIBERAL) == "0\n"
    assert everything(net.a) == before


def test_the_qdisc_stays_until_the_last_instance_goes(net: RulesWorld) -> None:
    """Also for one that has no filter there now: it serves, and would lose packets."""
    touch_tables(net.a)
    before = everything(net.a)
    second = ("--instance", "two", "--service", "10.77.0.101", "--queue-in", "1", "--queue-out", "2")
    for options in ((), second):
        net.a.install("backup", *options)
        net.a.install("alone", *options, peer=net.b)
        assert "clsact" in net.a.namespace.run("tc", "qdisc", "show", "dev", "eth0")
        assert net.a.namespace.run("tc", "filter", "show", "dev", "eth0", "egress") == ""
    assert net.a.rules("remove").returncode == 0
    assert "clsact" in net.a.namespace.run("tc", "qdisc", "show", "dev", "eth0")
    assert net.a.rules("remove", "--instance", "two").returncode == 0
    assert everything(net.a) == before


def test_removal_is_refused_while_the_address_is_there(net: RulesWorld) -> None:
    net.b.install("backup")
    net.b.serve()
    net.b.ip("link", "set", "eth0", "down")
    before = everything(net.b)
    refused = net.b.rules("remove")
    assert refused.returncode == 2
    assert "still configured" in refused.stderr
    assert "ip addr del" in refused.stderr
    assert everything(net.b) == before
    assert net.b.rules("remove", "--force").returncode == 0
    assert "NFQF" not in "".join(everything(net.b))


def test_rules_after_the_address_are_warned_about(net: RulesWorld) -> None:
    net.b.serve()
    assert "until now nothing kept this host silent" in net.b.install("backup")


def test_a_lost_rule_is_noticed_and_installing_repairs(net: RulesWorld) -> None:
    net.b.install("backup")
    whole = everything(net.b)
    mangle = ("-t", "mangle")
    tc = ("tc", "qdisc", "del", "dev", "eth0", "clsact")
    losses: list[tuple[tuple[str, ...], str]] = [
        ((*mangle, "-D", "OUTPUT", "-j", "NFQF-default-OUT"), "missing: OUTPUT -j NFQF-default-OUT"),
        ((*mangle, "-F", "NFQF-default-PRE"), "missing: NFQF-default-PRE -i lo"),
        ((*mangle, "-F"), "missing: PREROUTING"),
        (("-t", "raw", "-F"), "missing: NFQF-default-ROUT"),
        ((*mangle, "-I", "NFQF-default-OUT", "-j", "ACCEPT"), "not ours, or old: NFQF-default-OUT -j ACCEPT"),
        ((*mangle, "-A", "OUTPUT", "-j", "NFQF-default-OUT"), "another order, or doubled"),
        (tc, "silence guard (tc on eth0) is gone"),
    ]
    for command, says in losses:
        assert net.b.rules("check").returncode == 0
        if command is tc:
            net.b.namespace.run(*command)
        else:
            net.b.iptables(*command)
        checked = net.b.rules("check")
        assert (checked.returncode, checked.stdout) == (3, "")
        assert says in checked.stderr
        shown = net.b.rules("show")
        assert shown.returncode == 3
        assert says in shown.stdout
        net.b.install("backup")
        assert everything(net.b) == whole
    net.b.iptables(*mangle, "-A", "OUTPUT", "-p", "udp", "-j", "MARK", "--set-mark", "1")
    assert "somebody's rules come after our jump" in net.b.rules("check").stderr
    net.b.install("backup")
    assert net.b.rules("check").returncode == 0, "our jump has moved behind them"


def test_a_check_costs_little(net: RulesWorld) -> None:
    net.b.install("backup")
    times = []
    for _ in range(15):
        began = time.monotonic()
        assert net.b.rules("check").returncode == 0
        times.append(time.monotonic() - began)
    assert min(times) < 0.05


def test_show_is_for_people(net: RulesWorld) -> None:
    assert "not installed" in net.a.rules("show").stdout
    assert net.a.rules("check").returncode == 3
    net.a.install("primary", peer=net.b)
    done = net.a.rules("show")
    assert done.returncode == 0
    for words in ("primary", f"{SERVICE}, ports 80,7000:7099, on eth0", "clone to 10.77.0.3", "notrack", "tc on eth0"):
        assert words in done.stdout
    assert done.stdout.endswith("all is as it was installed\n")


def fake_restore(net: RulesWorld, directory: Path, condition: str) -> str:
    """An iptables whose restore does its work and then fails when `condition` holds."""
    real = f"/usr/sbin/iptables-{net.b.variant}"
    programs = {
        "": f'exec {real} "$@"',
        "-save": f'exec {real}-save "$@"',
        "-restore": f'{real}-restore "$@" || exit; {condition}',
    }
    for suffix, body in programs.items():
        program = directory / f"iptables-fake{suffix}"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return str(directory / "iptables-fake")


def test_a_failed_installation_leaves_what_was_before(net: RulesWorld, tmp_path: Path) -> None:
    own_rules(net.b)
    net.b.install("backup")
    before = everything(net.b)
    base = ("--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0")
    peer = ("--peer", net.a.address, "--peer-mac", net.a.mac)
    once = f'case " $* " in *--test*) exit 0 ;; esac; [ -e {tmp_path}/failed ] || {{ : >{tmp_path}/failed; exit 1; }}'
    for condition, says in (
        ('case " $* " in *--test*) exit 1 ;; esac', "nothing was changed"),
        (once, "what was there before is back"),
    ):
        program = fake_restore(net, tmp_path, condition)
        for role in ("alone", "primary"):
            (tmp_path / "failed").unlink(missing_ok=True)
            done = net.b.rules("install", "--role", role, *base, *peer, "--iptables", program)
            assert done.returncode == 1
            assert says in done.stderr
            assert everything(net.b) == before
            assert net.b.rules("check").returncode == 0
    assert not list(net.b.directory.glob("*.lock"))


def test_a_first_installation_that_fails_leaves_nothing(net: RulesWorld, tmp_path: Path) -> None:
    touch_tables(net.b)
    before = everything(net.b)
    once = f'case " $* " in *--test*) exit 0 ;; esac; [ -e {tmp_path}/failed ] || {{ : >{tmp_path}/failed; exit 1; }}'
    base = ("--service", SERVICE, "--ports", "80", "--interface", "eth0", "--conntrack", "liberal")
    program = fake_restore(net, tmp_path, once)
    done = net.b.rules("install", "--role", "backup", *base, "--iptables", program)
    assert done.returncode == 1
    assert everything(net.b) == before
    assert net.b.namespace.run("cat", LIBERAL) == "0\n"


def test_a_signal_half_way_puts_everything_back(net: RulesWorld, tmp_path: Path) -> None:
    own_rules(net.b)
    net.b.install("backup")
    before = everything(net.b)
    program = fake_restore(net, tmp_path, f'case " $* " in *--test*) ;; *) : >{tmp_path}/reached; sleep 0.5 ;; esac')
    base = ("--service", SERVICE, "--ports", "80", "--interface", "eth0", "--iptables", program)
    with net.b.start("install", "--role", "alone", *base) as process:
        while not (tmp_path / "reached").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert everything(net.b) != before
        process.terminate()
    assert process.returncode == 1
    assert everything(net.b) == before
    assert net.b.rules("check").returncode == 0


def test_a_lock_left_by_a_dead_run_does_not_block(net: RulesWorld) -> None:
    lock = net.b.directory / "default.lock"
    lock.mkdir(parents=True)
    with net.b.start("--help") as dead:
        dead.wait()
    (lock / "pid").write_text(f"{dead.pid}\n")
    net.b.install("backup")
    assert not lock.exists()


def test_the_xtables_lock_is_waited_for(net: RulesWorld) -> None:
    net.b.lock_file.touch()
    descriptor = os.open(net.b.lock_file, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(1.0, os.close, (descriptor,)).start()
    began = time.monotonic()
    net.b.install("backup")
    took = time.monotonic() - began
    assert took > 0.9 if net.b.variant == "legacy" else took < 5, "the nft kind has no lock, the kernel serialises"
    assert net.b.rules("check").returncode == 0


def test_the_other_kind_of_iptables_is_refused(net: RulesWorld) -> None:
    net.b.install("backup")
    other = "legacy" if net.b.variant == "nft" else "nft"
    base = ("--service", SERVICE, "--ports", "80", "--interface", "eth0")
    done = net.b.rules("install", "--role", "backup", *base, "--iptables", f"iptables-{other}")
    assert done.returncode == 2
    assert f"use --iptables iptables-{net.b.variant}" in done.stderr


def test_needs_only_a_shell_and_iptables(net: RulesWorld, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    kind = f"iptables-{net.b.variant}"
    for name in ("sh", "cat", "mkdir", "mv", "rm", "sleep", kind, f"{kind}-save", f"{kind}-restore"):
        place = next(place for place in (f"/bin/{name}", f"/usr/sbin/{name}") if Path(place).exists())
        (tools / name).symlink_to(place)
    base = ("--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0")

    def rules(*arguments: str) -> tuple[int, str]:
        command = ("env", f"PATH={tools}", f"IPTABLES={kind}", "/bin/sh", str(SCRIPT), *arguments)
        done = net.b.outcome(*command, "--state-dir", str(net.b.directory))
        return done.returncode, done.stdout + done.stderr

    status, said = rules("install", "--role", "backup", *base)
    assert (status, "NO SECOND LAYER" in said) == (0, True)
    assert rules("check") == (0, "")
    assert "MISSING: there is no second layer" in rules("show")[1]
    net.b.serve()
    assert rules("remove")[0] == 2
    net.b.ip("address", "del", f"{SERVICE}/32", "dev", "eth0")
    assert rules("remove")[0] == 0
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")
