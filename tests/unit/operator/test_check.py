"""`nfq-failover check-config`: what is printed, the exit codes, and what a setting means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nfq_failover.cli import main
from nfq_failover.config import schema
from tests.unit.config.test_faults import change, path
from tests.unit.config.test_parse import key_file

__all__ = ["key_file", "path"]  # fixtures


def test_all_errors_one_a_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(path, "interface", "interfase")
    path.write_text(path.read_text() + "prefer_primary = true\n")
    assert main(["check-config", "--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first == f"{path}:4: unknown setting 'interfase': did you mean 'interface'?"
    assert second.startswith(f"{path}:11: [[peer]] 1: unknown setting 'prefer_primary': it belongs above [[peer]]")


def test_strict_counts_warnings(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", "--strict", "--config", str(path)]) == 0
    change(path, "/bin/true", "/no/such/fence")
    assert main(["check-config", "--config", str(path)]) == 0
    assert main(["check-config", "--strict", "--config", str(path)]) == 1
    assert f"warning: {path}:7: the fence command /no/such/fence is not there" in capsys.readouterr().out


def test_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(path, 'fence = ["/bin/true"]\n', "")
    assert main(["check-config", "--json", "--config", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(path) and found["right"] and not found["errors"]
    (warning,) = found["warnings"]
    assert warning["line"] is None and warning["setting"] == "fence"
    assert any("a serves 10.77.0.100" in line for line in found["says"])
    change(path, "[80]", "[0]")
    assert main(["check-config", "--json", "--strict", "--config", str(path)]) == 2
    found = json.loads(capsys.readouterr().out)
    (error,) = found["errors"]
    assert not found["right"] and (error["line"], error["setting"], error["table"]) == (3, "ports", "")


def test_a_user_that_is_not_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(path.read_text() + '[privileges]\nuser = "nobody-of-that-name"\n')
    assert main(["check-config", "--config", str(path)]) == 2
    assert f"{path}:12: [privileges]: " in capsys.readouterr().err


@pytest.mark.parametrize("table", sorted(schema.tables()))
def test_every_setting_can_be_explained(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in schema.settings(table):
        assert main(["check-config", "--explain", f"{table}.{setting.name}".lstrip(".")]) == 0
        text = capsys.readouterr().out
        assert setting.text.replace("`", "") in text
        assert setting.change.about in text
        assert main(["check-config", "--explain", f"{table}.{setting.name}", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {"table": table, "name": setting.name}.items() <= {**found[-1 if table else 0]}.items()


def test_explained_with_bounds_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", "--explain", "heartbeat_count"]) == 0
    text = capsys.readouterr().out
    assert "at the top level" in text and "2 to 100" in text and "default:  3" in text and "restart" in text
    assert main(["check-config", "--explain", "address"]) == 0
    assert capsys.readouterr().out.count("[[peer]]") == 1
    assert main(["check-config", "--explain", "heartbeat_cont"]) == 2
    assert "did you mean heartbeat_count" in capsys.readouterr().err
