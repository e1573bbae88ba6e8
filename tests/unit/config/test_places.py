"""In which line of a file a setting stands, whatever the values before it look like."""

from __future__ import annotations

import re

import pytest

from nfq_failover.config import reference, schema
from nfq_failover.config.places import Places

FILE = '''\
# name = "not this one"
name = "a"
ports = [
  80, # ] is not the end
  "7000-7099",
]
text = """
name = "nor this one"
[health]
"""
quoted = "a [ b" # [peer]
"state_dir" = '/a["b'
fence = { command = ["a",
  "b"] }
health.port = 80

[[peer]]  # the other
name = "b"
address = "10.77.0.3"
[fence.parameters]
ip = "192.0.2.1"
[ witness ]
address = "10.77.0.4"
'''


@pytest.mark.parametrize(
    ("table", "name", "line"),
    [
        ("", "name", 2),
        ("", "ports", 3),
        ("", "text", 7),
        ("", "quoted", 11),
        ("", "state_dir", 12),
        ("", "fence", 13),
        ("", "health", 15),
        ("health", "port", 15),
        ("peer", "", 17),
        ("", "peer", 17),
        ("peer", "name", 18),
        ("peer", "address", 19),
        ("peer", "port", 17),  # missing: where its table is
        ("fence", "parameters", 20),
        ("witness", "address", 23),
        ("", "listen", 0),
        ("divergence", "policy", 0),
    ],
)
def test_the_line_of_each(table: str, name: str, line: int) -> None:
    assert Places(FILE).line(table, name) == line


def test_the_first_table() -> None:
    assert Places(FILE).first_table == ("[[peer]]", 17)
    assert Places('name = "a"\n').first_table is None


def test_every_setting_of_the_sample_is_found() -> None:
    lines = [line.removeprefix("#") for line in reference.sample().split("\n")]
    text = "\n".join(line if re.match(r"\w+ = |\[", line) else "" for line in lines)
    places = Places(text)
    for table in schema.tables():
        for setting in schema.settings(table):
            if setting.name not in ("parameters", "secrets"):  # tables of their own
                assert lines[places.line(table, setting.name) - 1].startswith(f"{setting.name} = ")
