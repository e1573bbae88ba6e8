"""The previous release, from the history of this repository: the commit that `tests/previous` names.

Whoever tags a release writes its commit there. Hosts of that release and of this tree must understand each other
(docs/design/wire.md).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = ROOT / "tests" / "previous"


def commit() -> str:
    """The commit that is named."""
    [line] = [line for line in NAMED.read_text().splitlines() if line and not line.startswith("#")]
    return line.strip()


def _git(*words: str) -> bytes:
    argv = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words]
    done = subprocess.run(argv, capture_output=True, timeout=60)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise AssertionError(
            f"the previous release ({commit()}, named in tests/previous) can't be read from this repository: {said}.\n"
            "The tests of two versions side by side need the history: in a shallow clone run 'git fetch --unshallow', "
            "and in a folder that is no clone make one."
        )
    return done.stdout


def file_text(path: Path) -> str:
    """A file of the previous release."""
    return _git("show", f"{commit()}:{path}").decode()


def unpack(directory: Path) -> Path:
    """Put the previous release's program into a directory, which is returned."""
    data = _git("archive", "--format=tar", commit(), "nfq_failover", "iptables")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=data, check=True)
    return directory
