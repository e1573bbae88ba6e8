"""The lab with a cluster: its hosts boot Corosync and Pacemaker, and these start the daemons."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import nfq_failover
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import LabState, Options
from nfq_failover.lab.testbed import wait_until
from nfq_failover.lab.topology import TWO_HOSTS, namespace

HERE: Final = Path(__file__).parent
AGENTS: Final = Path(nfq_failover.__file__).parent / "operator" / "cluster"
PAGE: Final = Path(nfq_failover.__file__).parent.parent / "docs" / "operate" / "pacemaker.md"
PROGRAM: Final = str(Path(sys.executable).with_name("nfq-failover"))
HEARTBEAT_MS: Final = 200
_BOOT_S: Final = 60.0


def block(language: str) -> str:
    """The code block of this language in the page for operators: what is written there is what is tried here."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks of {language} in {PAGE}"
    text = str(found[0])
    for word, here in (("192.0.2.11\n", "10.77.0.2\n"), ("192.0.2.12\n", "10.77.0.3\n"), ("alpha", "a"), ("beta", "b")):
        text = text.replace(word, here)
    return text


class ClusterLab(Lab):
    """A lab whose hosts boot a cluster. The daemons are started by the cluster's resource agent."""

    def up(self, options: Options | None = None, seed: int | None = None) -> None:
        """Build it, with the fence that asks the cluster; returns when the pair is protected."""
        assert options is None
        fence = f'fence = ["{AGENTS / "cluster-fence"}", "{{peer}}"]'
        settings = (fence, "fence_deadline_ms = 10000")
        super().up(Options(rate="100mbit", fence=False, heartbeat_ms=HEARTBEAT_MS, settings=settings), seed)

    def _boot(self, state: LabState, hosts: Sequence[str]) -> dict[str, subprocess.Popen[bytes]]:
        stages = [nodes.start_scrambler(self.store, state, host) for host in hosts]
        for wait in stages:
            wait()
        first = not (self.store.directory / "files").exists()
        booted = {host: self._boot_node(host) for host in hosts}
        for host in hosts:
            wait_until(lambda host=host: self._is_online(host), _BOOT_S, f"{host} did not join the cluster", 0.3)  # type: ignore[misc]
        if first:
            self._configure(hosts[0])
        return booted

    def _boot_node(self, host: str) -> subprocess.Popen[bytes]:
        disk, files = self.store.directory / host, self._files()
        for name, owner in (("etc", "root"), ("corosync", "root"), ("pacemaker", "hacluster"), ("log", "hacluster")):
            made = disk / "cluster" / name
            made.mkdir(parents=True, exist_ok=True)
            shutil.chown(made, owner, None if owner == "root" else "haclient")
        for name in ("cib", "pengine", "blackbox", "cores"):
            made = disk / "cluster" / "pacemaker" / name
            made.mkdir(exist_ok=True)
            shutil.chown(made, "hacluster", "haclient")
        (disk / "cluster" / "etc" / "corosync.conf").write_text(block("corosync"))
        names = "".join(f"{TWO_HOSTS.address(each)} {each}\n" for each in TWO_HOSTS.hosts)
        (disk / "cluster" / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (disk / "state").mkdir(exist_ok=True)
        argv = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        argv += [str(HERE / "node"), str(disk), host, str(files)]
        process = netns.spawn(namespace(self.name, host), argv, self.store.log(f"cluster-{host}"))
        (disk / "node.pid").write_text(f"{process.pid}\n")
        return process

    def _files(self) -> Path:
        files = self.store.directory / "files"
        provider = files / "resource.d" / "nfq-failover"
        provider.mkdir(parents=True, exist_ok=True)
        (files / "sbin").mkdir(exist_ok=True)
        shutil.copy(HERE / "fence_lab", files / "sbin")
        shutil.copy(AGENTS / "pair", provider)
        for made in (files, files / "sbin", files / "resource.d", provider):
            made.chmod(0o755)
        return files

    def _configure(self, host: str) -> None:
        text = block("crm").replace("stonith:fence_ipmilan", "stonith:fence_lab")
        text = re.sub(r"ip=\S+ username=\S+ lanplus=true password_script=\S+ ", "", text)
        own = f"config=/mnt/config.toml program={PROGRAM} log=/mnt/daemon.log"
        assert "unit=nfq-failover.service" in text
        text = text.replace("unit=nfq-failover.service", own)
        path = self.store.directory / host / "crm.conf"
        path.write_text(text)
        done = self.inside(host, "crm", "--force", "configure", "load", "replace", "/mnt/crm.conf")
        assert done.returncode == 0, done.stdout + done.stderr

    def _is_online(self, host: str) -> bool:
        done = self.inside(host, "crm_mon", "--one-shot", "--include=nodes")
        return any("Online:" in line and f" {host} " in line for line in done.stdout.splitlines())

    def inside(self, host: str, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the node, as a shell there would."""
        first = (self.store.directory / host / "node.pid").read_text().strip()
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        enter = ["nsenter", "--target", children[0] if children else first, "--all"]
        env = {**os.environ, "HOME": "/root", "LC_ALL": "C"}
        return subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=timeout_s, env=env, check=False)

    def promoted(self, host: str) -> str | None:
        """The node that Pacemaker has promoted, as this host sees it."""
        done = self.inside(host, "crm_resource", "--resource", "pair", "--locate")
        found = re.findall(r"is running on: (\S+) (?:Promoted|Master)", done.stdout)
        return found[0] if len(found) == 1 else None

    def runs(self, host: str) -> bool:
        """Whether an instance runs on any node, as this host sees it."""
        done = self.inside(host, "crm_resource", "--resource", "pair", "--locate")
        return done.returncode != 0 or "is running on" in done.stdout

    def report(self, host: str) -> str:
        """What `crm_mon` says on the host."""
        return self.inside(host, "crm_mon", "--one-shot", "--show-detail", "--inactive").stdout


def two_nodes(name: str) -> ClusterLab:
    """A lab of two cluster nodes, to be brought up."""
    return ClusterLab(name, TWO_HOSTS)
