"""Knows a protocol that no second host can answer in the same way, when it sees one.

What is encrypted has keys that each connection, and each host, makes anew. A recorded client's bytes then mean nothing
to a server that they were not meant for: it gives up early, on both hosts alike, and that is no proof of anything.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Final

_HELLO: Final = re.compile(rb"\x16\x03[\x00-\x04]..\x01", re.DOTALL)  # RFC 8446 section 5.1, and 4: ClientHello
_FROM_SERVER: Final = re.compile(rb"\x16\x03[\x00-\x04]..\x02|\x15\x03[\x00-\x04]\x00\x02..", re.DOTALL)
_SSH: Final = re.compile(rb"SSH-\d\.\d+-")  # RFC 4253 section 4.2
_PLAIN_TO_TLS: Final = re.compile(rb"HTTP/1\.\d 400 .*?(?:HTTPS|SSL|TLS)", re.DOTALL)
_LEAST: Final = 256  # bytes of which it can be told whether they look random


def encrypted(turns: Sequence[bytes], answers: Sequence[bytes]) -> str:
    """The name of the encrypted protocol that a client's turns, or a server's answers, belong to; empty if none is
    recognized. An answer may also be the refusal of a client that does not encrypt."""
    if any(_HELLO.match(turn) for turn in turns) or any(_FROM_SERVER.match(answer) for answer in answers):
        return "TLS"
    if any(_SSH.match(text) for text in (*turns[:2], *answers)):
        return "SSH"
    if any(_PLAIN_TO_TLS.match(answer[:2000]) for answer in answers):
        return "TLS"
    return ""


def looks_random(data: bytes) -> bool:
    """Whether bytes look encrypted, or are compressed: they can't be made shorter."""
    return len(data) >= _LEAST and len(zlib.compress(data, 6)) >= len(data)
