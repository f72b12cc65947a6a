"""A stand-in for the Hugging Face Hub: the endpoints by which huggingface_hub reads, creates and writes repositories.

Files lie in memory, by repository and commit. A gated or private repository answers as the Hub does.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Repository:
    """Commits ({path: bytes} each) and the branches and tags that name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Add files to a branch -> the new commit."""
        content = self.commits.get(self.refs.get(ref, ""), {}) | files
        name = hashlib.sha1(f"{len(self.commits)}{sorted(content)}".encode()).hexdigest()
        self.commits[name] = content
        self.refs[ref] = name
        return name


class Hub:
    """The server; `requests` has (method, path) of each request, `tokens` who may read and write."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"hf_good"}
        self.requests: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.lfs: dict[str, tuple[str, int]] = {}  # path -> digest and size of what came by LFS
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, folder, ref: str = "main", **kind) -> str:
        """Put a folder's files into a repository -> the commit."""
        repository = self.repositories.setdefault(name, Repository(**kind))
        files = {}
        for path in folder.rglob("*"):
            if path.is_file():
                files[str(path.relative_to(folder))] = path.read_bytes()
        return repository.commit(files, ref)

    def files(self, name: str, ref: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        repository = self.repositories[name]
        return repository.commits[repository.refs[ref]]


class RefusedError(Exception):
    """An answer with an error's status and the Hub's name of it."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for pattern, serve in ROUTES.items():
                if found := re.fullmatch(pattern, path):
                    return serve(self, body, *found.groups())
            raise RefusedError(404, "EntryNotFound")
        except RefusedError as refused:
            status, code = refused.args
            self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def known(self) -> bool:
        """Whether a token came that the Hub knows."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") in self.hub.tokens

    def repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.known()):
            raise RefusedError(404 if self.known() else 401, "RepoNotFound")
        if repository.gated and not self.known() and "/api/" not in self.path:
            raise RefusedError(401, "GatedRepo")
        return repository

    def commit(self, name: str, ref: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(name)
        commit = repository.refs.get(ref, ref)
        if commit not in repository.commits:
            raise RefusedError(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def writing(self) -> None:
        if not self.known():
            raise RefusedError(401, "Unauthorized")

    # ---- reading

    def info(self, body: bytes, name: str, ref: str = "main") -> None:
        commit, files = self.commit(name, ref)
        siblings = [{"rfilename": path} for path in files]
        self.answer(
            200,
            {
                "id": name,
                "modelId": name,
                "sha": commit,
                "siblings": siblings,
                "private": self.repository(name).private,
            },
        )

    def tree(self, body: bytes, name: str, ref: str, below: str | None) -> None:
        _, files = self.commit(name, ref)
        rows = []
        if below:
            raise RefusedError(404, "EntryNotFound")
        for path, content in files.items():
            oid = hashlib.sha1(content).hexdigest()
            rows.append({"type": "file", "path": path, "size": len(content), "oid": oid})
        self.answer(200, rows)

    def resolve(self, body: bytes, name: str, ref: str, path: str) -> None:
        commit, files = self.commit(name, ref)
        if path not in files:
            raise RefusedError(404, "EntryNotFound")
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        self.answer(200, files[path], ETag=etag, X_Repo_Commit=commit)

    # ---- writing

    def create(self, body: bytes) -> None:
        self.writing()
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"url": f"{self.hub.url}/{name}"})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b""})
        self.answer(200, {"url": f"{self.hub.url}/{name}", "id": name})

    def check_card(self, body: bytes) -> None:
        parts = json.loads(body)["content"].split("---\n")
        header = yaml.safe_load(parts[1]) if len(parts) > 2 else None
        errors = [] if header is None or header["license"] else [{"message": "no licence"}]
        self.answer(200, {"errors": errors, "warnings": []})

    def branch(self, body: bytes, name: str, ref: str) -> None:
        self.writing()
        repository = self.repository(name)
        if ref in repository.refs:
            raise RefusedError(409, "Conflict")
        repository.refs[ref] = repository.refs["main"]
        self.answer(200, {})

    def preupload(self, body: bytes, name: str, ref: str) -> None:
        self.writing()
        self.commit(name, ref)
        rows = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer(200, {"files": rows})

    def batch(self, body: bytes, name: str) -> None:
        self.writing()
        objects = []
        for item in json.loads(body)["objects"]:
            href = f"{self.hub.url}/objects/{item['oid']}"
            objects.append(item | {"actions": {"upload": {"href": href, "header": {}}}})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer(200)

    def commit_files(self, body: bytes, name: str, ref: str) -> None:
        self.writing()
        repository = self.repository(name)
        if ref not in repository.refs:
            raise RefusedError(404, "RevisionNotFound")
        files = {}
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = repository.commit(files, ref)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.answer(200, {"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})


NAME = r"([^/]+/[^/]+)"
ROUTES = {
    rf"/api/models/{NAME}": Handler.info,
    rf"/api/models/{NAME}/revision/(.+)": Handler.info,
    rf"/api/models/{NAME}/tree/([^/]+)(/.+)?": Handler.tree,
    rf"/{NAME}/resolve/([^/]+)/(.+)": Handler.resolve,
    "/api/repos/create": Handler.create,
    "/api/validate-yaml": Handler.check_card,
    rf"/api/models/{NAME}/branch/(.+)": Handler.branch,
    rf"/api/models/{NAME}/preupload/(.+)": Handler.preupload,
    rf"/{NAME}.git/info/lfs/objects/batch": Handler.batch,
    "/objects/(.+)": Handler.put,
    rf"/api/models/{NAME}/commit/(.+)": Handler.commit_files,
}
