"""What a case is: a real program as it comes from the distribution, its client, and how to see that all is right.

The scripts are read by `sh -eu`. They know `$VIP` (the service address), `$PORT`, `$DATA` (made by `prepare`, the same
for both hosts, not to be changed) and their working directory, which is their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PORT: Final = 7000
PORTS: Final = "7000-7019"
BLOB_BYTES: Final = 24 << 20
"""`$DATA/blob` has so many bytes that look random; `$DATA/small` has 10,000 bytes of text."""


@dataclass(frozen=True, slots=True)
class Program:
    """One case: `name` is "server (client)".

    `packages`: Debian packages; `needs`: the programs of theirs that must be there. `version`: prints the server's
    version. `prepare`: makes more data, once. `serve`: becomes the server, on each host. `client`: runs on the client,
    for `lasts_s` or a little more; `check`: says on standard output what is not right, and ends with 0 if nothing is.
    `warm_s`: how long after the client's start the crash comes at the earliest.
    """

    name: str
    packages: tuple[str, ...]
    needs: tuple[str, ...]
    version: str
    serve: str
    client: str
    check: str
    prepare: str = ""
    rate: str = "50mbit"
    warm_s: float = 1.0
    spread_s: float = 1.5

    @property
    def key(self) -> str:
        """The name in file names."""
        return "".join(c if c.isalnum() else "-" for c in self.name).strip("-")


WHOLE: Final = 'cmp got "$DATA/blob" >&2 || { echo "$(stat -c %s got) bytes, not those that were sent"; exit 1; }'
"""The client has the blob in the file `got`."""


def in_order(last: int, file: str = "got") -> str:
    """A check: the lines of a file are the numbers from 1 to `last`."""
    return f'seq {last} | cmp - {file} >&2 || {{ echo "$(wc -l <{file}) lines, not 1 to {last}"; exit 1; }}'
