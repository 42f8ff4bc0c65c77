"""A Hub on loopback: enough of the HTTP API for the real huggingface_hub client and for `from_pretrained`.

- Repositories live in memory as `{name: {branch: {path: bytes}}}`; only `TOKEN` may write, and read what is private.
- Large files go the LFS way (batch, PUT, pointer in the commit), small ones inside the commit, as on the real Hub.
- Cards are refused as the Hub refuses them: metadata that is no YAML mapping, or languages that are no ISO 639 codes.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


TOKEN = "hf_test"


class HubServer(ThreadingHTTPServer):
    """The state of the Hub, and every request that it answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.commits: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.fail_with: int | None = None  # status with which to answer every request

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "branch"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<branch>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<branch>[^/]+)", "commit"),
        ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/large/(?P<oid>\w+)", "store"),
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<branch>[^/]+)(?P<folder>/.*)?", "tree"),
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<branch>[^/]+))?", "info"),
        ("(GET|HEAD)", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<branch>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def _dispatch(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.fail_with:
            return self._json({"error": "as asked"}, self.server.fail_with)
        for method, pattern, action in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if re.fullmatch(method, self.command) and found:
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" or action == "store"
                if not allowed and (self.command == "POST" or found.groupdict().get("name") in self.server.private):
                    return self._json({"error": "Invalid username or password."}, 401)
                return getattr(self, f"_{action}")(body, **found.groupdict())
        return self._json({"error": f"no such address: {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    def log_message(self, format: str, *args: Any) -> None:
        """Silence; `requests` is the log."""

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        known = name in self.server.repositories
        if not known:
            self.server.repositories[name] = {"main": {".gitattributes": b""}}
            self.server.private |= {name} if asked.get("visibility") == "private" else set()
        self._json({"url": f"{self.server.endpoint}/{name}", "name": name}, 409 if known else 200)

    def _validate(self, body: bytes) -> None:
        parts = json.loads(body)["content"].split("---\n", 2)
        data = yaml.safe_load(parts[1]) if len(parts) == 3 else {}
        languages = data.get("language", [])
        wrong = [code for code in languages if not re.fullmatch("[a-z]{2,3}", code)]
        errors = [{"message": f'"language" must be an ISO 639 code, not {code}'} for code in wrong]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, body: bytes, name: str, branch: str) -> None:
        branches = self.server.repositories[name]
        known = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        self._json({}, 409 if known else 200)

    def _preupload(self, body: bytes, name: str, branch: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, body: bytes, name: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.endpoint}/large/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json({"error": "not the content that was announced"}, 422)
        self.server.large[oid] = body
        return self._send(b"")

    def _commit(self, body: bytes, name: str, branch: str) -> None:
        files = self.server.repositories[name][branch]
        header: dict[str, Any] = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        self.server.commits.append({"name": name, "branch": branch, **header})
        oid = _revision(files)
        self._json({"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def _files(self, name: str, branch: str | None) -> dict[str, bytes] | None:
        """Of a branch, or of the branch whose last commit is `branch`."""
        branches = self.server.repositories.get(name, {})
        by_commit = {_revision(files): files for files in branches.values()}
        return branches.get(branch or "main", by_commit.get(branch or ""))

    def _info(self, body: bytes, name: str, branch: str | None = None) -> None:
        files = self._files(name, branch)
        if files is None:
            return self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        siblings = [{"rfilename": path} for path in files]
        private = name in self.server.private
        return self._json({"id": name, "sha": _revision(files), "private": private, "tags": [], "siblings": siblings})

    def _tree(self, body: bytes, name: str, branch: str, folder: str | None) -> None:
        inside = f"{folder.strip('/')}/" if folder else ""
        found = {path: data for path, data in (self._files(name, branch) or {}).items() if path.startswith(inside)}
        if not found:
            return self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        listed = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in found.items()
        ]
        return self._json(listed)

    def _resolve(self, body: bytes, name: str, branch: str, path: str) -> None:
        files = self._files(name, branch)
        if files is None:
            return self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if path not in files:
            return self._json({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=_revision(files))
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        return self._send(files[path], ETag=etag, X_Repo_Commit=_revision(files), Accept_Ranges="none")


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png")) else "regular"


def _revision(files: dict[str, bytes]) -> str:
    """40 hexadecimal digits that name the content, as a commit does."""
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(path.encode() + b"\0" + hashlib.sha1(files[path]).digest())
    return digest.hexdigest()
