"""The page's server inside a test, on this machine only, with a tiny model."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeyolo.bench.frames import Setting
from edgeyolo.bench.record import append_records
from edgeyolo.serve.desk import Desk
from edgeyolo.serve.golden import Golden, compute_golden, open_photos
from edgeyolo.serve.served import Served, served_models
from edgeyolo.serve.server import PhoneServer, routes

SETTING = Setting(0.25, 0.45, 300)


@dataclass
class Site:
    """A running server, its desk, the results file and what was said."""

    server: PhoneServer
    desk: Desk
    results: Path
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.urls()[0]

    def written(self, count: int = 1) -> bool:
        """Whether there are so many records, and all of them are in the file."""
        return len(self.desk.records) >= count and not self.desk.unsaved

    def get(self, path: str) -> tuple[int, bytes, Any]:
        """Fetch what stands at a path behind the secret."""
        return self.ask(self.url + path)

    def post(self, path: str, data: Any, raw: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Post JSON behind the secret."""
        status, body, _ = self.ask(self.url + path, json.dumps(data).encode() if raw is None else raw)
        return status, json.loads(body)

    def report(self, run: Any, frames: list[Any], first: int = 0, **more: Any) -> tuple[int, dict[str, Any]]:
        """Report frames of a run."""
        return self.post("report", {"run": run, "first": first, "frames": frames, **more})

    def ask(self, url: str, body: bytes | None = None) -> tuple[int, bytes, Any]:
        """Status, body and headers."""
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=20) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


@contextmanager
def site(
    models: list[Served], golden: list[list[Golden]], photos: list[Any], runtime: dict[str, Path], results: Path,
    clock: Any = None, frames: int = 12,
) -> Iterator[Site]:  # fmt: skip
    """Serve on a free port until the block ends."""
    lines: list[str] = []

    def keep(record: Any) -> None:
        append_records(results, [record])

    options = {} if clock is None else {"clock": clock}
    desk = Desk(models, SETTING, len(photos), keep, lines.append, **options)
    bodies = routes(models, photos, golden, SETTING, runtime, frames)
    with PhoneServer(("127.0.0.1", 0), bodies, desk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Site(server, desk, results, lines)
        finally:
            server.shutdown()
            thread.join(10)
            assert not thread.is_alive()


def tiny_models(model: Path, pictures: Path) -> tuple[list[Served], list[list[Golden]], list[Any]]:
    """A model with its golden data of some pictures."""
    models, photos = served_models(model), open_photos(pictures)
    return models, [compute_golden(one, photos, SETTING) for one in models], photos


def raw_request(here: Site, text: str) -> bytes:
    """Send these very bytes."""
    with socket.create_connection(here.server.server_address[:2], timeout=10) as connection:
        connection.sendall(text.encode())
        return connection.recv(1000)


def silent(here: Site, stack: ExitStack) -> socket.socket:
    """A connection that sends one byte."""
    connection = stack.enter_context(socket.create_connection(here.server.server_address[:2], timeout=20))
    with suppress(ConnectionError):
        connection.sendall(b"G")
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the server hangs up within the connection's timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False
