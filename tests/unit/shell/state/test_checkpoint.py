"""The record for the daemon's next life: kept by the kernel, bound to this boot, never half believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_failover.core.shadow.checkpoint import LIFE_BYTES, Checkpoint, CheckpointWriter
from nfq_failover.errors import CommandError
from nfq_failover.shell.state import checkpoint
from nfq_failover.shell.state.checkpoint import CheckpointStore


def write(store: CheckpointStore, epoch: int) -> None:
    writer = CheckpointWriter(store.life)
    writer.note(True, epoch, True)
    store.write(tuple(writer.writes))


def test_the_first_life_on_a_boot_has_nothing_to_recall(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "run", "default").load(lived=False) is None


def test_what_was_written_is_recalled(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "default")
    write(store, 3)
    store.close()
    store.close()
    again = CheckpointStore(tmp_path / "run", "default")
    assert len(again.life) == LIFE_BYTES
    assert again.load(lived=True) == Checkpoint("", True, 3, 0, True)
    assert CheckpointStore(tmp_path / "run", "other").load(lived=False) is None


def test_it_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "default")
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_it_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nfq_failover.core.shadow.checkpoint import CheckpointWriter\n"
        "from nfq_failover.shell.state.checkpoint import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1]), 'default'); writer = CheckpointWriter(store.life)\n"
        "writer.note(True, 9, False); store.write(tuple(writer.writes)); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert CheckpointStore(tmp_path / "run", "default").load(lived=True) == Checkpoint("", True, 9, 0, False)


def test_a_record_that_should_be_there_is_missed(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "run", "default").load(lived=True) == Checkpoint("it is missing")


def test_another_boot_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(CheckpointStore(tmp_path / "run", "default"), 3)
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    monkeypatch.setattr(checkpoint, "_BOOT_ID", other)
    assert CheckpointStore(tmp_path / "run", "default").load(lived=False) is None


def test_another_network_namespace_has_a_record_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = CheckpointStore(tmp_path / "run", "default")
    write(one, 3)
    monkeypatch.setattr(checkpoint, "network_namespace", lambda: "another")
    other = CheckpointStore(tmp_path / "run", "default")
    assert other.path != one.path and other.life != one.life
    assert other.load(lived=False) is None


def test_what_can_not_be_kept_up_to_date_is_not_believed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "run", "default")
    write(store, 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        write(store, 4)
    write(store, 5)
    found = CheckpointStore(tmp_path / "run", "default").load(lived=True)
    assert found is not None and found.damage


def test_a_directory_that_can_not_be_made_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="check 'run_dir'"):
        CheckpointStore(tmp_path / "file" / "run", "default")
