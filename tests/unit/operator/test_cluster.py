"""The scripts for Pacemaker: what they ask the cluster for, and what they make of its answers.

The cluster's own programs are replaced by ones that answer from a file. script/pacemaker runs the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import nfq_failover

SCRIPTS = Path(nfq_failover.__file__).parent / "operator" / "cluster"

_FAKE = """#!/bin/sh
echo "${0##*/} $*" >>"$FAKES/asked"
for each in "$FAKES/${0##*/} $*" "$FAKES/${0##*/} $1" "$FAKES/${0##*/}"; do
    [ -e "$each" ] || continue
    cat "$each"
    [ ! -e "$each.fails" ]
    exit $?
done
exit 1
"""
_TOOLS = (
    *("corosync-cmapctl", "corosync-quorumtool", "stonith_admin", "crm_node", "crm_attribute", "crm_resource"),
    *("nfq-failover", "systemctl", "ip"),
)
# What the agent needs of resource-agents, which servers have and this machine may lack.
_SHELLFUNCS = """
OCF_SUCCESS=0 OCF_ERR_GENERIC=1 OCF_ERR_UNIMPLEMENTED=3 OCF_ERR_CONFIGURED=6 OCF_NOT_RUNNING=7
HA_RSCTMP=$FAKES
ocf_log() { :; }
ocf_exit_reason() { echo "$*" >&2; }
ocf_promotion_score() { echo "score $*" >>"$FAKES/asked"; }
ocf_is_probe() { [ "$OCF_RESKEY_CRM_meta_interval" = 0 ]; }
ocf_is_true() { case $1 in true | 1 | yes | on) ;; *) return 1 ;; esac; }
ocf_local_nodename() { echo alpha; }
check_binary() { command -v "$1" >/dev/null; }
"""


@dataclass
class Fakes:
    """The cluster's programs, with the answers that a test gives them."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def answers(self, command: str, text: str, fails: bool = False) -> None:
        """What the command says, looked up by all its words, by the first, or by its name."""
        (self.directory / command).write_text(text)
        if fails:
            (self.directory / f"{command}.fails").touch()

    def run(self, script: str, *words: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """Run a script among these programs."""
        environment = {**os.environ, **self.environment, "FAKES": str(self.directory)}
        environment["PATH"] = f"{self.directory}/bin:{os.environ['PATH']}"
        argv = [str(SCRIPTS / script), *words]
        return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False)

    def asked(self, beginning: str) -> list[str]:
        """The commands that were given, of those that begin like that."""
        path = self.directory / "asked"
        return [line for line in path.read_text().splitlines() if line.startswith(beginning)] if path.exists() else []


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    (tmp_path / "bin").mkdir()
    for name in _TOOLS:
        (tmp_path / "bin" / name).write_text(_FAKE)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "ocf-shellfuncs").write_text(_SHELLFUNCS)
    (tmp_path / "config.toml").write_text('service = "192.0.2.10"\n')
    made = Fakes(tmp_path)
    made.environment = {
        "OCF_FUNCTIONS_DIR": str(tmp_path),
        "OCF_RESOURCE_INSTANCE": "pair",
        "OCF_RESKEY_config": str(tmp_path / "config.toml"),
        "OCF_RESKEY_CRM_meta_timeout": "8000",
        "OCF_RESKEY_CRM_meta_interval": "5000",
    }
    return made


# ------------------------------------------------------------------------------------------------ cluster-fence


def corosync(fakes: Fakes, quorate: str = "Yes", beta: str = "left") -> None:
    """A cluster of alpha and beta, with a patience of half a second."""
    rows = [f"nodelist.node.{n}.{key}" for n, key in ((0, "name (str) = alpha"), (0, "nodeid (u32) = 1"))]
    rows += [f"nodelist.node.{n}.{key}" for n, key in ((1, "name (str) = beta"), (1, "nodeid (u32) = 2"))]
    fakes.answers("corosync-cmapctl nodelist.node.", "\n".join(rows))
    fakes.answers("corosync-cmapctl -g runtime.members.2.status", f"runtime.members.2.status (str) = {beta}\n")
    for key in ("token", "consensus"):
        fakes.answers(f"corosync-cmapctl -g runtime.config.totem.{key}", f"runtime.config.totem.{key} (u32) = 10\n")
    fakes.answers("corosync-quorumtool", f"Nodes:            1\nQuorate:          {quorate}\n")


def test_a_node_that_is_gone_is_fenced_by_the_cluster(fakes: Fakes) -> None:
    corosync(fakes)
    fakes.answers("stonith_admin --reboot", "")
    assert fakes.run("cluster-fence", "beta").returncode == 0
    assert fakes.asked("stonith_admin --reboot") == [
        "stonith_admin --reboot beta --tolerance 3s --timeout 60 --tag nfq-failover"
    ]


def test_a_node_that_the_cluster_has_just_fenced_is_off(fakes: Fakes) -> None:
    corosync(fakes)
    fakes.answers("stonith_admin --history", f"{time.time():.0f}\n")
    assert fakes.run("cluster-fence", "beta").returncode == 0
    assert fakes.asked("stonith_admin --reboot") == []


def test_a_fencing_of_yesterday_says_nothing(fakes: Fakes) -> None:
    corosync(fakes)
    fakes.answers("stonith_admin --history", f"{time.time() - 86400:.0f}\n")
    fakes.answers("stonith_admin --fence", "no device", fails=True)
    assert fakes.run("cluster-fence", "--off", "--timeout", "2", "beta").returncode == 1
    assert fakes.asked("stonith_admin --fence beta")


def test_nobody_is_fenced_without_quorum(fakes: Fakes) -> None:
    corosync(fakes, quorate="No")
    fakes.answers("stonith_admin --reboot", "")
    done = fakes.run("cluster-fence", "--timeout", "2", "beta")
    assert done.returncode == 1
    assert "no quorum" in done.stderr
    assert fakes.asked("stonith_admin --reboot") == []


def test_a_member_is_fenced_when_corosync_would_have_missed_it(fakes: Fakes) -> None:
    corosync(fakes, beta="joined")
    fakes.answers("stonith_admin --history", f"{time.time():.0f}\n")  # and it has come back since
    fakes.answers("stonith_admin --reboot", "")
    began = time.monotonic()
    assert fakes.run("cluster-fence", "beta").returncode == 0
    assert time.monotonic() - began >= 0.5
    assert len(fakes.asked("stonith_admin --reboot")) == 1


def test_a_node_that_the_cluster_does_not_know_is_an_error(fakes: Fakes) -> None:
    corosync(fakes)
    done = fakes.run("cluster-fence", "gamma")
    assert done.returncode == 1
    assert "no node gamma" in done.stderr


# ------------------------------------------------------------------------------------------------ the agent


def daemon(fakes: Fakes, role: str, state: str, membership: str = "", lost: bool = True) -> None:
    """A daemon that says this."""
    peer = {"name": "beta", "lost": lost}
    said = {
        "name": "alpha",
        "role": role,
        "state": state,
        "membership": membership or state,
        "reason": "",
        "peer": peer,
    }
    fakes.answers("nfq-failover status", json.dumps(said, indent=2))


def cluster(fakes: Fakes, quorum: str = "1", fencing: str = "true", beta: bool = False) -> None:
    """A cluster in which alpha has an instance, and perhaps beta has."""
    fakes.answers("crm_node -q", quorum)
    fakes.answers("crm_attribute", fencing)
    places = ["alpha ", *(["beta Promoted"] if beta else [])]
    fakes.answers("crm_resource", "".join(f"resource pair is running on: {place}\n" for place in places))


def test_the_metadata(fakes: Fakes) -> None:
    root = ElementTree.fromstring(fakes.run("pair", "meta-data").stdout)
    names = {each.get("name") for each in root.iter("parameter")}
    assert names == {"config", "program", "unit", "log"}
    assert {"promote", "demote", "start", "stop", "monitor"} <= {each.get("name") for each in root.iter("action")}


def test_the_score_follows_the_daemon_and_the_role_what_pacemaker_has_ordered(fakes: Fakes) -> None:
    daemon(fakes, "primary", "unprotected")
    assert fakes.run("pair", "monitor").returncode == 0  # it has taken over, and waits to be promoted
    assert fakes.asked("score")[-1] == "score -v 1000"
    assert fakes.run("pair", "promote").returncode == 0
    assert fakes.run("pair", "monitor").returncode == 8
    daemon(fakes, "backup", "shadowing", lost=False)
    assert fakes.run("pair", "monitor").returncode == 8  # no failure: the role follows the score
    assert fakes.asked("score")[-1] == "score -v 100"
    assert fakes.run("pair", "demote").returncode == 0
    assert fakes.run("pair", "monitor").returncode == 0


def test_no_daemon_is_not_running_unless_the_host_may_answer_without_one(fakes: Fakes) -> None:
    fakes.answers("nfq-failover", "no daemon answers", fails=True)
    fakes.answers("ip", "")
    assert fakes.run("pair", "monitor").returncode == 7
    assert fakes.run("pair", "stop").returncode == 0
    fakes.answers("ip", "1: lo inet 192.0.2.10/32")
    assert fakes.run("pair", "monitor").returncode == 1


def test_what_is_stopped_is_not_started_again_by_its_unit(fakes: Fakes) -> None:
    fakes.environment["OCF_RESKEY_unit"] = "pair.service"
    fakes.answers("nfq-failover", "no daemon answers", fails=True)
    fakes.answers("nfq-failover check-config", "right")
    fakes.answers("ip", "")
    fakes.answers("systemctl start", "failed", fails=True)
    fakes.answers("systemctl stop", "")
    assert fakes.run("pair", "start").returncode == 1
    assert fakes.asked("systemctl") == ["systemctl start pair.service", "systemctl stop pair.service"]
    assert fakes.run("pair", "stop").returncode == 0
    assert fakes.asked("systemctl")[-1] == "systemctl stop pair.service"
    assert len(fakes.asked("systemctl")) == 3


def test_a_daemon_that_hangs_is_not_called_stopped(fakes: Fakes) -> None:
    fakes.answers("nfq-failover", "no daemon answers at control.sock (timed out)", fails=True)
    fakes.answers("ip", "")
    assert fakes.run("pair", "monitor").returncode == 1
    assert fakes.run("pair", "stop").returncode == 1


def test_a_host_that_is_promoted_alone_claims_the_service_where_the_cluster_vouches(fakes: Fakes) -> None:
    daemon(fakes, "joining", "waiting")
    cluster(fakes)
    fakes.answers("nfq-failover claim", "")
    fakes.run("pair", "promote")
    assert fakes.asked("nfq-failover claim")


@pytest.mark.parametrize(
    "against",
    [{"quorum": "0"}, {"fencing": "false"}, {"beta": True}],
    ids=["no quorum", "no fencing", "the peer runs one"],
)
def test_and_nowhere_else(fakes: Fakes, against: dict[str, object]) -> None:
    daemon(fakes, "joining", "waiting")
    cluster(fakes, **against)  # type: ignore[arg-type]
    fakes.answers("nfq-failover claim", "")
    assert fakes.run("pair", "promote").returncode == 1
    assert fakes.asked("nfq-failover claim") == []


def test_a_peer_that_is_heard_is_not_off(fakes: Fakes) -> None:
    daemon(fakes, "joining", "waiting", lost=False)
    cluster(fakes)
    assert fakes.run("pair", "promote").returncode == 1
    assert fakes.asked("nfq-failover claim") == []


def test_the_role_is_a_number_for_keepalived(tmp_path: Path) -> None:
    path = tmp_path / "role"
    for role, number in (("primary", "50\n"), ("backup", "0\n"), ("joining", "0\n")):
        subprocess.run([SCRIPTS / "keepalived-role", path, role], check=True)
        assert path.read_text() == number
