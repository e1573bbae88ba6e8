"""Builds the pages as a site: `python docs/site.py OUTPUT` (see script/docs).

What is built is a copy of the tracked pages and of what they link to, in the same places, so that each link leads where
it leads on disk. The menu is the index, docs/README.md. A link or an anchor that leads nowhere ends the build.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
_ROW = re.compile(r"\[([^\]]+)\]\(([^)#]+\.md)\)")


def pages() -> list[Path]:
    """Every page, by its path from the root."""
    found = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    return [*map(Path, TOP), Path("vagrant/README.md"), *sorted(found)]


def linked(page: Path) -> set[Path]:
    """The files, not pages, that a page links to, by their paths from the root."""
    targets = {(ROOT / page).parent.joinpath(path).resolve() for path in LINK.findall((ROOT / page).read_text())}
    return {path.relative_to(ROOT) for path in targets if path.is_file() and path.suffix != ".md"}


def menu() -> list[dict[str, Any]]:
    """The menu: a section for each heading of the index, with the pages that it links to."""
    found: list[dict[str, Any]] = [{"Start": "README.md"}]
    for part in (ROOT / "docs" / "README.md").read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        rows = dict.fromkeys((name, path) for name, path in _ROW.findall(text))
        entries = [{name: str((ROOT / "docs" / path).resolve().relative_to(ROOT))} for name, path in rows]
        found.append({title: entries})
    return [*found, {"Changelog": "CHANGELOG.md"}]


def configuration(source: Path, output: Path) -> dict[str, Any]:
    """What the tool is told; JSON is YAML."""
    diagrams = {"name": "mermaid", "class": "mermaid", "format": "!!python/name:pymdownx.superfences.fence_code_format"}
    return {
        "site_name": "nfq-failover",
        "site_description": "TCP connections that outlive their server",
        "docs_dir": str(source),
        "site_dir": str(output),
        "use_directory_urls": False,  # so that it can be read from the disk
        "theme": {
            "name": "material",
            "font": False,
            "features": ["navigation.sections", "navigation.top", "content.code.copy"],
            "palette": [
                {"media": "(prefers-color-scheme: light)", "scheme": "default"},
                {"media": "(prefers-color-scheme: dark)", "scheme": "slate"},
            ],
        },
        "plugins": ["search"],
        "markdown_extensions": [
            "tables",
            "admonition",
            {"toc": {"permalink": True}},
            {"pymdownx.superfences": {"custom_fences": [diagrams]}},
        ],
        "validation": {
            "nav": {"omitted_files": "info", "not_found": "warn"},
            "links": {"not_found": "warn", "anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"},
        },
        "nav": menu(),
    }


def build(output: Path) -> int:
    """Build the site. Returns the exit code of the tool; it says itself what is wrong."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "pages"
        for path in {*pages(), *(file for page in pages() for file in linked(page))}:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
        settings = Path(directory) / "mkdocs.yml"
        text = json.dumps(configuration(source, output.resolve()))
        settings.write_text(re.sub(r'"(!!python/name:[\w.]+)"', r"\1 ", text))
        argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(settings)]
        return subprocess.run(argv, check=False).returncode  # noqa: S603  # our own words


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/site.py OUTPUT")
    sys.exit(build(Path(sys.argv[1])))
