"""The demonstration: real nginx on both servers, a real curl, a power loss half way, and a verdict.

Run as `script/demo`. What it makes is taken away at its end, on Ctrl-C as well; the picture stays in demo-output/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.demo.download import Download, download
from nfq_failover.lab.demo.screen import Screen, Watch, show
from nfq_failover.lab.demo.verdict import Facts, end_of_caption, facts_of, is_good, judge, render
from nfq_failover.lab.driver import LabDriver
from nfq_failover.lab.measure.verdict import Gap
from nfq_failover.lab.state import Options as LabOptions
from nfq_failover.lab.workloads.__main__ import parse_size
from nfq_failover.lab.workloads.content import Content

LAB_NAME: Final = "nfqfdemo"
FILE_NAME: Final = "data.bin"
HEARTBEAT_COUNT: Final = 3  # the daemon's default: this many missing heartbeats are a crash

NGINX_CONFIG: Final = """\
user root;
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 80;
        root {content};
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the demo is told. `size` in bytes; `rate` in tc's syntax."""

    tap: str
    heartbeat_ms: int
    rate: str
    size: int
    output: Path
    plain: bool = False
    name: str = LAB_NAME
    stall_timeout_s: int = 15

    @property
    def detection_ms(self) -> int:
        """How long the backup waits before it takes the primary for dead."""
        return self.heartbeat_ms * HEARTBEAT_COUNT


def run_demo(options: Options, screen: Screen, scratch: Path) -> bool:
    """Show the whole demonstration; True if the verdict is good. `scratch` is an empty directory."""
    began = time.monotonic()
    screen.step(f"making a file of {options.size / 1e6:g} MB")
    digest = _make_site(scratch, options.size)
    driver = LabDriver(options.name)
    driver.clear()  # what a demo left behind that was killed
    with driver:
        kind = "plain, NO protection" if options.plain else f"{options.tap} tap"
        screen.step(f"starting the lab: a client, two servers, {kind}, {options.rate}")
        driver.up(
            LabOptions(tap=options.tap, heartbeat_ms=options.heartbeat_ms, rate=options.rate, plain=options.plain)
        )
        screen.step("starting nginx on both servers")
        driver.lab.serve(["sh", "-c", _nginx_command(scratch)])
        before = driver.serving()
        done = _download(driver, options, screen, scratch, before or "?")
        facts = facts_of(
            done,
            size=options.size,
            sha256_served=digest,
            primary_before=before,
            primary_after=driver.serving(),
            detection_ms=options.detection_ms,
            heartbeat_ms=options.heartbeat_ms,
        )
        checks = judge(facts)
        good = is_good(checks)
        options.output.mkdir(parents=True, exist_ok=True)
        if not good:
            driver.keep_logs(options.output)
            shutil.copy(done.capture, options.output)
    screen.step("drawing")
    pictures = _draw(done, facts, options) if facts.silence_ms is not None else []
    (options.output / "demo.json").write_text(json.dumps(asdict(facts), indent=2) + "\n")
    screen.say(render(checks, good, pictures, time.monotonic() - began))
    if not good:
        screen.say(f"The capture and the daemons' logs are in {options.output}/.")
    return good


def _make_site(scratch: Path, size: int) -> str:
    """The file that both servers serve, and nginx's configuration; returns the file's SHA-256."""
    content = scratch / "content"
    content.mkdir()
    stream = Content(seed=os.getpid())
    digest = hashlib.sha256()
    with (content / FILE_NAME).open("wb") as file:
        for offset in range(0, size, 1 << 20):
            chunk = stream.read(offset, min(1 << 20, size - offset))
            digest.update(chunk)
            file.write(chunk)
    (scratch / "nginx.conf").write_text(NGINX_CONFIG.format(content=content))
    return digest.hexdigest()


def _nginx_command(scratch: Path) -> str:
    """A shell command that becomes an nginx with a run directory of its own: one per server and boot."""
    return (
        f'run=$(mktemp -d {scratch}/nginx-XXXXXX) && exec nginx -p "$run" -c {scratch}/nginx.conf -e "$run/error.log"'
    )


def _download(driver: LabDriver, options: Options, screen: Screen, scratch: Path, before: str) -> Download:
    screen.step(f"curl downloads from {driver.service}; {before} is the primary and will lose its power half way")
    curl = driver.in_client("curl", "--silent", "--show-error", "--speed-limit", "1")
    curl += ["--speed-time", str(options.stall_timeout_s), f"http://{driver.service}/{FILE_NAME}"]
    watch = Watch(driver, before, options.stall_timeout_s)
    return download(driver, screen, watch, curl, options.size, scratch)


def _draw(done: Download, facts: Facts, options: Options) -> list[Path]:
    from nfq_failover.lab.measure.plots import Incident, plot_download  # matplotlib takes a second

    gap = done.stall or Gap(0.0, 0.0)
    heard = done.result.silence.end if done.result.silence else gap.end
    takeover = heard if gap.begin < heard < gap.end else gap.end
    before, after = facts.primary_before or "?", facts.primary_after or "?"
    return plot_download(
        done.packets,
        Incident(done.crash_time or gap.begin, gap, takeover, before, after),
        options.output / "demo",
        title=f"{before} loses power, {after} goes on: one download, one TCP connection",
        caption=(
            f"Captured at the client. curl, {facts.size / 1e6:g} MB at {options.rate}, {options.tap} tap. "
            f"Heartbeat {options.heartbeat_ms} ms, detection {options.detection_ms} ms. {end_of_caption(facts)}"
        ),
    )


def _only_one(name: str) -> socket.socket:
    """Hold the lab's name on this host for as long as the process lives; no file is left."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0nfq-failover-demo-{name}")
    except OSError as error:
        raise CommandError(
            "Another demo is running on this host. Wait for its end, or give this one another --name."
        ) from error
    return lock


def add_parser(subparsers: Any) -> None:
    """Add `demo` to the command line."""
    parser = subparsers.add_parser(
        "demo", help="one download, one power loss, a verdict and a picture", description=__doc__
    )
    parser.add_argument("--tap", choices=("clone", "multicast"), default="clone")
    parser.add_argument("--heartbeat-ms", type=int, default=50)
    parser.add_argument("--rate", default="200mbit", help="of the client's link, in tc's syntax")
    parser.add_argument("--size", type=parse_size, default=100_000_000, help="of the file, like 100M")
    parser.add_argument("--plain", action="store_true", help="without protection, to see what happens otherwise")
    parser.add_argument("--name", default=LAB_NAME, help="of the lab, up to 10 characters")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="directory of the picture")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; exit code: 0 good verdict, 1 bad verdict, 2 could not be run, 130 interrupted."""
    options = Options(
        *(arguments.tap, arguments.heartbeat_ms, arguments.rate, arguments.size, arguments.output, arguments.plain),
        name=arguments.name,
    )
    if os.geteuid() != 0:
        print("The demo makes network namespaces and needs root. Run: sudo script/demo", file=sys.stderr)
        return 2
    screen = Screen(sys.stdout)

    def demonstrate(scratch: Path) -> bool:
        with _only_one(options.name):
            return run_demo(options, screen, scratch)

    return show(screen, demonstrate, "Interrupted; everything has been taken away.")
