"""Tries the keepalived part of docs/operate/pacemaker.md: another address follows the host that serves."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from nfq_failover.lab import netns
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options
from nfq_failover.lab.testbed import wait_until
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.cluster.lab import AGENTS, HEARTBEAT_MS, block

_OTHER = "10.77.0.101"


def start(lab: Lab, host: str, place: Path) -> subprocess.Popen[bytes]:
    """Start keepalived on a host, with the page's configuration."""
    text = block("keepalived").replace("192.0.2.101", _OTHER).replace("/run/nfq-failover-role", str(place / host))
    (place / f"{host}.conf").write_text(text)
    argv = ["keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", str(place / f"{host}.conf")]
    argv += ["--pid", str(place / f"{host}.pid"), "--vrrp_pid", str(place / f"{host}.vrrp.pid")]
    return netns.spawn(namespace(lab.name, host), argv, lab.store.log(f"keepalived-{host}"))


def holders(lab: Lab) -> list[str]:
    """The hosts that have keepalived's address now."""
    return [host for host in TWO_HOSTS.hosts if netns.has_address(namespace(lab.name, host), _OTHER)]


def follows(lab: Lab, host: str, what: str, since: float) -> None:
    """Wait until this host alone has keepalived's address."""
    wait_until(lambda: holders(lab) == [host], 20, f"{what}: keepalived's address did not come to {host}", 0.05)
    print(f"{what}: keepalived's address is on {host}, {time.monotonic() - since:.1f} s after that", flush=True)


def main() -> None:
    """The whole run."""
    lab = Lab(f"k{os.getpid() % 100000}")
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        place.chmod(0o755)
        for host in TWO_HOSTS.hosts:
            (place / host).write_text("0\n")
            (place / host).chmod(0o666)
        notify = f'notify = ["{AGENTS / "keepalived-role"}", "{place}/{{name}}", "{{role}}"]'
        lab.up(Options(heartbeat_ms=HEARTBEAT_MS, settings=(notify,)))
        try:
            began = time.monotonic()
            start(lab, "b", place)
            start(lab, "a", place)
            follows(lab, "a", "keepalived is started on both, and a serves", began)
            began = time.monotonic()
            daemon = lab.daemon_pid("a")
            os.kill(daemon, 15)
            follows(lab, "b", "a's daemon is stopped, and b serves", began)
            lab.start_daemon("a")
            time.sleep(4)
            assert holders(lab) == ["b"], "the address went back, while b serves"
            began = time.monotonic()
            lab.crash("b")
            wait_until(lambda: netns.has_address(namespace(lab.name, "a"), _OTHER), 20, "a did not take the address")
            print(f"b loses power: a has keepalived's address {time.monotonic() - began:.1f} s after that", flush=True)
        except BaseException:
            for host in TWO_HOSTS.hosts:
                print(lab.store.log(f"keepalived-{host}").read_text()[-3000:])
            raise
        finally:
            lab.down()


if __name__ == "__main__":
    main()
