"""The pictures: both formats are written and say what they must; nothing is drawn from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover.constants import ACK, SYN
from nfq_failover.errors import CommandError
from nfq_failover.lab.measure.plots import biggest_stream, incident_of, main, plot_silences, plot_time_sequence
from nfq_failover.lab.measure.verdict import Packet, longest_stall, read_capture
from tests.support.synthetic import SERVICE, Segment, write_pcap

PNG = b"\x89PNG\r\n"


def stream(pause: float) -> list[Packet]:
    """A download of 200 kB in 200 segments, one each ms, that pauses in the middle; segment 100 comes twice."""
    packets = [
        Packet(1, 100.0, 0, False, 40_000, SYN, 0, 0, 0),
        Packet(2, 100.001, 0, True, 40_000, SYN | ACK, 0, 1, 0),
    ]
    for index in range(200):
        now = 100.01 + index / 1000 + (pause if index >= 100 else 0)
        place = index - (index >= 100)
        packets.append(Packet(0, now, 0, True, 40_000, ACK, 1 + place * 1000, 151, 1000, retransmission=index == 100))
        packets.append(Packet(0, now + 0.0005, 0, False, 40_000, ACK, 151, 1001 + place * 1000, 0))
    return packets


def test_the_time_sequence_plot_marks_crash_takeover_and_silence(tmp_path: Path) -> None:
    packets = stream(pause=0.150)
    gap = longest_stall(packets)
    assert gap is not None
    paths = plot_time_sequence(
        packets, incident_of(gap, "a", "b"), tmp_path / "demo", title="A title", caption="A caption"
    )
    assert [path.name for path in paths] == ["demo.png", "demo.svg"]
    assert paths[0].read_bytes().startswith(PNG)
    text = paths[1].read_text()
    # The stall ends with the first new byte, one millisecond after the retransmission.
    for words in (
        "A title",
        "A caption",
        "a loses power",
        "b goes on after",
        "silence 152 ms",
        "b takes over",
        "sent again",
    ):
        assert words in text


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    values = {"clone, echo": [150.0, 160.0], "clone, bulk": []}
    first = plot_silences(values, 150, tmp_path / "one", title="Silences")[0].read_bytes()
    assert first == plot_silences(values, 150, tmp_path / "two", title="Silences")[0].read_bytes()


def test_the_silence_plot_names_groups_and_detection_time(tmp_path: Path) -> None:
    paths = plot_silences({"clone, echo": [150.0, 160.0], "clone, bulk": [9000.0]}, 150, tmp_path / "s", title="T")
    text = paths[1].read_text()
    for words in ("clone, echo", "clone, bulk", "detection time 150 ms"):
        assert words in text


def test_nothing_is_drawn_from_nothing(tmp_path: Path) -> None:
    incident = incident_of(longest_stall(stream(0.1)) or pytest.fail("no stall"), "a", "b")
    for packets in ([], [packet for packet in stream(0.1) if not packet.from_service]):
        with pytest.raises(CommandError, match="nothing to draw"):
            plot_time_sequence(packets, incident, tmp_path / "x", title="")
    with pytest.raises(CommandError, match="nothing to draw"):
        plot_silences({"clone, echo": []}, 150, tmp_path / "x", title="")
    with pytest.raises(CommandError, match="nothing to draw"):
        biggest_stream([])
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_draws_the_biggest_connection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.pcap"
    small = [Segment(0.0, True, ACK, 1, 1, 10, client_port=1), Segment(0.1, True, ACK, 11, 1, 10, client_port=1)]
    big = [Segment(0.2 + n / 10, True, ACK, 1 + n * 1000, 1, 1000, client_port=2) for n in range(5)]
    write_pcap(path, small + big)
    assert biggest_stream(read_capture(path, SERVICE)) == 1
    assert main([str(path), str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.svg").exists()
    assert "stream=1" in (tmp_path / "out.svg").read_text()
    assert main([str(path), str(tmp_path / "out.png"), "--stream", "9"]) == 2
    assert "fewer than two packets" in capsys.readouterr().err
