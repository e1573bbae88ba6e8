"""The pages as a site: it can be built, and a link that leads nowhere ends the build."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "docs" / "site.py"), str(output)], capture_output=True, text=True, timeout=110
    )


def test_the_site_has_every_page_and_a_wrong_link_ends_its_build(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    there = {path.relative_to(tmp_path / "site" / "docs") for path in (tmp_path / "site" / "docs").rglob("*.html")}
    assert {page for page in pages if page.name != "README.html"} <= there
    assert (tmp_path / "site" / "index.html").exists()

    copy = tmp_path / "copy"
    for name in ("docs", "vagrant"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(".lab", "__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    with (copy / "docs" / "operate" / "limits.md").open("a") as page:
        page.write("\n[a](nowhere.md) [b](fencing.md#no-such-heading)\n")
    done = build(copy, tmp_path / "broken")
    assert done.returncode
    assert "nowhere.md" in done.stderr and "#no-such-heading" in done.stderr
