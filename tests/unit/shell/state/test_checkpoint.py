"""The record for the daemon's next life: kept by the kernel, bound to this boot, never half believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_failover.core.shadow.checkpoint import LIFE_BYTES, Memory, Recollection
from nfq_failover.errors import CommandError
from nfq_failover.shell.state import checkpoint as translation_store
from nfq_failover.shell.state.checkpoint import TranslationStore


def write(store: TranslationStore, epoch: int) -> None:
    memory = Memory(store.life)
    memory.note(True, epoch, True)
    store.write(tuple(memory.writes))


def test_the_first_life_on_a_boot_has_nothing_to_recall(tmp_path: Path) -> None:
    assert TranslationStore(tmp_path / "run", "default").recall(lived=False) is None


def test_what_was_written_is_recalled(tmp_path: Path) -> None:
    store = TranslationStore(tmp_path / "run", "default")
    write(store, 3)
    store.close()
    store.close()
    again = TranslationStore(tmp_path / "run", "default")
    assert len(again.life) == LIFE_BYTES
    assert again.recall(lived=True) == Recollection("", True, 3, 0, True)
    assert TranslationStore(tmp_path / "run", "other").recall(lived=False) is None


def test_it_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    store = TranslationStore(tmp_path / "run", "default")
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_it_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nfq_failover.core.shadow.checkpoint import Memory\n"
        "from nfq_failover.shell.state.checkpoint import TranslationStore\n"
        "store = TranslationStore(Path(sys.argv[1]), 'default'); memory = Memory(store.life)\n"
        "memory.note(True, 9, False); store.write(tuple(memory.writes)); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert TranslationStore(tmp_path / "run", "default").recall(lived=True) == Recollection("", True, 9, 0, False)


def test_a_record_that_should_be_there_is_missed(tmp_path: Path) -> None:
    assert TranslationStore(tmp_path / "run", "default").recall(lived=True) == Recollection("it is missing")


def test_another_boot_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(TranslationStore(tmp_path / "run", "default"), 3)
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    monkeypatch.setattr(translation_store, "_BOOT_ID", other)
    assert TranslationStore(tmp_path / "run", "default").recall(lived=False) is None


def test_another_network_namespace_has_a_record_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = TranslationStore(tmp_path / "run", "default")
    write(one, 3)
    monkeypatch.setattr(translation_store, "network_namespace", lambda: "another")
    other = TranslationStore(tmp_path / "run", "default")
    assert other.path != one.path and other.life != one.life
    assert other.recall(lived=False) is None


def test_what_can_not_be_kept_up_to_date_is_not_believed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TranslationStore(tmp_path / "run", "default")
    write(store, 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        write(store, 4)
    write(store, 5)
    found = TranslationStore(tmp_path / "run", "default").recall(lived=True)
    assert found is not None and found.damage


def test_a_directory_that_can_not_be_made_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="check 'run_dir'"):
        TranslationStore(tmp_path / "file" / "run", "default")
