"""A start while the configuration file is wrong: with what, and from where that may come."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover.errors import ConfigError
from nfq_failover.shell.privileged.last_good import load_and_keep
from nfq_failover.shell.selfcheck.configuration import file_wrong
from tests.unit.config.test_faults import change, path
from tests.unit.config.test_parse import key_file

__all__ = ["key_file", "path"]  # fixtures


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "run" / "last-good.toml"


def test_a_right_file_is_kept_for_root_alone(path: Path, copy: Path) -> None:
    copy.parent.mkdir(mode=0o700)
    copy.write_text("of another life")
    copy.chmod(0o644)
    config, problem = load_and_keep(path, copy)
    assert problem == "" and config.last_good == copy and file_wrong(config) == []
    assert copy.read_text() == path.read_text()
    assert copy.stat().st_mode & 0o777 == 0o600 and list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize(("old", "new"), [("interface", "interfase"), ("[80]", "[80"), ("[80]", "[99999]")])
def test_a_wrong_file_is_said_and_the_one_before_goes_on(path: Path, copy: Path, old: str, new: str) -> None:
    before, _ = load_and_keep(path, copy)
    change(path, old, new)
    for _start in range(2):  # the copy stays what it is
        config, problem = load_and_keep(path, copy)
        assert config == before and config.file == str(path) and problem == ""
        assert config.wrong and all(fault.line for fault in config.wrong)
        (concern,) = file_wrong(config)
        assert concern.code == "configuration-wrong" and str(config.wrong[0]) in concern.what
    path.unlink()
    assert load_and_keep(path, copy)[0] == before
    path.write_text(copy.read_text())
    assert not load_and_keep(path, copy)[0].wrong


def test_without_a_right_copy_the_errors_are_those_of_the_file(path: Path, copy: Path) -> None:
    change(path, "interface", "interfase")
    with pytest.raises(ConfigError) as first:
        load_and_keep(path, copy)
    assert not copy.parent.exists()
    copy.parent.mkdir(mode=0o700)
    copy.write_text("= not TOML")
    with pytest.raises(ConfigError) as second:
        load_and_keep(path, copy)
    assert first.value.faults == second.value.faults and str(path) in str(second.value)


def test_a_copy_that_others_could_have_written_does_not_count(path: Path, copy: Path) -> None:
    load_and_keep(path, copy)
    change(path, "interface", "interfase")
    for place, mode in ((copy, 0o622), (copy.parent, 0o777)):
        had = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(ConfigError, match="interfase"):
            load_and_keep(path, copy)
        place.chmod(had)
    assert load_and_keep(path, copy)[0].wrong


def test_what_lies_where_the_copy_is_made_is_not_followed(path: Path, copy: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    copy.parent.mkdir(mode=0o700)
    copy.symlink_to(victim)
    copy.with_name(f"{copy.name}.new").symlink_to(victim)
    load_and_keep(path, copy)
    assert victim.read_text() == "untouched" and not copy.is_symlink()


def test_no_room_for_a_copy_is_said_and_nothing_worse(path: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    config, problem = load_and_keep(path, blocked / "last-good.toml")
    assert not config.wrong and f"{blocked}/last-good.toml" in problem
