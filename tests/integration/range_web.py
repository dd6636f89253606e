"""A web server with ranges, in threads, for nodes that are processes of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeWeb:
    """Files by path; `etag` and `files` may be changed while it runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etag = '"one"'
        self.asked: list[str] = []
        self.sent_bytes = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                with suppress(OSError):
                    outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        data = self.files.get(handler.path)
        if data is None:
            handler.send_error(404)
            return
        range_ = handler.headers.get("Range", "").removeprefix("bytes=")
        body = data
        if range_ and handler.headers.get("If-Range", self.etag) == self.etag:
            start, stop = int(range_.split("-")[0]), int(range_.split("-")[1] or len(data) - 1) + 1
            body = data[start:stop]
            handler.send_response(206)
            last = start + len(body) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        self.sent_bytes += len(body)


@contextmanager
def range_web() -> Iterator[RangeWeb]:
    """Run one."""
    made = RangeWeb()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()
