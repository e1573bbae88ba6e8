"""The download of a demonstration: curl to its end, a host that loses its power half way, and what the client saw."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nfq_failover.lab.demo.screen import Screen, Watch
from nfq_failover.lab.measure.verdict import Gap, Measurement, Packet, measure, read_capture
from nfq_failover.lab.testbed import Testbed


@dataclass(frozen=True, slots=True)
class Download:
    """A download that has ended. `crash_time`: Unix time, `crashed_at_bytes`: how much had been received then; None if
    it ended before it was half way."""

    path: Path
    exit_code: int
    message: str
    crash_time: float | None
    crashed_at_bytes: int | None
    capture: Path
    packets: list[Packet]
    result: Measurement

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of what was received; None if nothing was."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def stall(self) -> Gap | None:
        """The longest wait of the client; None if there was none, or if it did not end."""
        return self.result.stall if self.exit_code == 0 else None


def download(testbed: Testbed, screen: Screen, watch: Watch, curl: Sequence[str], size: int, scratch: Path) -> Download:
    """Run `curl`, which lacks its `--output`, to its end, and have `watch` crash its host when half of `size` is there.

    What curl received is in `scratch`, with the client's capture. Raises what the crash raised.
    """
    target, crashed_at = scratch / "download.bin", None

    def received() -> int:
        return target.stat().st_size if target.exists() else 0

    with testbed.capture(scratch / "client.pcap") as capture:
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end it in an orderly way.
        process = subprocess.Popen(
            [*curl, "--output", str(target)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                now = received()
                if crashed_at is None and now >= size / 2:
                    crashed_at = now
                    watch.crash()
                screen.progress(now, size, watch.who())
                time.sleep(0.02 if crashed_at is None else 0.1)
            screen.progress(received(), size, watch.who())
            screen.end_progress()
            watch.finish()
        finally:
            if process.poll() is None:
                process.kill()
            _, said = process.communicate()
    packets = read_capture(capture.path, testbed.service)
    result = measure(packets, capture.counts.missing if capture.counts else None)
    code = process.returncode
    return Download(target, code, said.strip(), watch.crash_time, crashed_at, capture.path, packets, result)
