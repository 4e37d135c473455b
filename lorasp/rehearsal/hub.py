"""A stand-in for the Hugging Face hub on loopback: repositories in memory, and planned failures.

It answers what huggingface_hub, datasets and transformers ask when they read a repository: what a
commit holds (`/api/…/revision`, `tree`, `paths-info`), and the files (`resolve`), of which large
ones are redirected to another host with a signed address, as the hub does.
"""

import contextlib
import dataclasses
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any

from lorasp.data.download import STAND_IN

TOKEN = "hf_let_in"  # of an account that has accepted every licence
STRANGER = "hf_not_let_in"
LARGE = {
    ".safetensors",
    ".bin",
    ".h5",
    ".msgpack",
    ".ot",
    ".parquet",
    ".model",
}  # not in git itself


@dataclasses.dataclass(frozen=True)
class Repository:
    """The files of one commit."""

    revision: str
    files: dict[str, bytes]
    gated: bool = False


@dataclasses.dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path contains `where`.

    `what` is an HTTP status, or `cut`: half of the body, then the connection is closed; or
    `corrupt`: a body of the right size with one byte changed.
    """

    where: str
    what: int | str
    times: int = 1
    method: str = "GET"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Hub:
    """Where the stand-in listens, what was asked of it, and what is to go wrong."""

    endpoint: str
    repositories: dict[tuple[str, str], Repository]  # by (models or datasets, id)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The requests whose path contains a text."""
        return [request for request in self.log if path in request["path"]]


@contextlib.contextmanager
def serve(repositories: dict[tuple[str, str], Repository]) -> Iterator[Hub]:
    """Serve the repositories at a free port of 127.0.0.1 until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def blob_id(content: bytes) -> str:
    """Git's name of a file's content."""
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def _pointer(content: bytes) -> bytes:
    """What git holds of a file in large-file storage."""
    digest = hashlib.sha256(content).hexdigest()
    head = "version https://git-lfs.github.com/spec/v1"
    return f"{head}\noid sha256:{digest}\nsize {len(content)}\n".encode()


def is_large(path: str) -> bool:
    """Whether the hub keeps the file outside git: by its suffix, as .gitattributes has it."""
    return PurePosixPath(path).suffix in LARGE


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    if not is_large(path):
        return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    pointer = _pointer(content)
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    lfs["pointerSize"] = len(pointer)
    listed = {"type": "file", "path": path, "size": len(content), "oid": blob_id(pointer)}
    return listed | {"lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:
        """Requests go to `Hub.log` and not to the terminal."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = urllib.parse.parse_qs(self.rfile.read(length).decode()) if length else {}
        self.fault = self._fault()
        if self.fault and isinstance(self.fault.what, int):
            self._answer(self.fault.what, headers=self.fault.headers)
            return
        parts = urllib.parse.urlsplit(self.path)
        path = [urllib.parse.unquote(part) for part in parts.path.split("/")[1:]]
        match path:
            case ["storage", kind, owner, name, *file]:
                self._stored(kind, f"{owner}/{name}", "/".join(file), parts.query)
            case ["api", ("models" | "datasets") as kind, owner, name, *rest]:
                self._api(kind, f"{owner}/{name}", rest)
            case ["datasets", owner, name, "resolve", revision, *file]:
                self._resolve("datasets", f"{owner}/{name}", revision, "/".join(file))
            case [owner, name, "resolve", revision, *file]:
                self._resolve("models", f"{owner}/{name}", revision, "/".join(file))
            case _:
                self._answer(404)

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and fault.method == self.command and fault.where in self.path:
                    fault.times -= 1
                    return fault
        return None

    def _repository(self, kind: str, name: str, revision: str | None) -> Repository | None:
        """The repository, or None once the refusal has been sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repository = self.hub.repositories.get((kind, name))
        if token not in ("", TOKEN, STRANGER):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None:
            # the hub does not say which repositories there are to those who have not logged in
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in (None, "main", repository.revision):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else None
        repository = self._repository(kind, name, revision)
        if repository is None:
            return
        entries = [entry(path, content) for path, content in sorted(repository.files.items())]
        match rest:
            case [] | ["revision", _]:
                about: dict[str, Any] = {"id": name, "sha": repository.revision, "tags": []}
                about["siblings"] = [{"rfilename": path} for path in sorted(repository.files)]
                about |= {"private": False, "gated": "manual" if repository.gated else False}
                self._json(about | {"_id": "0" * 24, "disabled": False, "downloads": 0, "likes": 0})
            case ["tree", _, *folder]:
                self._tree(entries, "/".join(folder))
            case ["paths-info", _]:
                wanted = self.form.get("paths", [])
                folders = {path for path in wanted if path not in repository.files}
                listed = [known for known in entries if known["path"] in wanted]
                self._json(listed + _folders(entries, folders))
            case _:
                self._refuse(404, "", "Not found")

    def _tree(self, entries: list[dict[str, Any]], folder: str) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        below = [e for e in entries if not folder or e["path"].startswith(f"{folder}/")]
        if folder and not below:
            self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        parents = {str(p) for e in below for p in PurePosixPath(e["path"]).parents}
        found = _folders(below, parents - {".", folder}) + below
        if not recursive:
            found = [e for e in found if str(PurePosixPath(e["path"]).parent) == (folder or ".")]
        self._json(found)

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name, revision)
        if repository is None:
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        commit = {"X-Repo-Commit": repository.revision}
        if repository.gated and token != TOKEN:
            told = f"Access to {name} is restricted"
            self._refuse(403 if token else 401, "GatedRepo", told)
        elif path not in repository.files:
            self._refuse(404, "EntryNotFound", f"{path} does not exist", commit)
        elif is_large(path):
            content = repository.files[path]
            digest = hashlib.sha256(content).hexdigest()
            # another origin than the endpoint's: a client must not send its token there
            port = urllib.parse.urlsplit(self.hub.endpoint).port
            place = f"http://localhost:{port}/storage/{kind}/{name}/{urllib.parse.quote(path)}"
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self._answer(302, headers=commit | linked | {"Location": f"{place}?signature={digest}"})
        else:
            content = repository.files[path]
            self._content(content, commit | {"ETag": f'"{blob_id(content)}"'})

    def _stored(self, kind: str, name: str, path: str, query: str) -> None:
        content = self.hub.repositories[kind, name].files[path]
        digest = hashlib.sha256(content).hexdigest()
        if query != f"signature={digest}" or "Authorization" in self.headers:
            self._answer(403)
            return
        self._content(content, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        if self.fault and self.fault.what == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range")
        if asked is None:
            self._answer(200, content, headers)
            return
        start = int(asked.removeprefix("bytes=").split("-")[0])
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206, content[start:], headers | {"Content-Range": span})

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, headers=told | (headers or {}))

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        with self.hub.lock:
            self.hub.log.append(
                {
                    "method": self.command,
                    "path": self.path.split("?")[0],
                    "status": status,
                    "range": self.headers.get("Range"),
                    "token": "Authorization" in self.headers,
                }
            )
        self.send_response(status)
        self.send_header(STAND_IN, "lorasp")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.what == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)


def _folders(entries: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """Those of the names that are folders of listed files, as the hub lists a folder."""
    return [
        {"type": "directory", "path": name, "size": 0, "oid": blob_id(name.encode())}
        for name in sorted(names)
        if any(listed["path"].startswith(f"{name}/") for listed in entries)
    ]
