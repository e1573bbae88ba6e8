"""Judging captures: each fault is made by hand and must be found; a clean capture has none."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_failover.constants import ACK, FIN, PSH, RST, SYN
from nfq_failover.errors import CommandError
from nfq_failover.lab.measure.capture import parse_counts, read_counts
from nfq_failover.lab.measure.verdict import (
    Measurement,
    Reassembly,
    count_connections,
    describe,
    longest_silence,
    longest_stall,
    main,
    measure,
    read_capture,
    timestamps_back,
    window_edges_back,
)
from tests.support.synthetic import CLIENT, SERVICE, Segment, write_pcap

ISS = 2**32 - 2000  # wraps in mid-transfer
IRS = 5000


def download(pause: float = 0.0) -> list[Segment]:
    """A whole connection: 150 bytes up, ten segments of 1000 down, with a pause after the fifth, and a clean end."""
    segments = [
        Segment(0.000, False, SYN, IRS, tsval=10),
        Segment(0.001, True, SYN | ACK, ISS, IRS + 1, tsval=7000),
        Segment(0.002, False, ACK, IRS + 1, ISS + 1, tsval=11),
        Segment(0.003, False, ACK | PSH, IRS + 1, ISS + 1, 150, tsval=12),
    ]
    for index in range(10):
        now = 0.010 + index * 0.010 + (pause if index >= 5 else 0)
        at = ISS + 1 + index * 1000
        segments.append(Segment(now, True, ACK, at, IRS + 151, 1000, tsval=7010 + index))
        segments.append(Segment(now + 0.001, False, ACK, IRS + 151, at + 1000, tsval=20 + index))
    end = 0.12 + pause
    segments.append(Segment(end, False, ACK | FIN, IRS + 151, ISS + 10_001, tsval=40))
    segments.append(Segment(end + 0.001, True, ACK | FIN, ISS + 10_001, IRS + 152, tsval=7050))
    segments.append(Segment(end + 0.002, False, ACK, IRS + 152, ISS + 10_002, tsval=41))
    return segments


def judge(tmp_path: Path, segments: list[Segment]) -> Measurement:
    path = tmp_path / "client.pcap"
    write_pcap(path, segments)
    return measure(read_capture(path, SERVICE), 0)


def test_a_clean_download_has_no_problem(tmp_path: Path) -> None:
    result = judge(tmp_path, download())
    assert result.problems() == []
    assert (result.connections, result.bytes_from_service, result.bytes_from_client) == (1, 10_000, 150)
    assert result.retransmissions == 0
    assert result.silence is not None
    assert result.silence.ms == pytest.approx(21, abs=0.01)


def test_the_pause_is_the_silence_and_the_stall(tmp_path: Path) -> None:
    result = judge(tmp_path, download(pause=0.150))
    assert result.problems() == []
    for gap in (result.silence, result.stall):
        assert gap is not None
        assert gap.ms == pytest.approx(160, abs=0.01)
        assert gap.begin == pytest.approx(1_700_000_000.050, abs=1e-4)
        assert gap.end == pytest.approx(1_700_000_000.210, abs=1e-4)


def test_a_keepalive_breaks_the_silence_but_not_the_stall(tmp_path: Path) -> None:
    segments = download(pause=0.150)
    segments.insert(14, Segment(0.130, True, ACK, ISS + 5001, IRS + 151, tsval=7030))
    for segment_index in range(15, len(segments)):
        segment = segments[segment_index]
        if segment.tsval is not None and segment.from_service:
            segments[segment_index] = replace(segment, tsval=segment.tsval + 100)
    result = judge(tmp_path, segments)
    assert result.silence is not None
    assert result.stall is not None
    assert result.silence.ms == pytest.approx(80, abs=0.01)
    assert result.stall.ms == pytest.approx(160, abs=0.01)


def test_time_after_the_last_data_is_not_silence(tmp_path: Path) -> None:
    segments = download()[:-3]
    segments.append(Segment(60.0, True, ACK, ISS + 10_001, IRS + 151, tsval=70_000))
    result = judge(tmp_path, segments)
    assert result.silence is not None
    assert result.silence.ms < 30


def test_an_acknowledgement_of_bytes_never_sent_is_found(tmp_path: Path) -> None:
    from_client, from_service = download(), download()
    from_client[9] = replace(from_client[9], ack=from_client[9].ack + 7)
    from_service[8] = replace(from_service[8], ack=from_service[8].ack + 7)
    for segments, frame in ((from_client, 10), (from_service, 9)):
        result = judge(tmp_path, segments)
        assert result.ack_lost_segments == [frame]
        assert frame in result.unseen_acknowledged
        assert "acknowledgement of a byte that was never seen" in result.problems()[0]


def test_a_packet_that_the_capture_missed_is_found(tmp_path: Path) -> None:
    segments = download()
    del segments[8]
    assert judge(tmp_path, segments).problems()


def test_resets_are_told_apart(tmp_path: Path) -> None:
    segments = [*download()[:10], Segment(0.05, True, RST | ACK, ISS + 3001, IRS + 151)]
    result = judge(tmp_path, segments)
    assert (result.resets_from_service, result.resets_from_client) == ([11], [])
    assert "reset from the service" in result.problems()[0]
    result = judge(tmp_path, [*download(), Segment(0.5, False, RST, IRS + 152)])
    assert (result.resets_from_service, len(result.resets_from_client)) == ([], 1)
    assert result.problems() == []


def test_connections_are_counted_by_their_first_syn(tmp_path: Path) -> None:
    one = download()
    again = [one[0], replace(one[0], time=0.0005), *one[1:]]
    assert judge(tmp_path, again).connections == 1
    other = [replace(segment, time=segment.time + 1, client_port=40_001) for segment in one]
    assert judge(tmp_path, one + other).connections == 2


def test_timestamps_that_go_back_are_found(tmp_path: Path) -> None:
    segments = download()
    segments[14] = replace(segments[14], tsval=6000)
    result = judge(tmp_path, segments)
    assert result.timestamps_back == [15]
    assert "timestamp" in result.problems()[0]


def test_timestamps_may_wrap_and_retransmissions_may_be_newer(tmp_path: Path) -> None:
    path = tmp_path / "wrap.pcap"
    packets = [
        Segment(0.0, True, ACK, 1000, 1, 100, tsval=2**32 - 5),
        Segment(0.1, True, ACK, 1100, 1, 100, tsval=3),
        Segment(0.2, True, ACK, 1000, 1, 100, tsval=90),
        Segment(0.3, True, ACK, 1200, 1, 100, tsval=80),
    ]
    write_pcap(path, packets)
    assert timestamps_back(read_capture(path, SERVICE)) == []


def test_a_window_edge_that_moves_left_is_found(tmp_path: Path) -> None:
    path = tmp_path / "window.pcap"
    packets = [
        Segment(0.0, True, ACK, 1000, 1, window=1000),
        Segment(0.1, True, ACK, 1000, 501, window=500),  # the same edge
        Segment(0.2, True, ACK, 1000, 401, window=100),  # reordered: an older acknowledgement
        Segment(0.3, True, ACK, 1000, 601, window=399),  # one byte taken back
    ]
    write_pcap(path, packets)
    assert window_edges_back(read_capture(path, SERVICE)) == [4]


def test_an_empty_capture_proves_nothing(tmp_path: Path) -> None:
    result = judge(tmp_path, [])
    assert result.problems() == ["the capture is empty"]
    assert (result.silence, result.stall) == (None, None)
    assert (longest_silence([]), longest_stall([]), count_connections([])) == (None, None, 0)


def test_packets_that_the_capture_dropped_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "client.pcap"
    write_pcap(path, download())
    assert "lacks 3 packets" in measure(read_capture(path, SERVICE), 3).problems()[0]


def test_what_tcpdump_says_at_its_end(tmp_path: Path) -> None:
    text = "listening on eth0\n120 packets captured\n123 packets received by filter\n2 packets dropped by kernel\n"
    counts = parse_counts(text)
    assert (counts.captured, counts.received, counts.dropped, counts.missing) == (120, 123, 2, 3)
    assert parse_counts("1 packet captured\n1 packet received by filter\n0 packets dropped by kernel\n").missing == 0
    asked = "tcpdump: 5 packets captured, 9 packets received by filter, 0 packets dropped by kernel\n"
    assert parse_counts(asked).missing == 4
    assert (
        parse_counts(asked + "9 packets captured\n9 packets received by filter\n0 packets dropped by kernel\n").missing
        == 0
    )
    with pytest.raises(CommandError, match="permission"):
        parse_counts("eth0: You don't have permission")
    assert read_counts(tmp_path / "foreign.pcap") is None


def test_the_command_line_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.pcap"
    write_pcap(path, download())
    assert main([str(path)]) == 0
    assert "no problem found" in capsys.readouterr().out
    assert main([str(path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["connections"], values["problems"]) == (1, [])
    Path(f"{path}.tcpdump").write_text(
        "1 packets captured\n5 packets received by filter\n4 packets dropped by kernel\n"
    )
    assert main([str(path)]) == 1
    assert "PROBLEMS" in capsys.readouterr().out
    assert main([str(tmp_path / "missing.pcap")]) == 2
    assert "tshark can't read" in capsys.readouterr().err


def test_a_measurement_is_described_without_gaps() -> None:
    assert "PROBLEMS" in describe(Measurement())


def test_the_synthetic_frames_are_what_tshark_thinks_they_are(tmp_path: Path) -> None:
    path = tmp_path / "client.pcap"
    write_pcap(path, download())
    command = ["tshark", "-r", str(path), "-T", "fields", "-e", "ip.src", "-e", "tcp.len", "-Y", "tcp.len > 0"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [f"{CLIENT}\t150"] + [f"{SERVICE}\t1000"] * 10


def test_bytes_beyond_a_hole_are_no_advance(tmp_path: Path) -> None:
    path = tmp_path / "hole.pcap"
    packets = [Segment(n / 10, True, ACK, 1000 + n * 100, 1, 100) for n in range(20)]
    del packets[5]  # 1500 to 1600 comes last
    packets.append(Segment(2.5, True, ACK, 1500, 1, 100))
    write_pcap(path, packets)
    stall = longest_stall(read_capture(path, SERVICE))
    assert stall is not None
    assert stall.ms == pytest.approx(2100)  # from 0.4 to 2.5


def test_a_hole_filled_by_a_segment_cut_elsewhere_is_no_false_alarm(tmp_path: Path) -> None:
    """What tshark takes for ack_lost_segment: 312 old bytes and 1136 new ones in one segment that fills a hole."""
    path = tmp_path / "cut.pcap"
    packets = [
        Segment(0.0, True, ACK, 1000, 1, 1448),
        Segment(0.1, True, ACK, 3584, 1, 1448),  # 2448 to 3584 is lost
        Segment(0.2, False, ACK, 1, 2448),
        Segment(0.3, True, ACK, 2136, 1, 1448),
        Segment(0.4, False, ACK, 1, 5032),
    ]
    write_pcap(path, packets)
    result = measure(read_capture(path, SERVICE), 0)
    assert result.unseen_acknowledged == []
    assert result.problems() == []


def test_an_acknowledgement_above_a_hole_is_found(tmp_path: Path) -> None:
    path = tmp_path / "hole.pcap"
    packets = [
        Segment(0.0, True, ACK, 1000, 1, 100),
        Segment(0.1, True, ACK, 1200, 1, 100),
        Segment(0.2, False, ACK, 1, 1300),
    ]
    write_pcap(path, packets)
    assert measure(read_capture(path, SERVICE), 0).unseen_acknowledged == [3]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=40))
def test_reassembly_is_what_a_set_of_bytes_says(pieces: list[tuple[int, int]]) -> None:
    reassembly = Reassembly()
    reassembly.add(0, 0)
    seen: set[int] = set()
    for begin, length in pieces:
        before = reassembly.next
        moved = reassembly.add(begin, begin + length)
        seen.update(range(begin, begin + length))
        expected = next(byte for byte in range(1000) if byte not in seen)
        assert reassembly.next == expected
        assert moved == (expected != before)
