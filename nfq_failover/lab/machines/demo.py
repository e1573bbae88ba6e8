"""The demonstration on two virtual machines: a real curl, a power-off by the hypervisor, a verdict.

Run as `script/vagrant-demo`. The machines stay up afterwards, and are a pair again: the one that was powered off is the
other one's backup.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nfq_failover.lab.demo.download import Download, download
from nfq_failover.lab.demo.screen import Screen, Watch, show
from nfq_failover.lab.demo.verdict import (
    Check,
    Facts,
    checks_of_the_connection,
    end_of_caption,
    facts_of,
    is_good,
    render,
    silence_in_words,
)
from nfq_failover.lab.machines.machines import MACHINES, Machines, other
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.testbed import wait_until

FILE: Final = "data.bin"
_BOOT_S: Final = 600.0
_SPEED_LIMIT: Final = "2M"


def judge(facts: Facts, fence_deadline_ms: int) -> list[Check]:
    """Every claim of the demonstration, each with its evidence."""
    at = f"when {(facts.crashed_at_bytes or 0) / 1e6:.1f} of {facts.size / 1e6:g} MB had arrived"
    crashed = facts.crashed_at_bytes is not None
    return [
        Check(
            crashed,
            "the primary was powered off half way",
            f"{facts.primary_before}, {at}" if crashed else "the download was over before it",
        ),
        *checks_of_the_connection(facts),
        Check(
            facts.silence_ms is not None and facts.silence_ms <= facts.detection_ms + fence_deadline_ms,
            "there was a pause, and no more",
            f"longest silence {silence_in_words(facts)}; the crash is detected after {facts.detection_ms} ms, then "
            "comes the fence",
        ),
        Check(
            facts.primary_after not in (None, facts.primary_before),
            "the other machine serves now",
            f"serving: {facts.primary_after or 'nobody'}",
        ),
    ]


def run_demo(machines: Machines, screen: Screen, scratch: Path, output: Path, keep_off: bool) -> bool:
    """Show all of it; True if the verdict is good. `scratch` is an empty directory."""
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    log = output / "vagrant.log"
    missing = [machine for machine in MACHINES if not machines.exists(machine) or not machines.is_on(machine)]
    if missing:
        screen.step(f"vagrant up {' '.join(missing)}: minutes, and many without hardware virtualization ({log})")
        machines.up(*missing, log=log)
    screen.step("waiting until one machine serves, and the other one protects it")
    primary = machines.wait_protected(_BOOT_S)
    machines.teach_neighbour()
    done, facts, fence_deadline_ms = _download(machines, screen, scratch, primary)
    pictures = draw(done, facts, output)
    checks = judge(facts, fence_deadline_ms)
    good = is_good(checks)
    if not good:
        screen.say(f"The capture is {output / 'client.pcap'}.")
        shutil.copy(done.capture, output / "client.pcap")
    if not keep_off:
        screen.step(f"vagrant up {primary}: the old primary comes back")
        machines.up(primary, log=log)
        serving = machines.wait_protected(_BOOT_S)
        screen.step(f"{serving} serves, {other(serving)} protects it; new connections are protected again")
        good = good and _protected_again(machines, screen, serving)
    screen.say(render(checks, good, pictures, time.monotonic() - began))
    return good


def _download(machines: Machines, screen: Screen, scratch: Path, primary: str) -> tuple[Download, Facts, int]:
    """The download, what is known of it, and the fence's deadline in ms."""
    url = f"http://{machines.service}/{FILE}"
    # From the disk, not from the service: what arrives is compared with what ought to.
    served = machines.run(primary, f"sha256sum /srv/nfq-failover/{FILE}").split()[0]
    size = int(machines.run(primary, f"stat -c %s /srv/nfq-failover/{FILE}"))
    heartbeat_ms = int(machines.setting(primary, "heartbeat_interval_ms"))
    heartbeats = int(machines.setting(primary, "heartbeat_count"))
    deadline_ms = int(machines.setting(primary, "fence_deadline_ms"))
    screen.step(f"curl {url} ({size / 1e6:g} MB); {primary} serves, and will be powered off half way")
    curl = ["curl", "--silent", "--show-error", "--limit-rate", _SPEED_LIMIT]
    # It gives up only when the slowest good fence would long be over.
    curl += ["--speed-limit", "1", "--speed-time", str(deadline_ms // 1000 + 30), url]
    # Nobody is asked during the download: a question takes an emulated machine seconds of its time.
    done = download(machines, screen, Watch(machines, primary, 0), curl, size, scratch)
    serves = None
    if done.crashed_at_bytes is not None:
        screen.step(f"the download has ended; asking {other(primary)} who serves")
        serves = machines.serving()
    facts = facts_of(
        done,
        size=size,
        sha256_served=served,
        primary_before=primary,
        primary_after=serves,
        detection_ms=heartbeat_ms * heartbeats,
        heartbeat_ms=heartbeat_ms,
    )
    return done, facts, deadline_ms


def draw(done: Download, facts: Facts, output: Path) -> list[Path]:
    """Draw the download, at the client; no picture if there is nothing to see."""
    from nfq_failover.lab.measure.plots import Incident, plot_download  # matplotlib takes a second

    stall, off = done.stall, facts.primary_before or "?"
    if stall is None:
        return []
    crash = min(max(done.crash_time or 0.0, stall.begin), stall.end)
    return plot_download(
        done.packets,
        Incident(crash, stall, stall.end, off, other(off)),
        output / "demo",
        title=f"{off} is powered off, {other(off)} goes on: one download, one TCP connection",
        caption=(
            f"Two virtual machines, captured at the client. curl, {facts.size / 1e6:g} MB at {_SPEED_LIMIT}B/s. "
            f"Detection {facts.detection_ms} ms, then the fence. {end_of_caption(facts)}"
        ),
    )


def _protected_again(machines: Machines, screen: Screen, serving: str) -> bool:
    """Whether a new, slow download is protected while it runs."""
    url = f"http://{machines.service}/{FILE}"
    curl = subprocess.Popen(["curl", "--silent", "--limit-rate", "100k", "--output", "/dev/null", url])
    try:
        wait_until(lambda: machines.protected_connections(serving) > 0, 60, "A new connection was not protected", 0.25)
    except LabError as error:
        screen.say(str(error))
        return False
    finally:
        curl.kill()
        curl.wait()
    screen.step(f"a new download from {serving} is protected")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; exit code: 0 good verdict, 1 bad verdict, 2 could not be run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="script/vagrant-demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("vagrant-output"), help="directory of logs and pictures")
    parser.add_argument("--keep-off", action="store_true", help="do not bring the old primary back at the end")
    arguments = parser.parse_args(argv)
    screen = Screen(sys.stdout)

    def demonstrate(scratch: Path) -> bool:
        with Machines() as machines:
            return run_demo(machines, screen, scratch, arguments.output, arguments.keep_off)

    return show(screen, demonstrate, "Interrupted. The machines are as they are: vagrant status")


if __name__ == "__main__":
    sys.exit(main())
