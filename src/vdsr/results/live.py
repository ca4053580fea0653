"""The page while a sweep runs: made anew whenever a record changed, for browsers on this machine only."""

import errno
import hashlib
import logging
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vdsr.errors import InputError
from vdsr.results import page, runs

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Serves `/`, `/content` (what of it changes) and the pictures beside it; reads records, writes nothing.

    folder: of the pictures' files. port: 0 takes any. Raises InputError when the port is taken.
    """

    daemon_threads = True

    def __init__(self, records: Path, port: int, pictures: page.Pictures | None = None, folder: Path = Path()) -> None:
        self.records, self.pictures, self.folder = records, pictures, folder
        self.files = {f"/{page.PICTURES}/{file}" for file in pictures.files()} if pictures else set()
        self._made = ("", "")  # tag and content
        self._lock = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError, TypeError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            raise InputError(f"port={port}: {'is taken' if taken else error}; give port=… another number") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://{HOST}:{self.server_port}/"

    def content(self) -> tuple[str, str]:
        """A tag that changes with the records, and the page's content."""
        with self._lock:
            try:
                stamps = [
                    (str(path), (found := path.stat()).st_mtime_ns, found.st_size) for path in runs.paths(self.records)
                ]
                tag = hashlib.sha256(repr(stamps).encode()).hexdigest()
                if tag != self._made[0]:
                    self._made = tag, page.content(*runs.read_each(self.records), self.pictures, figures=False)
            except (InputError, FileNotFoundError) as error:  # the folder, or a run's, was just removed
                return "", page.content([], [str(error)], self.pictures, figures=False)
            return self._made


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._answer(HTTPStatus.FORBIDDEN)  # another site's name that leads here
        elif path == "/":
            tag, text = self.server.content()
            self._answer(HTTPStatus.OK, page.render(text, live=tag).encode(), "text/html")
        elif path == "/content":
            tag, text = self.server.content()
            same = tag and self.headers.get("If-None-Match") == f'"{tag}"'
            if same:
                self._answer(HTTPStatus.NOT_MODIFIED)
            else:
                self._answer(HTTPStatus.OK, text.encode(), "text/html", tag)
        elif path in self.server.files:
            file = self.server.folder / path.removeprefix(f"/{page.PICTURES}/")
            self._answer(HTTPStatus.OK, file.read_bytes(), "image/webp")
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def _answer(self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain", tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text") else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if tag:
            self.send_header("ETag", f'"{tag}"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass  # a line each three seconds is of no use


def serve(records: Path, port: int, pictures: page.Pictures | None, folder: Path) -> None:
    """Serve until Ctrl-C."""
    with Server(records, port, pictures, folder) as server:
        log.info("%s shows %s as it grows, to this machine only; Ctrl-C ends it", server.url, records)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("ended")
