"""The page's server: what it answers, and to whom."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.operator.web.server import ROWS, open_server
from tests.support.sample_status import sample_status
from tests.unit.operator.test_metrics import read


@contextmanager
def serving(ask: Callable[[], dict[str, Any]]) -> Iterator[int]:
    """A server that asks like that; its port."""
    with open_server("127.0.0.1:0", ask) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", host: str = "") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def no_daemon() -> dict[str, Any]:
    raise CommandError("no daemon answers")


def test_it_serves_the_page_the_metrics_and_the_status() -> None:
    with serving(sample_status) as port:
        code, headers, text = ask(port, "/")
        assert code == 200
        assert "<title>nfq-failover</title>" in text
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        for path in re.findall(r'(?:src|href)="([^"]+)"', text):
            if not path.startswith("data:"):
                assert ask(port, f"/{path}")[0] == 200, path
        assert read(ask(port, "/metrics")[2])["nfq_failover_up", ()] == 1
        assert json.loads(ask(port, "/status.json")[2])["name"] == "a"
        assert ask(port, "/", "HEAD")[2] == ""


def test_only_who_asks_for_a_loopback_name_is_answered() -> None:
    with serving(sample_status) as port:
        assert ask(port, "/status.json", host=f"localhost:{port}")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"10.0.0.1:{port}"):
            code, _, text = ask(port, "/status.json", host=host)
            assert code == 403
            assert "connections" not in text


def test_nothing_else_is_there_and_nothing_can_be_changed() -> None:
    with serving(sample_status) as port:
        for path in ("/../../etc/passwd", "/server.py", "/page", "/page.html", "/metrics/x"):
            assert ask(port, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(port, "/status.json", method)[0] == 501


def test_without_a_daemon_it_says_so() -> None:
    with serving(no_daemon) as port:
        code, _, text = ask(port, "/status.json")
        assert (code, json.loads(text)) == (503, {"error": "no daemon answers"})
        assert read(ask(port, "/metrics")[2]) == {("nfq_failover_up", ()): 0}


def test_many_connections_are_counted_and_some_are_shown() -> None:
    [row] = sample_status()["connections"]
    with serving(lambda: sample_status(connections=[row] * 5000)) as port:
        found = json.loads(ask(port, "/status.json")[2])
    assert len(found["connections"]) == ROWS
    assert found["connections_in_all"] == 5000


def test_however_many_ask_the_daemon_is_asked_rarely() -> None:
    asked = []

    def count() -> dict[str, Any]:
        asked.append(1)
        return sample_status()

    with serving(count) as port:
        threads = [threading.Thread(target=ask, args=(port, "/status.json")) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1 <= len(asked) < 8


@pytest.mark.parametrize("listen", ["0.0.0.0:9767", "192.0.2.1:9767", "9767", "127.0.0.1", "localhost:1", "[::1]:9767"])
def test_it_listens_on_loopback_alone(listen: str) -> None:
    with pytest.raises(CommandError, match="--listen"):
        open_server(listen, sample_status)


def test_the_script_reads_what_the_status_has() -> None:
    """Each member that the page reads is in the status; text is never put in as HTML."""
    script = (files("nfq_failover.operator.web") / "page.js").read_text()
    status = sample_status()
    known = set(status) | {"connections_in_all", "error", "json"}
    assert set(re.findall(r"\bstatus\.(\w+)", script)) <= known
    assert set(re.findall(r"\bbeat\.(\w+)", script)) <= set(status["peer"]["heartbeat"])
    assert set(re.findall(r"\brow\.(\w+)", script)) <= set(status["connections"][0])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
