"""The demonstration on two virtual machines: a real curl, a power-off by the hypervisor, a verdict.

Run as `script/vagrant-demo`. The machines stay up afterwards, and are a pair again: the one that was powered off is the
other one's backup.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.demo.screen import Screen
from nfq_failover.lab.demo.verdict import Check, render
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible
from nfq_failover.lab.machines.machines import MACHINES, Machines, other, wait_until
from nfq_failover.lab.measure.verdict import Gap, Packet, measure, read_capture
from nfq_failover.lab.netns import LabError

FILE: Final = "data.bin"
_BOOT_S: Final = 600.0
_SPEED_LIMIT: Final = "2M"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured. Sizes in bytes, times in milliseconds; None where there was nothing to measure."""

    size: int
    sha256_served: str
    sha256_received: str
    curl_exit_code: int
    curl_message: str
    cut_at_bytes: int | None
    off: str
    serves: str | None
    connections: int
    resets: int
    unseen_acknowledged: int
    dropped_by_capture: int
    silence_ms: float | None
    detection_ms: int
    fence_deadline_ms: int


def judge(facts: Facts) -> list[Check]:
    """Every claim of the demonstration, each with its evidence."""
    equal = facts.sha256_received == facts.sha256_served
    curl = "" if facts.curl_exit_code == 0 else f"; curl failed ({facts.curl_exit_code}): {facts.curl_message}"
    silence = "that never ended" if facts.silence_ms is None else f"{facts.silence_ms:.0f} ms"
    at = f"when {(facts.cut_at_bytes or 0) / 1e6:.1f} of {facts.size / 1e6:g} MB had arrived"
    return [
        Check(
            facts.cut_at_bytes is not None,
            "the primary was powered off half way",
            f"{facts.off}, {at}" if facts.cut_at_bytes is not None else "the download was over before it",
        ),
        Check(
            equal and facts.curl_exit_code == 0,
            "the file is intact",
            (f"SHA-256 {facts.sha256_served[:16]}… at both ends" if equal else "the SHA-256 differ") + curl,
        ),
        Check(
            facts.connections == 1 and facts.resets == 0,
            "it was one TCP connection",
            f"connections {facts.connections}, RST from the service {facts.resets}",
        ),
        Check(
            facts.unseen_acknowledged == 0 and facts.dropped_by_capture == 0,
            "nothing was acknowledged that was not sent",
            f"such ACKs {facts.unseen_acknowledged}, packets that the capture lost {facts.dropped_by_capture}",
        ),
        Check(
            facts.silence_ms is not None and facts.silence_ms <= facts.detection_ms + facts.fence_deadline_ms,
            "there was a pause, and no more",
            f"longest silence {silence}; the crash is detected after {facts.detection_ms} ms, then comes the fence",
        ),
        Check(
            facts.serves == other(facts.off),
            "the other machine serves now",
            f"serving: {facts.serves or 'nobody'}",
        ),
    ]


def run_demo(machines: Machines, screen: Screen, scratch: Path, output: Path, keep_off: bool) -> bool:
    """All of it; True if the verdict is good. `scratch` is an empty directory."""
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
    facts, pictures = _download(machines, screen, scratch, primary, output)
    good = all(check.ok for check in judge(facts))
    if not good:
        screen.say(f"The capture is {output / 'client.pcap'}.")
        (output / "client.pcap").write_bytes((scratch / "client.pcap").read_bytes())
    if not keep_off:
        screen.step(f"vagrant up {primary}: the old primary comes back")
        machines.up(primary, log=log)
        serving = machines.wait_protected(_BOOT_S)
        screen.step(f"{serving} serves, {other(serving)} protects it; new connections are protected again")
        good = good and _protected_again(machines, screen, serving)
    screen.say(render(judge(facts), good, pictures, time.monotonic() - began))
    return good


def _download(
    machines: Machines, screen: Screen, scratch: Path, primary: str, output: Path
) -> tuple[Facts, list[Path]]:
    url = f"http://{machines.service}/{FILE}"
    # From the disk, not from the service: what arrives is compared with what ought to.
    served = machines.run(primary, f"sha256sum /srv/nfq-failover/{FILE}").split()[0]
    size = int(machines.run(primary, f"stat -c %s /srv/nfq-failover/{FILE}"))
    detection = int(machines.setting(primary, "heartbeat_interval_ms")) * int(
        machines.setting(primary, "heartbeat_count")
    )
    deadline = int(machines.setting(primary, "fence_deadline_ms"))
    screen.step(f"curl {url} ({size / 1e6:g} MB); {primary} serves, and will be powered off half way")
    target = scratch / "download.bin"
    cut_at = None
    off_at = 0.0
    serves: str | None = None
    with machines.capture(scratch / "client.pcap") as capture:
        command = ["curl", "--silent", "--show-error", "--limit-rate", _SPEED_LIMIT, "--output", str(target)]
        # Gives up only when the slowest good fence would long be over.
        command += ["--speed-limit", "1", "--speed-time", str(deadline // 1000 + 30), url]
        curl = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while curl.poll() is None:
                received = target.stat().st_size if target.exists() else 0
                if cut_at is None and received >= size / 2:
                    cut_at, off_at = received, time.time()
                    machines.power_off(primary)
                screen.progress(received, size, f"{primary} is off" if cut_at else f"{primary} serves")
                time.sleep(0.02 if cut_at is None else 0.1)
        finally:
            if curl.poll() is None:
                curl.kill()
            _, said = curl.communicate()
        screen.end_progress()
        if cut_at is not None:
            screen.step(f"the download has ended; asking {other(primary)} who serves")
            serves = machines.serving()
    packets = read_capture(capture.path, machines.service)
    result = measure(packets, capture.counts.missing if capture.counts else None)
    facts = Facts(
        size=size,
        sha256_served=served,
        sha256_received=hashlib.sha256(target.read_bytes()).hexdigest() if target.exists() else "",
        curl_exit_code=curl.returncode,
        curl_message=said.strip(),
        cut_at_bytes=cut_at,
        off=primary,
        serves=serves,
        connections=result.connections,
        resets=len(result.resets_from_service),
        unseen_acknowledged=len(result.unseen_acknowledged),
        dropped_by_capture=result.dropped_by_capture or 0,
        silence_ms=result.stall.ms if result.stall and curl.returncode == 0 else None,
        detection_ms=detection,
        fence_deadline_ms=deadline,
    )
    return facts, draw(packets, result.stall, off_at, facts, output) if facts.silence_ms is not None else []


def draw(packets: Sequence[Packet], stall: Gap | None, off_at: float, facts: Facts, output: Path) -> list[Path]:
    """The picture of the download, at the client; none if there is nothing to see. `off_at`: Unix time."""
    from nfq_failover.lab.measure.plots import Incident, biggest_stream, plot_time_sequence  # matplotlib takes a second

    if stall is None:
        return []
    stream, after = biggest_stream(packets), other(facts.off)
    return plot_time_sequence(
        [packet for packet in packets if packet.stream == stream],
        Incident(min(max(off_at, stall.begin), stall.end), stall, stall.end, facts.off, after),
        output / "demo",
        title=f"{facts.off} is powered off, {after} goes on: one download, one TCP connection",
        caption=(
            f"Two virtual machines, captured at the client. curl, {facts.size / 1e6:g} MB at {_SPEED_LIMIT}B/s. "
            f"Detection {facts.detection_ms} ms, then the fence. Connections {facts.connections}, RST {facts.resets}, "
            f"SHA-256 {'equal' if facts.sha256_received == facts.sha256_served else 'DIFFERENT'}."
        ),
    )


def _protected_again(machines: Machines, screen: Screen, serving: str) -> bool:
    """Whether a new, slow download is protected while it runs."""
    url = f"http://{machines.service}/{FILE}"
    curl = subprocess.Popen(["curl", "--silent", "--limit-rate", "100k", "--output", "/dev/null", url])
    try:
        wait_until(lambda: machines.protected_connections(serving) > 0, 60, "A new connection was not protected")
    except LabError as error:
        screen.say(str(error))
        return False
    finally:
        curl.kill()
        curl.wait()
    screen.step(f"a new download from {serving} is protected")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 good verdict, 1 bad verdict, 2 could not be run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="script/vagrant-demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("vagrant-output"), help="directory of logs and pictures")
    parser.add_argument("--keep-off", action="store_true", help="do not bring the old primary back at the end")
    arguments = parser.parse_args(argv)
    screen = Screen(sys.stdout)
    try:
        with (
            interruptible(),
            Machines() as machines,
            tempfile.TemporaryDirectory(prefix="nfq-failover-demo-") as scratch,
        ):
            return 0 if run_demo(machines, screen, Path(scratch), arguments.output, arguments.keep_off) else 1
    except (CommandError, LabError) as error:
        screen.end_progress()
        print(f"The demo could not be run: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        screen.end_progress()
        print("Interrupted. The machines are as they are: vagrant status", file=sys.stderr)
        return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
