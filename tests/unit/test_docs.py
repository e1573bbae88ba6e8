"""What the pages name is there: links, files, pictures; and each page is in the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *DOCS.rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "vagrant/README.md")),
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
NAMED = re.compile(r"`([\w*][\w*./-]*\.(?:py|md|sh|json|toml|service|conf|rules|nft))(?::\d+)?`")
FOLDERS = ("docs", "iptables", "nfq_failover", "script", "tests", "vagrant")
NAMED_IN = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w*./-]*)`")
ELSEWHERE = {"arp.json", "epoch.json", "host.json", "vagrant/.lab"}
"""What is made at work: a daemon's state, the lab of virtual machines."""
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[tuple[str, str]]:
    """Returns (path, anchor) of each relative link of a page, code blocks left out."""
    return LINK.findall(CODE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} does not exist"
        assert not anchor or anchor in anchors(target), f"{path} has no heading #{anchor}"


def is_there(name: str, page: Path) -> bool:
    """Tells whether a name, from the root, the package or the page's folder on, is that of a file; `*` may be in it."""
    if name in ELSEWHERE:
        return True
    if any(any(base.glob(name)) for base in (ROOT, ROOT / "nfq_failover", page.parent)):
        return True
    return "/" not in name and any(any((ROOT / folder).rglob(name)) for folder in FOLDERS)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=str)
def test_named_files_are_there(page: Path) -> None:
    text = CODE.sub("", page.read_text())
    names = {name.rstrip("/") for name in (*NAMED.findall(text), *NAMED_IN.findall(text))}
    assert {name for name in names if "NAME" not in name and not is_there(name, page)} == set()


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / path).resolve() for path, _ in links(index)}
    assert {page for page in DOCS.rglob("*.md") if page != index} - linked == set()


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / path).resolve().with_suffix("") for page in PAGES for path, _ in links(page)}
    assert {
        one for one in DOCS.rglob("*") if one.suffix in (".png", ".svg") and one.with_suffix("") not in shown
    } == set()
