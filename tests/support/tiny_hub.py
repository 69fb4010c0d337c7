"""A local server with the part of the hub's API that huggingface_hub uses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = r"/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api{REPOSITORY}(?:/revision/[^/]+)?")
_TREE = re.compile(rf"/api{REPOSITORY}/tree/[^/]+(?:/(?P<under>.*))?")
_PATHS = re.compile(rf"/api{REPOSITORY}/paths-info/[^/]+")
_FILE = re.compile(r"(?P<kind>/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")


class TinyHub:
    """Serves folder/models/OWNER/NAME and folder/datasets/OWNER/NAME, each with one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        """Method and path of each request."""

    def commit(self, kind: str, name: str) -> str:
        return hashlib.sha1(f"{kind}/{name}".encode()).hexdigest()

    def entries(self, kind: str, name: str, under: str = "") -> list[dict] | None:
        """Describe the files and folders of a repository; None if it does not exist."""
        root = self.folder / kind / name
        if not root.is_dir():
            return None
        paths = sorted((root / under).rglob("*"))
        return [
            {"type": "directory", "path": str(p.relative_to(root)), "oid": "0" * 40, "size": 0}
            if p.is_dir()
            else {
                "type": "file",
                "path": str(p.relative_to(root)),
                "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                "size": p.stat().st_size,
            }
            for p in paths
        ]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[TinyHub, str]]:
    """Yield the hub and its address."""
    hub = TinyHub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def repository(self, match: re.Match, under: str = "") -> list[dict] | None:
            entries = hub.entries(match["kind"], match["name"], under)
            if entries is None:
                self.answer(404, X_Error_Code="RepoNotFound")
            return entries

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            if match := _TREE.fullmatch(path):
                under = match["under"] or ""
                entries = self.repository(match, under)
                deep = "recursive" in parse_qs(urlsplit(self.path).query)
                if entries is not None:
                    depth = len(Path(under).parts) + 1
                    self.say([e for e in entries if deep or len(Path(e["path"]).parts) == depth])
            elif match := _INFO.fullmatch(path):
                entries = self.repository(match)
                if entries is not None:
                    files = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
                    commit = hub.commit(match["kind"], match["name"])
                    self.say({"id": match["name"], "sha": commit, "siblings": files})
            elif match := _FILE.fullmatch(path):
                kind = "datasets" if match["kind"] else "models"
                commit = hub.commit(kind, match["name"])
                file = hub.folder / kind / match["name"] / match["file"]
                if file.is_file():
                    body = file.read_bytes()
                    tag = f'"{hashlib.sha1(body).hexdigest()}"'
                    self.answer(200, body, X_Repo_Commit=commit, ETag=tag)
                else:
                    self.answer(404, X_Repo_Commit=commit, X_Error_Code="EntryNotFound")
            else:
                self.answer(404)

        def do_POST(self) -> None:
            hub.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            if match := _PATHS.fullmatch(unquote(urlsplit(self.path).path)):
                paths = json.loads(body)["paths"] if body[:1] == "{" else parse_qs(body)["paths"]
                entries = self.repository(match)
                if entries is not None:
                    self.say([e for e in entries if e["path"] in paths])
            else:
                self.answer(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
