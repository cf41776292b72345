"""The server of the page: fixed routes below a secret, bounded sizes, no path from a URL ever opens a file."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from edgeyolo.bench.frames import Setting
from edgeyolo.errors import InputError
from edgeyolo.serve.desk import MAX_FRAMES, Desk
from edgeyolo.serve.golden import LIMITS, Golden, Photo
from edgeyolo.serve.ortweb import BACKENDS
from edgeyolo.serve.posted import RefusedError
from edgeyolo.serve.served import Served

MAX_UPLOAD = 1 << 20
MAX_CONNECTIONS = 64
MAX_OF_ADDRESS = 24
"""Connections of one address; a browser has six, and phones on USB share the address of this machine."""
HEADER_SECONDS = 10.0
"""Until all of a request's header is there, which has the secret."""
TIMEOUT_SECONDS = 30.0
"""Of every read, and of every piece that is written; a phone that sleeps does not hold a thread for longer."""
PIECE_BYTES = 1 << 16
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".wasm": "application/wasm",
}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
        "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    # With these two a browser allows shared memory, which threads need, where the context is secure.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "X-Content-Type-Options": "nosniff",
}

Body = tuple[str, bytes | Path]
"""Media type, and the bytes or the file that has them."""


def routes(
    models: Sequence[Served], photos: Sequence[Photo], golden: Sequence[Sequence[Golden]], setting: Setting,
    runtime: Mapping[str, Path], frames: int,
) -> dict[str, Body]:  # fmt: skip
    """Everything that can be fetched: path behind the secret -> body."""
    binary = "application/octet-stream"
    found: dict[str, Body] = {}
    for entry in files("edgeyolo.serve").joinpath("page").iterdir():
        suffix = Path(entry.name).suffix
        if suffix in TYPES:
            found["" if entry.name == "index.html" else entry.name] = (TYPES[suffix], entry.read_bytes())
    for name, path in runtime.items():
        found[f"runtime/{name}"] = (TYPES[path.suffix], path)
    for i, photo in enumerate(photos):
        found[f"picture/{i}"] = ("image/jpeg", photo.jpeg)
    for m, model in enumerate(models):
        found[f"model/{m}"] = (binary, model.data)
        for i, one in enumerate(golden[m]):
            found[f"golden/{m}/{i}/pixels"] = (binary, one.pixels.tobytes())
            found[f"golden/{m}/{i}/heads"] = (binary, b"".join(head.astype("<f4").tobytes() for head in one.heads))
    facts = {
        "models": [_model_facts(model, golden[m]) for m, model in enumerate(models)],
        "pictures": [list(photo.size) for photo in photos],
        "setting": asdict(setting), "frames": frames, "most_frames": MAX_FRAMES,
        "backends": {name: needed for name, needed in BACKENDS.items() if all(file in runtime for file in needed)},
    }  # fmt: skip
    found["facts.json"] = ("application/json", json.dumps(facts).encode())
    return found


def _model_facts(model: Served, golden: Sequence[Golden]) -> dict[str, Any]:
    return {
        "name": model.name, "bytes": len(model.data), "detector": asdict(model.detector), "outputs": model.outputs,
        "golden": [one.to_json() for one in golden], **asdict(LIMITS[model.numbers]),
    }  # fmt: skip


class PhoneServer(ThreadingHTTPServer):
    """Serves ``bodies`` and takes what pages post.

    Args:
        address: host and port; port 0 takes a free one.
        bodies: of ``routes``.
        desk: answers what is posted.
        tls: files of a certificate and its key, for https.

    Raises InputError if the address is taken or the certificate cannot be used.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], bodies: Mapping[str, Body], desk: Desk, tls: tuple[Path, Path] | None = None
    ) -> None:  # fmt: skip
        self.bodies, self.desk, self.token = dict(bodies), desk, secrets.token_urlsafe(12)
        self.posts: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "alive": desk.alive, "start": desk.start, "report": desk.report, "leave": desk.leave,
        }  # fmt: skip
        self._lock = threading.Lock()
        self._open: dict[Any, str] = {}  # connection -> address
        self._silent: dict[Any, float] = {}  # connection whose header is not there yet -> when it has to be
        context = None if tls is None else _context(*tls)
        try:
            super().__init__(address, _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                "cannot listen on this address", where=f"{address[0]}:{address[1]}", got=str(error),
                hint="choose another --port or --host; --port 0 takes a free one",
            ) from error  # fmt: skip
        self.scheme = "http" if context is None else "https"
        if context is not None:  # the handshake waits for the thread of the connection
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def urls(self) -> list[str]:
        """Where the page is: on this machine, and for others of the network."""
        host, port = self.server_address[:2]
        hosts = ["localhost", *_own_addresses()] if host in ("0.0.0.0", "") else [str(host)]
        return [f"{self.scheme}://{name}:{port}/{self.token}/" for name in hosts]

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Answer until ``shutdown``; meanwhile another thread, which no Ctrl-C interrupts, sees who has gone away."""
        stop = threading.Event()
        sweeper = threading.Thread(target=self._sweep, args=(stop, poll_interval), daemon=True)
        sweeper.start()
        try:
            super().serve_forever(poll_interval)
        finally:
            stop.set()
            sweeper.join()

    def _sweep(self, stop: threading.Event, seconds: float) -> None:
        while not stop.wait(seconds):
            try:
                self.desk.sweep()
            except Exception as error:  # pages are served all the same
                self.desk.say(f"cannot see who has gone away: {error!r}")

    def service_actions(self) -> None:
        """Between requests: end connections that only hold a place."""
        with self._lock:
            late = [request for request, deadline in self._silent.items() if deadline < time.monotonic()]
        for request in late:
            with suppress(OSError):  # below TLS, whose state belongs to the connection's thread
                socket.socket.shutdown(request, socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, unless there are too many already."""
        address = str(client_address[0])
        with self._lock:
            of_address = list(self._open.values()).count(address)
            room = len(self._open) < MAX_CONNECTIONS and of_address < MAX_OF_ADDRESS
            if room:
                self._open[request], self._silent[request] = address, time.monotonic() + HEADER_SECONDS
        if room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def has_spoken(self, request: Any) -> None:
        """A connection's header is there."""
        with self._lock:
            self._silent.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, however it went."""
        self.has_spoken(request)
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is no news."""


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # which ssl.SSLError is
        got = getattr(error, "strerror", None) or str(error)
        raise InputError("cannot use the certificate and its key", where=f"{certificate}, {key}", got=got) from error
    return context


def _own_addresses() -> list[str]:
    """The address by which others of the network reach this machine; nothing is sent to find it."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return [probe.getsockname()[0]]
    return []


class _Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    server: PhoneServer
    server_version, sys_version = "edgeyolo", ""
    timeout = TIMEOUT_SECONDS

    def parse_request(self) -> bool:
        """Read the header; from then on the connection may take its time."""
        good = super().parse_request()
        self.server.has_spoken(self.connection)
        return good

    def do_GET(self) -> None:
        """Answer with a fixed body."""
        self._guard(self._get)

    def do_POST(self) -> None:
        """Hand JSON to the desk."""
        self._guard(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news; the desk says what matters."""

    def _guard(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except RefusedError as refused:
            self._json(refused.status, {"error": refused.text})
        except InputError as error:
            self._json(500, {"error": str(error)})

    def _route(self) -> str:
        """What stands behind the secret. Raises RefusedError: 404 for whoever does not know it."""
        token, slash, rest = self.path.split("?", 1)[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or not slash:
            raise RefusedError(404, "there is nothing here: open the address that edgeyolo serve printed, all of it")
        return rest

    def _get(self) -> None:
        body = self.server.bodies.get(self._route())
        if body is None:
            raise RefusedError(404, "no such thing")
        kind, content = body
        # Nothing changes while the server runs, and the next one has another secret.
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        with content.open("rb") if isinstance(content, Path) else BytesIO(content) as stream:
            self._send(200, kind, size, stream, "private, max-age=86400")

    def _post(self) -> None:
        route = self._route()
        data = self._body()
        if route == "open":
            self._json(200, self.server.desk.open(str(self.client_address[0])))
        elif route in self.server.posts:
            self._json(200, self.server.posts[route](data))
        else:
            raise RefusedError(404, "no such thing")

    def _body(self) -> dict[str, Any]:
        """The JSON object that was posted. Raises RefusedError."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or len(length) > 12:
            raise RefusedError(411, "an upload says how long it is")
        if int(length) > MAX_UPLOAD:
            raise RefusedError(413, f"an upload has at most {MAX_UPLOAD} bytes")
        raw = self.rfile.read(int(length))
        if len(raw) != int(length):
            raise RefusedError(400, "the upload broke off")
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, "the upload is no JSON") from error
        if not isinstance(data, dict):
            raise RefusedError(400, "the upload is no JSON object")
        return data

    def _json(self, status: int, data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        self._send(status, "application/json", len(content), BytesIO(content), "no-store")

    def _send(self, status: int, kind: str, size: int, content: BinaryIO, cache: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", cache)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        while piece := content.read(PIECE_BYTES):  # the timeout is of one write, however much is left
            self.wfile.write(piece)
