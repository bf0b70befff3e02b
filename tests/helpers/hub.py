"""As much of a hub as serves models, and takes them: the real client talks to it."""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWNER = "org"
TOKEN = "hf_" + "a" * 34


@dataclasses.dataclass
class Hub:
    """What lies on it, ``{repo: {file: bytes}}``, and what it was asked, in order."""

    endpoint: str = ""
    repos: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)
    private: dict[str, bool] = dataclasses.field(default_factory=dict)


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self):
        path = self.path.split("?")[0]
        self.hub.asked.append(path)
        if path == "/api/whoami-v2":
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            return self.say({"name": OWNER}) if known else self.say({}, 401)
        kind, _, rest = path.removeprefix("/").partition("/models/")
        name, found = self.repo(rest if kind == "api" else path[1:])
        if found is None:
            return self.say({}, 404, {"X-Error-Code": "RepoNotFound"})
        sha = commit(found)
        if kind != "api":
            body, tag = found.get(path.rsplit("/", 1)[1]), {"X-Repo-Commit": sha}
            if body is None:
                return self.say({}, 404, tag | {"X-Error-Code": "EntryNotFound"})
            etag = hashlib.sha1(body).hexdigest()
            return self.answer(200, body, tag | {"ETag": f'"{etag}"'})
        if rest.startswith(f"{name}/tree/"):
            listed = [
                {"type": "file", "path": n, "size": len(body), "oid": n.encode().hex()}
                for n, body in found.items()
            ]
            return self.say(listed)
        siblings = [{"rfilename": each} for each in found]
        hidden = bool(self.hub.private.get(name))
        said = {"id": name, "sha": sha, "siblings": siblings, "private": hidden}
        return self.say(said)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        path = self.path.split("?")[0]
        self.hub.asked.append(path)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or OWNER}/{asked['name']}"
            if name in self.hub.repos:
                return self.say({"url": f"{self.hub.endpoint}/{name}"}, 409)
            self.hub.repos[name] = {}
            hidden = asked.get("private") or asked.get("visibility") == "private"
            self.hub.private[name] = hidden
            return self.say({"url": f"{self.hub.endpoint}/{name}", "name": name})
        name, found = self.repo(path.removeprefix("/api/models/"))
        assert found is not None
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.say({"files": files})
        assert "/commit/" in path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                found[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del found[line["value"]["path"]]
        sha = commit(found)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        return self.say({"success": True, "commitOid": sha, "commitUrl": url})

    def repo(self, path: str) -> tuple[str, dict[str, bytes] | None]:
        name = "/".join(path.split("/")[:2])
        return name, self.hub.repos.get(name)

    def say(self, found, status=200, headers=None):
        self.answer(status, json.dumps(found).encode(), headers)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def commit(found: dict[str, bytes]) -> str:
    sums = [f"{n} {hashlib.sha1(body).hexdigest()}" for n, body in found.items()]
    return hashlib.sha1("\n".join(sorted(sums)).encode()).hexdigest()


@contextlib.contextmanager
def serving(**repos: dict[str, bytes]):
    """Serve ``org/<name>`` for each repo; yield the hub."""
    hub = Hub(repos={f"{OWNER}/{name}": dict(found) for name, found in repos.items()})
    handler = type("Its", (Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()


def asking(code: str, *args: str, endpoint: str, home: Path, **more: str):
    """Run a program in a process of its own, which has this hub; return what it did.

    The client reads the environment when it is imported.
    """
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=os.environ | env | more,
        capture_output=True,
        text=True,
        cwd=home,
    )
