"""What the reports share: sections of a Markdown file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab.campaign.section import write_section


def test_a_section_is_made_replaced_and_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "results.md"
    write_section(path, "campaign", "one")
    write_section(path, "bench", "two")
    write_section(path, "campaign", "three\n")
    text = path.read_text()
    assert "one" not in text
    assert text.startswith("# Results\n")
    assert text.index("three") < text.index("two")
    assert text.count("campaign:begin") == 1
    path.write_text(text.replace("<!-- campaign:end -->", ""))
    with pytest.raises(CommandError, match="without"):
        write_section(path, "campaign", "four")
