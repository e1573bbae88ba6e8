"""All that is wrong with a file is said at once, each with its line, and with a cure that helps."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from nfq_failover.config import load
from nfq_failover.errors import ConfigError, Fault
from tests.unit.config.test_parse import key_file

__all__ = ["key_file"]  # a fixture

RIGHT = """\
name = "a"
service = "10.77.0.100"
ports = [80]
interface = "eth0"
listen = "10.77.0.2"
key_file = "{key}"
fence = ["/bin/true"]
[[peer]]
name = "b"
address = "10.77.0.3"
"""


@pytest.fixture
def path(tmp_path: Path, key_file: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(RIGHT.format(key=key_file))
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def found(path: Path) -> list[tuple[int, str]]:
    """(line, what) of all that is wrong."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    faults = caught.value.faults
    assert str(caught.value).splitlines() == [str(fault) for fault in faults]
    for fault in faults:
        assert str(fault).startswith(f"{path}:{fault.line}: ")
    return [(fault.line, fault.what) for fault in faults]


def test_everything_at_once_with_lines(path: Path) -> None:
    change(path, "interface", "interfase")
    change(path, "[80]", "[80, 99999]")
    change(path, "10.77.0.100", "10.77.0.2")
    change(path, '["/bin/true"]', '["/bin/true", "{host}"]')
    change(path, 'address = "10.77.0.3"', 'addres = "10.77.0.3"\n[health]\nfailures = 0\nconnect = false')
    change(path, 'name = "b"', 'name = "a"')
    assert found(path) == [
        (2, "'service' must be an address of its own, not a host's (10.77.0.2)"),
        (3, "'ports': '99999' is not a port or a range like \"7000-7099\""),
        (4, "unknown setting 'interfase': did you mean 'interface'?"),
        (7, "'fence' there is no placeholder {host}: use {peer} or {address}"),
        (9, "the peer has our own name 'a': give each host its own"),
        (10, "unknown setting 'addres': did you mean 'address'?"),
        (12, "'failures' must be between 1 and 1000, not 0"),
        (13, "nothing would be checked: give a 'command', or set connect = true"),
    ]


@pytest.mark.parametrize(
    ("appended", "line", "what"),
    [
        ("prefer_primary = true", 11, "unknown setting 'prefer_primary': it belongs above [[peer]] (line 8)"),
        ("failures = 3", 11, "unknown setting 'failures': it belongs under [health]"),
        (
            "prefer_primay = true",
            11,
            "unknown setting 'prefer_primay': did you mean 'prefer_primary'? It belongs above",
        ),
        ("ports = [81]", 11, "unknown setting 'ports': it belongs above [[peer]] (line 8), or did you mean 'port'?"),
        ("colour = 1", 11, "unknown setting 'colour': remove it"),
        ("[helth]\nport = 80", 11, "unknown setting 'helth': did you mean 'health'?"),
        ("[[witness]]\naddress = '10.77.0.9'", 11, "write [witness] for [[witness]], and once"),
        ("[witness]\nkey_fil = '/k'\naddress = '10.77.0.9'", 12, "unknown setting 'key_fil': did you mean 'key_file'?"),
        ("name = 'b'", 11, "not valid TOML: Cannot overwrite a value (at line 11, column 11)"),
        ("name =", 11, "not valid TOML: Invalid value"),
    ],
)
def test_what_is_appended_lands_in_the_last_table(path: Path, appended: str, line: int, what: str) -> None:
    path.write_text(path.read_text() + appended + "\n")
    ((at, said),) = found(path)
    assert at == line
    assert said.startswith(what)


def test_single_brackets_for_the_peer(path: Path) -> None:
    change(path, "[[peer]]", "[peer]")
    change(path, "10.77.0.3", "10.77.0.333")
    ((line, what), (next_line, next_what)) = found(path)
    assert (line, what) == (8, "write [[peer]], with two brackets, for [peer]")
    assert next_line == 10 and "'10.77.0.333' is not an IP address" in next_what


def test_a_key_and_a_secret_belong_to_it(path: Path, key_file: Path) -> None:
    key_file.chmod(0o644)
    change(path, 'fence = ["/bin/true"]\n', "")
    path.write_text(
        path.read_text()
        + '[fence]\nagent = "fence_x"\nfence_deadline_ms = 1\n[fence.parameters]\npassword = "hunter2"\n'
    )
    path.chmod(0o644)
    said = found(path)
    assert [line for line, _ in said] == [6, 10, 12]
    assert "chmod 600" in said[0][1] and "holds a secret" in said[1][1]
    assert said[2][1] == "unknown setting 'fence_deadline_ms': it belongs above [[peer]] (line 7)"
    assert "hunter2" not in str(said)


def test_the_error_is_data_and_survives_a_process(path: Path) -> None:
    change(path, "interface", "interfase")
    with pytest.raises(ConfigError) as caught:
        load(path)
    (fault,) = caught.value.faults
    assert (fault.file, fault.line, fault.table, fault.setting) == (str(path), 4, "", "interfase")
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ConfigError) and again.faults == caught.value.faults and str(again) == str(caught.value)
    assert str(Fault("x", "f", 3, "[health]")) == "f:3: [health]: x"
    assert str(ConfigError("there is none")) == "there is none"


def test_what_is_not_closed_is_at_the_end(path: Path) -> None:
    path.write_text("a = 1\nb = [1\n# more\n")
    assert [line for line, _ in found(path)] == [3]
