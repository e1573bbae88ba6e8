"""Pictures: the client's time-sequence plot of one crash, and the silences of many.

python -m nfq_failover.lab.measure.plots CAPTURE OUTPUT [--service 10.77.0.100]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

from nfq_failover.constants import SYN
from nfq_failover.errors import CommandError
from nfq_failover.lab.measure.verdict import Gap, Packet, longest_stall, read_capture
from nfq_failover.lab.topology import TWO_HOSTS

FORMATS: Final = ("png", "svg")
_DPI: Final = 150
_MAX_POINTS: Final = 1500
# An SVG gets more marks than these as an embedded bitmap.
_MAX_VECTOR_MARKS: Final = 3000

INK: Final = "#22303c"
BEFORE: Final = "#1f6fb4"
AFTER: Final = "#d9760b"
CLIENT: Final = "#5b8c5a"
CRASH: Final = "#c2272d"
SHADE: Final = "#f6dede"
GRID: Final = "#e3e7ea"

_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa5ad",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "figure.facecolor": "white",
}


@dataclass(frozen=True, slots=True)
class Incident:
    """What is marked in a time-sequence plot. Unix times in seconds.

    `crash`: when the primary lost power. `silence`: the stream stood still, from the last byte of the old primary that
    came through (some may still be on their way after the crash) to the first new byte of the survivor. `takeover`:
    the first packet of the survivor, which may repeat old bytes. `before` and `after` name the hosts.
    """

    crash: float
    silence: Gap
    takeover: float
    before: str
    after: str

    def is_before(self, when: float) -> bool:
        """Whether what the client heard at this time came from the old primary."""
        return when < (self.silence.begin + self.silence.end) / 2


def incident_of(gap: Gap, before: str, after: str) -> Incident:
    """The incident whose silence is `gap`, for a capture of which no more is known."""
    return Incident(gap.begin, gap, gap.end, before, after)


def plot_time_sequence(
    packets: Sequence[Packet], incident: Incident, output: Path, *, title: str, caption: str = ""
) -> list[Path]:
    """Draw how one stream of the service advanced at the client: all of it, and the crash in close-up.

    `packets` are those of one connection. Writes `output` with each suffix of FORMATS and returns these paths. Raises
    CommandError if the capture holds no data of the service.
    """
    data = [p for p in packets if p.from_service and p.length]
    if not data:
        raise CommandError("there is no data from the service in this capture; nothing to draw")
    start = packets[0].time
    with plt.rc_context(_STYLE):
        figure, (whole, close) = plt.subplots(1, 2, figsize=(11.5, 5.2), width_ratios=(1.35, 1))
        _draw_whole(whole, data, incident, start)
        _draw_close(close, packets, data, incident)
        figure.suptitle(title, x=0.012, y=0.985, ha="left", fontsize=13.5, fontweight="bold")
        figure.text(0.012, 0.015, caption, ha="left", va="bottom", fontsize=8.5, color="#5d6b75")
        figure.tight_layout(rect=(0, 0.045, 1, 0.995), w_pad=2.5)
        return _save(figure, output)


def plot_download(
    packets: Sequence[Packet], incident: Incident, output: Path, *, title: str, caption: str
) -> list[Path]:
    """Draw the connection of a capture that brought most, as `plot_time_sequence` does. Raises CommandError."""
    stream = biggest_stream(packets)
    mine = [packet for packet in packets if packet.stream == stream]
    return plot_time_sequence(mine, incident, output, title=title, caption=caption)


def _draw_whole(axes: Any, data: Sequence[Packet], incident: Incident, start: float) -> None:
    times = np.array([p.time for p in data]) - start
    ends = np.maximum.accumulate([p.seq_end - 1 for p in data]) / 1e6
    crash, takeover = incident.crash - start, incident.takeover - start
    before = np.array([incident.is_before(p.time) for p in data])
    for mask, color, name in ((before, BEFORE, incident.before), (~before, AFTER, incident.after)):
        if mask.any():
            xs, ys = _thin(times[mask], ends[mask])
            axes.plot(xs, ys, color=color, linewidth=2.6, solid_capstyle="round", label=f"sent by {name}")
    level = float(ends[before][-1]) if before.any() else 0.0
    axes.plot(
        [incident.silence.begin - start, incident.silence.end - start],
        [level, level],
        color=CRASH,
        linewidth=1.2,
        linestyle=":",
    )
    axes.axvline(crash, color=CRASH, linewidth=1.1)
    axes.axvline(takeover, color=AFTER, linewidth=1.1, linestyle="--")
    right = (takeover - times[0]) < 0.62 * (times[-1] - times[0])
    axes.annotate(
        f"{incident.before} loses power\nat {crash:.2f} s",
        xy=(crash, level),
        xytext=(-14, 22),
        textcoords="offset points",
        ha="right",
        color=CRASH,
        fontweight="bold",
    )
    axes.annotate(
        f"{incident.after} goes on after\n{incident.silence.ms:.0f} ms of silence",
        xy=(takeover, level),
        xytext=(14, -34) if right else (-14, -46),
        textcoords="offset points",
        ha="left" if right else "right",
        color=AFTER,
        fontweight="bold",
    )
    axes.set_xlim(left=min(0.0, float(times[0])))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the client's SYN")
    axes.set_ylabel("received by the client, MB")
    axes.set_title("The whole transfer", loc="left", fontsize=10.5)
    axes.legend(loc="upper left", frameon=False)


def _draw_close(axes: Any, packets: Sequence[Packet], data: Sequence[Packet], incident: Incident) -> None:
    silence = incident.silence.end - incident.crash
    left, right = incident.crash - 0.45 * silence, incident.silence.end + 0.55 * silence
    known = [p for p in data if incident.is_before(p.time)]
    base = max((p.seq_end for p in known), default=data[0].seq)

    def milliseconds(when: float) -> float:
        return (when - incident.crash) * 1000

    shown = [p for p in data if left <= p.time <= right]
    raster = len(shown) > _MAX_VECTOR_MARKS
    lines = [
        [(milliseconds(p.time), (p.seq - base) / 1000), (milliseconds(p.time), (p.seq_end - base) / 1000)]
        for p in shown
    ]
    colors = [BEFORE if incident.is_before(p.time) else AFTER for p in shown]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=2.6, rasterized=raster, zorder=3))
    again = [p for p in shown if p.retransmission]
    if again:
        axes.plot(
            [milliseconds(p.time) for p in again],
            [(p.seq_end - base) / 1000 for p in again],
            linestyle="none",
            marker="o",
            markersize=3.4,
            markerfacecolor="none",
            markeredgecolor=CRASH,
            zorder=4,
            label="sent again",
            rasterized=raster,
        )
    acks = [p for p in packets if not p.from_service and not p.flags & SYN and left <= p.time <= right]
    if acks:
        axes.step(
            [milliseconds(p.time) for p in acks],
            [(p.ack - base) / 1000 for p in acks],
            where="post",
            color=CLIENT,
            linewidth=1.0,
            alpha=0.7,
            label="acknowledged by the client",
            rasterized=len(acks) > _MAX_VECTOR_MARKS,
        )
    _mark_silence(axes, milliseconds, incident)
    axes.set_xlim(milliseconds(left), milliseconds(right))
    _limit_close(axes, lines, [(p.ack - base) / 1000 for p in acks])
    axes.set_xlabel("milliseconds after the crash")
    axes.set_ylabel("relative to the last byte before the crash, kB")
    axes.set_title("The takeover, segment by segment", loc="left", fontsize=10.5)
    if again or acks:
        axes.legend(loc="upper left", framealpha=0.9, edgecolor="none")


def _limit_close(axes: Any, lines: Sequence[Sequence[tuple[float, float]]], acks: Sequence[float]) -> None:
    heights = [y for line in lines for _, y in line] + list(acks)
    low, high = (min(heights), max(heights)) if heights else (-1.0, 1.0)
    room = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - room, high + 4 * room)


def _mark_silence(axes: Any, milliseconds: Callable[[float], float], incident: Incident) -> None:
    begin_ms, end_ms = milliseconds(incident.silence.begin), milliseconds(incident.silence.end)
    takeover_ms = milliseconds(incident.takeover)
    axes.axvspan(begin_ms, end_ms, color=SHADE, linewidth=0, zorder=0)
    axes.axvline(0, color=CRASH, linewidth=1.1)
    axes.axvline(takeover_ms, color=AFTER, linewidth=1.1, linestyle="--")
    place = axes.get_xaxis_transform()
    axes.annotate(
        "", xy=(begin_ms, 0.09), xytext=(end_ms, 0.09), xycoords=place, textcoords=place,
        arrowprops={"arrowstyle": "<->", "color": CRASH, "linewidth": 1.2},
    )  # fmt: skip
    axes.text(
        (begin_ms + end_ms) / 2, 0.115, f"silence {incident.silence.ms:.0f} ms",
        transform=place, ha="center", va="bottom", color=CRASH, fontweight="bold",
    )  # fmt: skip
    axes.text(0, 0.02, "crash ", transform=place, ha="right", color=CRASH)
    axes.text(takeover_ms, 0.02, f" {incident.after} takes over", transform=place, ha="left", color=AFTER)


def plot_silences(
    groups: Mapping[str, Sequence[float]], detection_ms: float, output: Path, *, title: str
) -> list[Path]:
    """Draw the longest silence of each run, one row per group, beside the detection time. All times in ms.

    Writes `output` with each suffix of FORMATS and returns these paths. Raises CommandError if there is no run.
    """
    if not any(groups.values()):
        raise CommandError("there is no finished run yet; nothing to draw")
    rng = np.random.default_rng(1)  # the jitter is decoration: the same picture each time
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(9.5, 1.5 + 0.42 * len(groups)))
        for row, values in enumerate(groups.values()):
            if len(values):
                jitter = rng.uniform(-0.22, 0.22, len(values))
                axes.plot(values, row + jitter, "o", color=BEFORE, markersize=4, alpha=0.55, markeredgewidth=0)
                middle = float(np.median(values))
                axes.plot([middle, middle], [row - 0.34, row + 0.34], color=AFTER, linewidth=2.4)
        axes.axvline(detection_ms, color=CRASH, linewidth=1.2, linestyle="--")
        axes.text(
            detection_ms, -0.75, f" detection time {detection_ms:g} ms", color=CRASH, ha="left", va="center",
            fontweight="bold",
        )  # fmt: skip
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.5, -1.0)
        worst = max(max(values) for values in groups.values() if len(values))
        if worst > 8 * detection_ms:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.08 * max(worst, 1.3 * detection_ms))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("longest silence that the client saw, ms (one dot per crash, the bar is the median)")
        axes.set_title(title, loc="left", fontweight="bold")
        figure.tight_layout()
        return _save(figure, output)


def _thin(xs: Any, ys: Any) -> tuple[Any, Any]:
    """At most _MAX_POINTS points of a curve, the last one among them."""
    step = max(1, -(-len(xs) // _MAX_POINTS))
    keep = np.unique(np.append(np.arange(0, len(xs), step), len(xs) - 1))
    return xs[keep], ys[keep]


def _save(figure: Any, output: Path) -> list[Path]:
    paths = [output.with_suffix(f".{name}") for name in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=_DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a capture by hand: the incident is its longest stall."""
    parser = argparse.ArgumentParser(prog="python -m nfq_failover.lab.measure.plots", description="Draw a capture.")
    parser.add_argument("capture", type=Path)
    parser.add_argument("output", type=Path, help=f"the suffix is replaced by each of: {', '.join(FORMATS)}")
    parser.add_argument("--service", default=TWO_HOSTS.service, help="the service address (default: the lab's)")
    parser.add_argument(
        "--stream", type=int, help="tshark's number of the connection (default: the one with most data)"
    )
    arguments = parser.parse_args(argv)
    try:
        packets = read_capture(arguments.capture, arguments.service)
        stream = arguments.stream if arguments.stream is not None else biggest_stream(packets)
        chosen = [p for p in packets if p.stream == stream]
        gap = longest_stall(chosen)
        if gap is None:
            raise CommandError(f"connection {stream} has fewer than two packets from the service; nothing to draw")
        incident = incident_of(gap, "A", "B")
        paths = plot_time_sequence(chosen, incident, arguments.output, title=f"{arguments.capture.name}, {stream=}")
    except CommandError as error:
        print(error, file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


def biggest_stream(packets: Sequence[Packet]) -> int:
    """The connection that brought most from the service. Raises CommandError for an empty capture."""
    totals: dict[int, int] = {}
    for packet in packets:
        totals[packet.stream] = totals.get(packet.stream, 0) + packet.from_service * packet.length
    if not totals:
        raise CommandError("the capture is empty; nothing to draw")
    return max(totals, key=lambda stream: totals[stream])


if __name__ == "__main__":
    sys.exit(main())
