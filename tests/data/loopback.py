"""A server on the loopback address that behaves as badly as it is told to."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What is at an address. `cuts`: bytes after which each of the first answers breaks off."""

    content: bytes
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    status: int = 200
    says_length: bool = True
    moved_to: str | None = None
    wrong_range: bool = False
    stall: threading.Event | None = None


class Loopback(ThreadingHTTPServer):
    """`pages` by path; `asked` records (path, Range header) of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.encodings: list[str | None] = []

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        self.server.encodings.append(self.headers.get("Accept-Encoding"))
        page = self.server.pages.get(self.path, Page(b"nothing here", status=404))
        if page.stall is not None:
            page.stall.wait(20)
            return
        if page.moved_to is not None:
            self.send_response(302)
            self.send_header("Location", page.moved_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and page.ranges else 0
        if start and start >= len(page.content):
            self.send_error(416)
            return
        body = page.content[start:]
        self.send_response(206 if start else page.status)
        if start:
            shown = 0 if page.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{len(page.content) - 1}/{len(page.content)}")
        if page.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: page.cuts.pop(0)] if page.cuts else body)

    def log_message(self, *words):
        pass


@contextmanager
def serving():
    """A running server."""
    server = Loopback()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
