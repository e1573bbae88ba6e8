"""A small HTTP server on loopback that shows the status. Each request asks the daemon, and changes nothing.

Other pages that a browser has open must not read it: only requests that name this server by a loopback address or name
are answered (DNS rebinding), and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Final

from nfq_failover.errors import CommandError, ConfigError
from nfq_failover.operator import metrics
from nfq_failover.operator.daemon import ask_daemon

ROWS: Final = 200  # connections that the page shows
_FRESH_S: Final = 0.5  # however many ask, the daemon is not asked more often
_TIMEOUT_S: Final = 10.0
_MAX_REQUESTS: Final = 32  # at the same time
_PAGE: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Ask = Callable[[], dict[str, Any]]


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Returns the exit code. Raises `CommandError` if it can't listen there."""
    server = open_server(args.listen, lambda: ask_daemon(args, "status"))
    host, port = server.server_address[:2]
    print(f"http://{host!s}:{port}/  (Ctrl-C ends it)", flush=True)
    with server:
        server.serve_forever()
    return 0


class Source:
    """The status, asked for at most once in a while, and by one request at a time."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._at = float("-inf")
        self._status: dict[str, Any] | None = None
        self._error = ""

    def status(self) -> dict[str, Any]:
        """Returns the status. Raises `CommandError` if there is no daemon."""
        with self._lock:
            now = time.monotonic()
            if now - self._at >= _FRESH_S:
                self._status, self._error = None, ""
                try:
                    self._status = self._ask()
                except (CommandError, ConfigError) as error:
                    self._error = str(error)
                self._at = time.monotonic()
            if self._status is None:
                raise CommandError(self._error)
            return self._status


class Server(ThreadingHTTPServer):
    """The server. `source` is what it shows; `names` are the Host headers that it answers."""

    daemon_threads = True
    request_queue_size = _MAX_REQUESTS

    def __init__(self, address: tuple[str, int], source: Source) -> None:
        self.source = source
        self.room = threading.BoundedSemaphore(_MAX_REQUESTS)
        super().__init__(address, Handler)
        port = self.server_address[1]
        self.names = {f"{name}:{port}" for name in ("localhost", "127.0.0.1", address[0])}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there is room for one."""
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = _TIMEOUT_S
    server_version = "nfq-failover"
    sys_version = ""

    def do_GET(self) -> None:  # the name is the library's
        """Answer a request for one of the few things that there are."""
        if self.headers.get("Host", "") not in self.server.names:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "this server is asked for by its loopback address\n")
            return
        path = self.path.partition("?")[0]
        if path in _PAGE:
            name, kind = _PAGE[path]
            self._send(HTTPStatus.OK, kind, (files(__package__) / name).read_text(encoding="utf-8"))
        elif path == "/metrics":
            self._metrics()
        elif path == "/status.json":
            self._status()
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there are /, /metrics and /status.json\n")

    do_HEAD = do_GET

    def _metrics(self) -> None:
        try:
            found = metrics.metrics(self.server.source.status(), time.time())
        except CommandError:
            found = metrics.without_daemon()
        self._send(HTTPStatus.OK, metrics.CONTENT_TYPE, metrics.render(found))

    def _status(self) -> None:
        try:
            status = self.server.source.status()
        except CommandError as error:
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
            return
        rows = status["connections"]
        self._json(HTTPStatus.OK, status | {"connections": rows[:ROWS], "connections_in_all": len(rows)})

    def _json(self, code: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(code, "application/json", json.dumps(value))

    def _send(self, code: HTTPStatus, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(code)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # the library's name
        """Say nothing: a page that is open asks every second."""


def open_server(listen: str, ask: Ask) -> Server:
    """A server that listens, but does not serve yet. Raises `CommandError`."""
    host, colon, port = listen.rpartition(":")
    try:
        loopback = bool(colon) and ip_address(host).is_loopback and ip_address(host).version == 4
        number = int(port)
    except ValueError:
        raise CommandError(f"--listen: '{listen}' is not ADDRESS:PORT") from None
    if not loopback:
        raise CommandError(
            f"--listen: {host or listen} is no loopback address; the page has no password. From elsewhere: "
            f"ssh -L {number}:127.0.0.1:{number} HOST, or a web server in front that asks who it is"
        )
    try:
        return Server((host, number), Source(ask))
    except (OSError, OverflowError) as error:
        raise CommandError(f"can't listen on {listen}: {error}") from None
