"""A small web server for one person: the page of a folder of runs, kept up to date while runs are at work.

It answers on the loopback address unless another is named, reads and never writes, and sends nothing but the page, the state of
the runs, and the copies of reports in run folders. A page in a run folder is shown in a sandbox: it can reach nothing.
"""

import hashlib
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import read_regular
from quantlab.runs.live import live_runs
from quantlab.runs.runs_page import is_plain_copy, runs_page
from quantlab.runs.store import Store, find_run, read_store

LOOPBACK = "127.0.0.1"
MOST_SENT_BYTES = 1 << 26
SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
TYPES = {".html": "text/html; charset=utf-8"}
"""Copies of every other kind are sent as plain text."""


class RunsServer(ThreadingHTTPServer):
    """Serves one folder of runs."""

    daemon_threads = True

    def __init__(self, folder: Path, *, host: str = LOOPBACK, port: int = 0) -> None:
        """Bind; port 0 takes a free one.

        Raises:
            ConfigError: there is no such folder, or the address cannot be used.
        """
        read_store(folder)
        self.folder, self.host = folder, host
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot serve at {host}:{port}: {error}", hint="name another --port") from error

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{self.host}:{self.server_address[1]}/"

    def is_for_me(self, host: str) -> bool:
        """Return whether a request names this server: a page elsewhere that reaches it under its own name is refused."""
        if self.host not in (LOOPBACK, "localhost"):
            return True
        return host in (f"{name}:{self.server_address[1]}" for name in (LOOPBACK, "localhost"))


class _Handler(BaseHTTPRequestHandler):
    server: RunsServer

    def do_GET(self) -> None:
        """Answer one request."""
        if not self.server.is_for_me(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers on the loopback address alone\n")
            return
        path = unquote(urlsplit(self.path).path)
        try:
            if path == "/":
                store = read_store(self.server.folder)
                page = runs_page(store, beside=None, version=state_of(store))
                self._send(HTTPStatus.OK, TYPES[".html"], page.encode())
            elif path == "/state.json":
                store = read_store(self.server.folder)
                state = {"version": state_of(store), "live": [one.to_dict() for one in live_runs(store.runs)]}
                self._send(HTTPStatus.OK, "application/json", json.dumps(state).encode())
            else:
                self._send_copy(path)
        except QuantlabError as error:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", f"{error}\n".encode())

    def _send_copy(self, path: str) -> None:
        """Send a copy in a run folder. QuantlabError where the run has none of that name."""
        parts = path.strip("/").split("/")
        if len(parts) != 3 or parts[0] != "runs":
            raise QuantlabError("there is no such page")
        run = find_run(read_store(self.server.folder).runs, parts[1])
        if not any(file.copy == parts[2] and is_plain_copy(file) for file in run.record.files):
            raise QuantlabError(f"the run has no copy {parts[2]!r}")
        data = read_regular(run.folder / parts[2], QuantlabError, most=MOST_SENT_BYTES)
        kind = TYPES.get(Path(parts[2]).suffix, "text/plain; charset=utf-8")
        self._send(HTTPStatus.OK, kind, data, policy=SANDBOX)

    def _send(self, status: HTTPStatus, kind: str, data: bytes, *, policy: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Frame-Options", "DENY")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: requests are of no interest to the person at the terminal."""


def state_of(store: Store) -> str:
    """Return a word that changes when a run begins, ends or gets a result."""
    facts = [(run.name, run.status, len(run.record.evaluations), run.record.ended) for run in store.runs]
    return hashlib.sha256(json.dumps([facts, store.broken]).encode()).hexdigest()[:16]
