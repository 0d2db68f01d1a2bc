"""A small Hub on loopback that serves public dataset repositories to the real clients: reading only, so far.

Strict: what it does not know is answered with 500 and remembered in ``complaints``.
"""

import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer:
    """Dataset repositories in memory: ``{"user/name": {"path": bytes}}``.

    Attributes:
        url: Endpoint, without a trailing slash.
        complaints: Requests that no real Hub would have been sent.
        down: Answer everything with 503.
        downloads: Paths of the files that were served.
    """

    def __init__(self):
        self.datasets, self.complaints, self.downloads, self.down = {}, [], [], False
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"

    def sha(self, repo):
        """Return the commit of a repository: a digest of what is in it."""
        digest = hashlib.sha1()
        for path, content in sorted(self.datasets[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request to the hub that a subclass is bound to."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status, code, message):
        self.reply(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def complain(self, why):
        self.hub.complaints.append(f"{self.command} {self.path}: {why}")
        self.error(500, "Unknown", why)

    def route(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        if self.hub.down:
            return self.reply(503)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        for method, pattern, answer in ROUTES:
            if (found := re.fullmatch(pattern, path)) and self.command in method:
                named = found.groupdict()
                repo = named.pop("repo")
                if repo not in self.hub.datasets:
                    return self.error(404, "RepoNotFound", "Repository not found")
                if named.get("rev") not in (None, "main", self.hub.sha(repo)):
                    return self.error(404, "RevisionNotFound", "Invalid rev id")
                named.pop("rev", None)
                return answer(self, repo, body, **named)
        return self.complain("no such route")

    do_GET = do_HEAD = do_POST = route

    def info(self, repo, _):
        siblings = [{"rfilename": path} for path in self.hub.datasets[repo]]
        self.reply(200, {
            "id": repo, "_id": "0", "sha": self.hub.sha(repo), "siblings": siblings, "tags": [], "private": False,
            "gated": False, "disabled": False, "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
        })  # fmt: skip

    def entry(self, repo, path):
        content = self.hub.datasets[repo][path]
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def tree(self, repo, _, under=None):
        files = [path for path in self.hub.datasets[repo] if not under or path.startswith(under + "/")]
        if under and not files:
            return self.error(404, "EntryNotFound", "Entry not found")
        parents = {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}
        folders = [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in sorted(parents - {under})]
        self.reply(200, folders + [self.entry(repo, path) for path in files])

    def paths(self, repo, body):
        wanted = urllib.parse.parse_qs(body).get("paths", [])
        if not wanted:
            return self.complain("no paths")
        self.reply(200, [self.entry(repo, path) for path in wanted if path in self.hub.datasets[repo]])

    def resolve(self, repo, _, path):
        headers = {"X-Repo-Commit": self.hub.sha(repo)}
        if path not in self.hub.datasets[repo]:
            headers["X-Error-Code"] = "EntryNotFound"
            return self.reply(404, b"Entry not found", headers)
        content = self.hub.datasets[repo][path]
        headers |= {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.downloads.append(f"{repo}/{path}")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.reply(200, content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.reply(206, content[first : last + 1], headers)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", rf"/api/datasets/{REPO}(/revision/(?P<rev>[^/]+))?", Handler.info),
    ("GET", rf"/api/datasets/{REPO}/tree/(?P<rev>[^/]+)(/(?P<under>.+))?", Handler.tree),
    ("POST", rf"/api/datasets/{REPO}/paths-info/(?P<rev>[^/]+)", Handler.paths),
    ("GET HEAD", rf"/datasets/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
]
