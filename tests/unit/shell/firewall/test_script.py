"""RulesRunner's own part, with a fake script: arguments, results, errors. The real script has tests of its own."""

from __future__ import annotations

import select
import socket
import time
from pathlib import Path

import pytest

from nfq_failover.core.events import Profile
from nfq_failover.errors import ConfigError, NfqFailoverError
from nfq_failover.shell.firewall.script import PeerHost, RulesError, RulesOptions, RulesRunner, find_script

PEERS = (PeerHost("10.77.0.3", "02:00:00:00:00:03"), PeerHost("10.77.0.4", "02:00:00:00:00:04"))
FLOW = (socket.inet_aton("10.77.0.1"), 40000, socket.inet_aton("10.77.0.100"), 80)


def runner(directory: Path, body: str, **options: object) -> RulesRunner:
    script = directory / "script"
    script.write_text(f'printf "%s\\n" "$@" >{directory}/arguments\n{body}\n')
    given: dict[str, object] = {"peers": PEERS, "script": script, "state_dir": directory / "state", **options}
    return RulesRunner(RulesOptions("10.77.0.100", ((80, 80), (7000, 7099)), "eth0", **given))  # type: ignore[arg-type]


def arguments(directory: Path) -> list[str]:
    return (directory / "arguments").read_text().split()


def test_the_checkouts_script_is_found() -> None:
    script = find_script()
    assert script.name == "nfq-failover-rules"
    assert script.parent.name == "iptables"


def test_a_missing_script_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set the rules script"):
        find_script(tmp_path / "absent")


def test_apply_passes_everything(tmp_path: Path) -> None:
    assert runner(tmp_path, "", conntrack="liberal", strict=True).apply(Profile.PRIMARY) == ""
    words = " ".join(arguments(tmp_path))
    for part in (
        f"install --instance default --state-dir {tmp_path}/state --role primary --service 10.77.0.100",
        "--ports 80,7000:7099 --interface eth0 --tap clone --conntrack liberal",
        "--conntrack liberal --mark 0x10000000 --queue-in 7760 --queue-out 7761 --guard auto --strict",
        "--peer 10.77.0.3 --peer-mac 02:00:00:00:00:03 --peer 10.77.0.4 --peer-mac 02:00:00:00:00:04",
    ):
        assert part in words
    assert "--inherited" not in words


def test_a_backup_and_the_multicast_tap_name_no_peers(tmp_path: Path) -> None:
    runner(tmp_path, "").apply(Profile.BACKUP)
    assert "--peer" not in arguments(tmp_path)
    runner(tmp_path, "", tap="multicast").apply(Profile.PRIMARY)
    assert "--peer" not in arguments(tmp_path)


def test_inherited_flows_go_in_by_standard_input(tmp_path: Path) -> None:
    rules = runner(tmp_path, f"cat >{tmp_path}/flows")
    rules.apply(Profile.ALONE, (FLOW, (socket.inet_aton("192.0.2.9"), 1, FLOW[2], 7050)))
    assert (tmp_path / "flows").read_text() == "10.77.0.1 40000 80\n192.0.2.9 1 7050\n"
    assert arguments(tmp_path)[-2:] == ["--inherited", "-"]


def test_warnings_are_given_and_failures_raised(tmp_path: Path) -> None:
    assert runner(tmp_path, "echo warning: mind that >&2").apply(Profile.BACKUP) == "warning: mind that"
    with pytest.raises(RulesError, match="no such table") as caught:
        runner(tmp_path, "echo no such table >&2; exit 1").apply(Profile.BACKUP)
    assert caught.value.status == 1
    assert isinstance(caught.value, NfqFailoverError)
    with pytest.raises(RulesError, match="exit code 7"):
        runner(tmp_path, "exit 7").remove()


def test_a_look_at_the_host_is_told_what_the_service_is(tmp_path: Path) -> None:
    said = "x\twarning\twhat\tcure"
    assert runner(tmp_path, f"printf '{said}' >&2; exit 3", owned=False).start_look().finish_check() == said
    words = " ".join(arguments(tmp_path))
    assert words.startswith("host --instance default")
    assert words.endswith("--tap clone --conntrack notrack --mark 0x10000000 --own mark")
    assert runner(tmp_path, "").start_look().finish_check() is None


def test_check(tmp_path: Path) -> None:
    assert runner(tmp_path, "").check() is None
    assert runner(tmp_path, "echo missing: this >&2; exit 3").check() == "missing: this"
    with pytest.raises(RulesError):
        runner(tmp_path, "exit 1").check()
    assert arguments(tmp_path)[0] == "check"


def test_remove(tmp_path: Path) -> None:
    runner(tmp_path, "").remove()
    assert arguments(tmp_path)[0] == "remove"
    assert "--force" not in arguments(tmp_path)
    runner(tmp_path, "", iptables="iptables-legacy").remove(force=True)
    assert arguments(tmp_path)[-1] == "--force"
    assert "iptables-legacy" in arguments(tmp_path)


def test_a_started_run_does_not_block_and_tells_its_end_by_pidfd(tmp_path: Path) -> None:
    began = time.monotonic()
    running = runner(tmp_path, "sleep 0.3; echo done >&2").start_apply(Profile.BACKUP)
    descriptor = running.pidfd()
    assert not select.select([descriptor], [], [], 0)[0]
    assert time.monotonic() - began < 0.25
    assert select.select([descriptor], [], [], 5)[0]
    assert running.finish() == "done"
    assert running.finish() == "done", "asking again does no harm"


def test_a_run_that_hangs_is_stopped(tmp_path: Path) -> None:
    running = runner(tmp_path, "echo stuck >&2; exec sleep 60").start_check()
    status, said = running.wait(0.3)
    assert (status, said) == (-15, "stuck")
    with pytest.raises(RulesError):
        running.finish_check()


def test_an_unknown_peer_matters_to_a_protected_primary_only(tmp_path: Path) -> None:
    rules = runner(tmp_path, "", peers=(PEERS[0], PeerHost("192.0.2.77")))
    with pytest.raises(RulesError, match=r"192\.0\.2\.77 is not known"):
        rules.start_apply(Profile.PRIMARY)
    rules.start_apply(Profile.ALONE).finish()
    assert "--peer" not in arguments(tmp_path), "who serves alone clones nothing"
