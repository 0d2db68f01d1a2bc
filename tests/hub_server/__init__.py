"""A small Hub on loopback for the real clients: repositories with commits, tags, LFS, search, and faults.

Dataset repositories go by ``user/name``, model repositories by ``models:user/name``,
spaces by ``spaces:user/name``.

Large files are served by a second server, as the Hub's are by its CDN. With a folder, all is kept on disk.

Strict: what it does not know is answered with 500 and remembered in ``complaints``. Written from what huggingface_hub 1
and 2 and datasets 4 and 5 send. Users are tokens: ``handler.TOKENS`` maps a token to its account and role.
"""

import hashlib
import json
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_server.handler import Handler
from hub_server.state import Commit, Fault, Repo

__all__ = ["Fault", "HubServer"]


class HubServer:
    """Repositories in memory, or in a folder as well.

    Args:
        root: Folder to keep them in.
        port: Of the endpoint; 0: any that is free.

    Attributes:
        url: Endpoint, without a trailing slash.
        cdn: Where large files are.
        repos: ``{"user/name": Repo}``.
        collections: Slug to title and items.
        complaints: Requests that no real Hub would have been sent.
        down: Answer everything with 503.
        downloads: Paths of the files that were served.
        faults: What goes wrong, in order.
        requests: (method, path, authorization) of every request.
    """

    def __init__(self, root=None, port=0):
        self.lock, self.root = threading.RLock(), root and Path(root)
        self.reset()
        self.url, self.cdn = self.serve(port), self.serve(0).replace("127.0.0.1", "localhost")  # another host, as there
        if self.root and (self.root / "repos.json").exists():
            self.read()

    def serve(self, port):
        """Start a server; return its address."""
        server = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    def write(self):
        """Keep everything in the folder, if there is one."""
        if self.root is None:
            return
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        state = {}
        for name, repo in self.repos.items():
            commits = [[c.oid, c.title, {p: self.keep(b) for p, b in c.files.items()}] for c in repo.commits]
            pulls = {r: [c.oid, c.title, {p: self.keep(b) for p, b in c.files.items()}] for r, c in repo.pulls.items()}
            state[name] = {"private": repo.private, "commits": commits, "tags": repo.tags, "pulls": pulls}
        (self.root / "repos.json.new").write_text(json.dumps(state))
        (self.root / "repos.json.new").replace(self.root / "repos.json")

    def keep(self, content):
        """Write a blob; return its name."""
        name = hashlib.sha256(content).hexdigest()
        if not (self.root / "blobs" / name).exists():
            (self.root / "blobs" / name).write_bytes(content)
        return name

    def read(self):
        """Read what :meth:`write` wrote."""

        def commit(oid, title, files):
            return Commit(oid, title, {p: (self.root / "blobs" / b).read_bytes() for p, b in files.items()})

        for name, state in json.loads((self.root / "repos.json").read_text()).items():
            repo = self.repos[name] = Repo(state["private"], [commit(*c) for c in state["commits"]], state["tags"])
            repo.pulls = {reference: commit(*c) for reference, c in state["pulls"].items()}

    def reset(self):
        """Forget everything but the address."""
        self.repos, self.complaints, self.downloads, self.down = {}, [], [], False
        self.faults, self.requests, self.blobs, self.collections = [], [], {}, {}

    def add(self, name, files, private=False):
        """Add a repository with one commit."""
        self.repos[name] = Repo(private)
        self.repos[name].commit("first", files)

    def files(self, name, revision=None):
        """Return the files of a repository."""
        return self.repos[name].at(revision).files

    def sha(self, name):
        """Return the newest commit of a repository."""
        return self.repos[name].commits[-1].oid
