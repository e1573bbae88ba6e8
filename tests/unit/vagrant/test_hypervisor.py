"""Power and cables of the lab's machines, under both hypervisors: off only when they have been seen to say so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PREFIX = "no-real-machine-"  # and if it were found after all, it would not have machines of these names
VAGRANT = Path(__file__).parents[3] / "vagrant"

# Stand-ins: the state of each machine is a file; `stubborn` says how many orders it takes until one goes off.
COMMON = """#!/bin/sh
cd "$(dirname "$0")/.."
echo "$*" >>asked
turn_off() {
    left=$(cat stubborn 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then echo $((left - 1)) >stubborn; else echo "$2" >"state-$1"; fi
}
"""
VIRSH = (
    COMMON
    + """
case $1 in
    dominfo) [ -e "state-$2" ] ;;
    domstate) cat "state-$2" && echo ;;
    start) [ "$(cat "state-$2")" = 'shut off' ] && echo running >"state-$2" ;;
    destroy) [ "$(cat "state-$2")" != 'shut off' ] && turn_off "$2" 'shut off' ;;
    domiflist)
        echo ' Interface  Type     Source           Model    MAC'
        echo '-------------------------------------------------------'
        echo ' vnet0      network  vagrant-libvirt  virtio   52:54:00:00:00:01'
        echo ' vnet1      network  nfqf-service     virtio   52:54:00:00:00:02'
        ;;
    domif-setlink) ;;
    *) exit 1 ;;
esac
"""
)
VBOXMANAGE = (
    COMMON
    + """
case $1 in
    showvminfo)
        [ -e "state-$2" ] || exit 1
        [ $# = 2 ] || printf 'name="%s"\\nVMState="%s"\\nVMStateChangeTime="2026"\\n' "$2" "$(cat "state-$2")"
        ;;
    startvm) [ "$(cat "state-$2")" = poweroff ] && echo running >"state-$2" ;;
    controlvm) [ "$3" != poweroff ] || turn_off "$2" poweroff ;;
    modifyvm) ;;
    *) exit 1 ;;
esac
"""
)


class Hypervisor:
    """`vagrant/hypervisor` with stand-ins for virsh or VBoxManage."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.on, self.off = ("running", "shut off") if kind == "virsh" else ("running", "poweroff")
        (directory / "bin").mkdir()
        # The other one's stand-in knows nothing: this host's own must not be found, for it may have machines.
        for program, text in (("virsh", VIRSH), ("VBoxManage", VBOXMANAGE)):
            path = directory / "bin" / program
            path.write_text(text if program == kind else "#!/bin/sh\nexit 1\n")
            path.chmod(0o755)
        for machine in ("primary", "backup"):
            self.state(machine).write_text(self.on)

    def state(self, machine: str) -> Path:
        return self.directory / f"state-{PREFIX}{machine}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(VAGRANT / "hypervisor"), *words],
            env={
                "PATH": f"{self.directory}/bin:{os.defpath}",
                "NFQF_OFF_DEADLINE_S": "2",
                "NFQF_DOMAIN_PREFIX": PREFIX,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    def asked(self) -> list[str]:
        return (self.directory / "asked").read_text().splitlines()


@pytest.fixture(params=["virsh", "VBoxManage"])
def hypervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Hypervisor:
    return Hypervisor(tmp_path, request.param)


def test_off_turns_off_that_machine_and_no_other(hypervisor: Hypervisor) -> None:
    done = hypervisor.run("off", "primary")
    assert (done.returncode, done.stdout) == (0, "off\n")
    assert hypervisor.state("primary").read_text().strip() == hypervisor.off
    assert hypervisor.run("status", "backup").stdout == "on\n"


def test_off_is_no_failure_when_it_is_off_already(hypervisor: Hypervisor) -> None:
    hypervisor.state("backup").write_text(hypervisor.off)
    assert hypervisor.run("off", "backup").returncode == 0


def test_an_order_that_was_not_obeyed_is_given_again(hypervisor: Hypervisor) -> None:
    (hypervisor.directory / "stubborn").write_text("2")
    done = hypervisor.run("off", "primary")
    assert (done.returncode, done.stdout) == (0, "off\n")
    assert sum("destroy" in line or "poweroff" in line for line in hypervisor.asked()) == 3


def test_off_is_not_claimed_of_a_machine_that_stays_on(hypervisor: Hypervisor) -> None:
    (hypervisor.directory / "stubborn").write_text("1000000")
    done = hypervisor.run("off", "primary")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "still not off" in done.stderr


def test_on_turns_on_that_machine_and_no_other(hypervisor: Hypervisor) -> None:
    for machine in ("primary", "backup"):
        hypervisor.state(machine).write_text(hypervisor.off)
    assert hypervisor.run("on", "backup").returncode == 0
    assert hypervisor.run("status", "backup").stdout == "on\n"
    assert hypervisor.run("status", "primary").stdout == "off\n"


def test_on_is_no_failure_when_it_is_on_already(hypervisor: Hypervisor) -> None:
    assert hypervisor.run("on", "backup").returncode == 0


@pytest.mark.parametrize("state", ["", "no state", "unknown"])
def test_an_unknown_state_is_neither_on_nor_off(hypervisor: Hypervisor, state: str) -> None:
    hypervisor.state("primary").write_text(state)
    done = hypervisor.run("status", "primary")
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_paused_machine_is_on(hypervisor: Hypervisor) -> None:
    hypervisor.state("primary").write_text("paused")
    assert hypervisor.run("status", "primary").stdout == "on\n"


@pytest.mark.parametrize("words", [("off", "other"), ("off", "primary; id"), ("explode", "primary"), ("off",), ()])
def test_nothing_else_is_done(hypervisor: Hypervisor, words: tuple[str, ...]) -> None:
    assert hypervisor.run(*words).returncode != 0
    assert hypervisor.state("primary").read_text() == hypervisor.on


def test_a_machine_that_nobody_knows_is_a_failure(hypervisor: Hypervisor) -> None:
    hypervisor.state("primary").unlink()
    done = hypervisor.run("off", "primary")
    assert done.returncode == 1
    assert "neither libvirt nor VirtualBox" in done.stderr


def test_the_cable_is_the_service_network_s(hypervisor: Hypervisor) -> None:
    assert hypervisor.run("cut", "primary").returncode == 0
    assert hypervisor.run("mend", "primary").returncode == 0
    orders = [line for line in hypervisor.asked() if "setlink" in line]
    assert [order.split()[1:] for order in orders] in (
        [[f"{PREFIX}primary", "52:54:00:00:00:02", "down"], [f"{PREFIX}primary", "52:54:00:00:00:02", "up"]],
        [[f"{PREFIX}primary", "setlinkstate2", "off"], [f"{PREFIX}primary", "setlinkstate2", "on"]],
    )


def test_the_cable_of_a_machine_that_is_off_is_plugged_in_for_its_next_boot(hypervisor: Hypervisor) -> None:
    hypervisor.state("primary").write_text(hypervisor.off)
    assert hypervisor.run("mend", "primary").returncode == 0
    assert hypervisor.asked()[-1] in (
        f"domif-setlink {PREFIX}primary 52:54:00:00:00:02 up --config",
        f"modifyvm {PREFIX}primary --cableconnected2 on",
    )
