"""How the Hub of the tests answers."""

import base64
import hashlib
import json
import re
import urllib.parse
from http.server import BaseHTTPRequestHandler

from hub_server.collected import Collections
from hub_server.state import Commit

TOKENS = {"hf_writer": ("alice", "write"), "hf_reader": ("alice", "read"), "hf_other": ("bob", "write")}
LARGE = (".parquet", ".safetensors", ".png")
"""Suffixes that go through LFS."""


def blob(content):
    """Return git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Cut(Exception):
    """The connection is to be dropped."""


class Handler(Collections, BaseHTTPRequestHandler):
    """One request to the hub that a subclass is bound to."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer waits 40 ms for the reader to acknowledge its head
    cut = None

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.command not in ("GET", "HEAD"):
            with self.hub.lock:
                self.hub.write()  # before the client knows that it is done
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if self.cut is None else data[: self.cut])
        if self.cut is not None:
            raise Cut

    def error(self, status, code, message):
        self.reply(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def complain(self, why):
        self.hub.complaints.append(f"{self.command} {self.path}: {why}")
        self.error(500, "Unknown", why)

    def route(self):
        try:
            self.answer()
        except (Cut, ConnectionError):
            self.close_connection = True

    def answer(self):
        url = urllib.parse.urlsplit(self.path)
        path, self.query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        # models and spaces have routes of the same form, without or with another prefix
        path = re.sub(rf"^/api/(models|spaces)/(?={REPO})", r"/api/datasets/\1:", path)
        path = re.sub(rf"^/spaces/(?={REPO}(/resolve/|\.git/))", "/datasets/spaces:", path)
        path = re.sub(
            rf"^/(?={REPO}(/resolve/|\.git/))(?!api/|datasets/|spaces/|cdn/|upload/)", "/datasets/models:", path
        )
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        length = int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            fault = next(
                (f for f in self.hub.faults if f.times and self.command == f.method and re.search(f.path, path)), None
            )
            if fault:
                fault.times -= 1
        self.cut = None
        if fault and fault.cut is not None and self.command in ("POST", "PUT"):
            self.rfile.read(min(fault.cut, length))
            raise Cut
        self.body = self.rfile.read(length)
        if self.hub.down:
            return self.reply(503)
        if fault and fault.before:
            fault.before()
        elif fault and fault.cut is not None:
            self.cut = fault.cut
        elif fault:
            return self.reply(fault.status, {"error": "as told"}, fault.headers)
        with self.hub.lock:
            for methods, pattern, answer in ROUTES:
                if (found := re.fullmatch(pattern, path)) and self.command in methods:
                    answer(self, **found.groupdict())
                    return None
        return self.complain("no such route")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = route

    # accounts

    def user(self):
        """Return (account, role) of the request, (None, None) without a token; None for a wrong one."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return TOKENS.get(given) if given else (None, None)

    @staticmethod
    def owner(repo):
        return bare(repo).split("/")[0]

    def open(self, repo, write=False):
        """Return a repository that the request may read or write; else answer and return None."""
        user = self.user()
        if user is None:
            self.error(401, "InvalidToken", "Invalid credentials in Authorization header")
            return None
        found = self.hub.repos.get(repo)
        if found is None or (found.private and user[0] != self.owner(repo)):
            self.error(404, "RepoNotFound", "Repository not found")
            return None
        if write and (user[0] != self.owner(repo) or user[1] != "write"):
            self.error(403, "Forbidden", "You don't have the rights for this")
            return None
        return found

    def revision(self, found, rev):
        """Return the commit of a revision; else answer and return None."""
        commit = found.at(rev)
        if commit is None:
            self.error(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def whoami(self):
        user = self.user()
        if not user or not user[0]:
            return self.error(401, "InvalidToken", "Invalid credentials in Authorization header")
        auth = {"accessToken": {"displayName": "test", "role": user[1]}}
        return self.reply(200, {"type": "user", "name": user[0], "orgs": [], "auth": auth})

    # reading

    def card(self, files):
        """Return the YAML of a card as the Hub does."""
        import yaml

        found = re.match(rb"---\r?\n(.*?)\r?\n---", files.get("README.md", b""), re.DOTALL)
        return (yaml.safe_load(found[1]) or {}) if found else {}

    def described(self, name, found, commit):
        card = self.card(commit.files) if self.shows("cardData", "tags") else {}
        given = card.get("tags")
        tags = (list(given) if isinstance(given, list) else []) + (
            [f"license:{card['license']}"] if "license" in card else []
        )
        described = {
            "id": bare(name), "_id": "0", "sha": commit.oid,
            "siblings": [self.sibling(path, content) for path, content in commit.files.items()],
            "tags": tags, "cardData": card, "private": found.private, "gated": False, "disabled": False,
            "downloads": found.downloads, "likes": 0, "author": self.owner(name),
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        return {key: value for key, value in described.items() if key in ("id", "_id") or self.shows(key)}

    def shows(self, *keys):
        """Whether the request asks for one of some fields, or for all."""
        return not (asked := self.query.get("expand")) or any(key in asked for key in keys)

    def sibling(self, path, content):
        if "blobs" not in self.query:
            return {"rfilename": path}
        entry = self.entry(path, content)
        described = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
        if large := entry.get("lfs"):
            described["lfs"] = {"sha256": large["oid"], "size": large["size"], "pointerSize": large["pointerSize"]}
        return described

    def search(self):
        found = []
        for name, repo in self.hub.repos.items():
            if name != bare(name):
                continue
            if repo.private and (self.user() or (None,))[0] != self.owner(name):
                continue
            entry = self.described(name, repo, repo.commits[-1])
            wanted = set(self.query.get("filter", []))
            if wanted <= {t for t in entry["tags"] if isinstance(t, str)} and all(
                a == self.owner(name) for a in self.query.get("author", [])
            ):
                found.append(entry)
        found.sort(key=lambda e: -e.get("downloads", 0))
        self.reply(200, found[: int(self.query.get("limit", ["1000"])[0])])

    def info(self, repo, rev=None):
        if (found := self.open(repo)) and (commit := self.revision(found, rev)):
            self.reply(200, self.described(repo, found, commit))

    def entry(self, path, content):
        described = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
        if path.endswith(LARGE):
            described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return described

    def tree(self, repo, rev, under=None):
        if not (found := self.open(repo)) or not (commit := self.revision(found, rev)):
            return
        files = [path for path in commit.files if not under or path.startswith(under + "/")]
        if under and not files:
            self.error(404, "EntryNotFound", "Entry not found")
            return
        parents = {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}
        folders = [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in sorted(parents - {under})]
        self.reply(200, folders + [self.entry(path, commit.files[path]) for path in files])

    def paths(self, repo, rev):
        if not (found := self.open(repo)) or not (commit := self.revision(found, rev)):
            return
        if "json" in (self.headers.get("Content-Type") or ""):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = urllib.parse.parse_qs(self.body.decode()).get("paths", [])
        if not wanted:
            self.complain("no paths")
            return
        self.reply(200, [self.entry(p, commit.files[p]) for p in wanted if p in commit.files])

    def refs(self, repo):
        if found := self.open(repo):
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": oid} for t, oid in found.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.commits[-1].oid}
            self.reply(200, {"branches": [main], "tags": tags, "converts": []})

    def resolve(self, repo, rev, path):
        if not (found := self.open(repo)) or not (commit := self.revision(found, rev)):
            return None
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            headers["X-Error-Code"] = "EntryNotFound"
            return self.reply(404, b"Entry not found", headers)
        content = commit.files[path]
        if self.command == "GET":
            self.hub.downloads.append(f"{repo}/{path}")
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.blobs[digest] = content
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"pointer"'}
            return self.reply(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{repo}/{path}?blob={digest}"})
        return self.send(content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def large(self, path):
        """Serve a large file, as a CDN that knows nothing of accounts."""
        if self.headers.get("Authorization"):
            return self.complain(f"a token was sent to the CDN for {path}")
        return self.send(self.hub.blobs[self.query["blob"][0]], {"ETag": f'"{self.query["blob"][0]}"'})

    def send(self, content, headers):
        """Answer with content, or the part of it that is asked for."""
        headers |= {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.reply(200, content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.reply(206, content[first : last + 1], headers)

    # writing

    def page(self, name):
        """Return the address of a repository's page."""
        room = {"models": "", "spaces": "spaces/"}.get(name.partition(":")[0], "datasets/")
        return f"{self.hub.url}/{room}{bare(name)}"

    def create(self):
        asked, user = json.loads(self.body), self.user()
        if not user or not user[0]:
            return self.error(401, "InvalidToken", "Invalid credentials in Authorization header")
        owner = asked.get("organization") or user[0]
        kind = {"dataset": "", "space": "spaces:"}.get(asked.get("type"), "models:")
        if kind == "spaces:" and asked.get("sdk") != "static":
            return self.complain("a space that is not static costs money")
        name = f"{kind}{owner}/{asked['name']}"
        if name in self.hub.repos:
            return self.reply(409, {"url": self.page(name), "error": "You already created this"})
        if owner != user[0] or user[1] != "write":
            return self.error(403, "Forbidden", "You don't have the rights to create a dataset under this namespace")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(name, {".gitattributes": b""}, private)
        return self.reply(200, {"url": self.page(name), "id": bare(name)})

    def validate(self):
        import yaml

        text = json.loads(self.body)["content"].split("---")[1]
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            return self.reply(400, {"errors": [{"message": str(error)}], "warnings": []})
        return self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, repo, rev):
        found = self.open(repo, write="create_pr" not in self.query)
        if found and (commit := self.revision(found, rev)):
            answers = []
            for file in json.loads(self.body)["files"]:
                lfs = file["path"].endswith(LARGE)
                answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                if file["path"] in commit.files:
                    answer["oid"] = self.entry("", commit.files[file["path"]])["oid"]
                answers.append(answer)
            self.reply(200, {"files": answers})

    def batch(self, repo):
        if self.open(repo):
            objects = []
            for thing in json.loads(self.body)["objects"]:
                if thing["oid"] not in self.hub.blobs:
                    href = f"{self.hub.url}/upload/{thing['oid']}"
                    verify = {"href": f"{self.hub.url}/datasets/{repo}.git/verify"}
                    thing = {**thing, "actions": {"upload": {"href": href}, "verify": verify}}
                objects.append(thing)
            self.reply(200, {"objects": objects, "transfer": "basic"}, {"Content-Type": "application/vnd.git-lfs+json"})

    def verify(self, repo):
        thing = json.loads(self.body)
        if self.open(repo):
            there = self.hub.blobs.get(thing["oid"], b"")
            self.reply(200 if len(there) == thing["size"] else 422, {})

    def delete(self):
        asked, user = json.loads(self.body), self.user()
        kind = "" if asked.get("type") == "dataset" else "models:"
        name = f"{kind}{asked.get('organization') or (user or ('?',))[0]}/{asked['name']}"
        if self.open(name, write=True):
            del self.hub.repos[name]
            self.reply(200, {})

    def upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.complain("the content is not what was announced")
        self.hub.blobs[oid] = self.body
        return self.reply(200)

    def commit(self, repo, rev):
        pull = self.query.get("create_pr") == ["1"]
        found = self.open(repo, write=not pull)
        if not found or not self.revision(found, rev):
            return None
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        head, files = lines[0]["value"], dict(found.at(rev).files)
        if head.get("parentCommit") not in (None, found.at(rev).oid):
            return self.error(412, "Conflict", "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self.complain(f"commit line {line['key']}")
        answer = {"hookOutput": "", "success": True}
        if pull:
            reference = f"refs/pr/{len(found.pulls) + 1}"
            found.pulls[reference] = Commit(hashlib.sha1(reference.encode()).hexdigest(), head["summary"], files)
            oid, answer["pullRequestUrl"] = found.pulls[reference].oid, f"{self.page(repo)}/discussions/1"
        else:
            oid = found.commit(head["summary"], files).oid
        return self.reply(200, answer | {"commitOid": oid, "commitUrl": f"{self.page(repo)}/commit/{oid}"})

    def tag(self, repo, rev):
        found = self.open(repo, write=True)
        if found and (commit := self.revision(found, rev)):
            name = json.loads(self.body)["tag"]
            if name in found.tags:
                return self.error(409, "Conflict", "Tag reference exists already")
            found.tags[name] = commit.oid
            return self.reply(200, {})
        return None

    def untag(self, repo, rev):
        found = self.open(repo, write=True)
        if found and found.tags.pop(rev, None) is None:
            return self.error(404, "RevisionNotFound", "Invalid rev id")
        return self.reply(200, {}) if found else None


def bare(name):
    """Return the name of a repository without its kind."""
    return re.sub("^(models|spaces):", "", name)


REPO = r"(?P<repo>(models:|spaces:)?[\w.-]+/[\w.-]+)"
SLUG = r"(?P<slug>[\w.-]+/[\w.-]+)"
REV = r"(?P<rev>refs/pr/\d+|[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", r"/api/collections", Handler.create_collection),
    ("GET", rf"/api/collections/{SLUG}", Handler.collection),
    ("POST", rf"/api/collections/{SLUG}/items", Handler.add_to_collection),
    ("GET", r"/api/datasets", Handler.search),
    ("GET", rf"/api/datasets/{REPO}(/revision/{REV})?", Handler.info),
    ("GET", rf"/api/datasets/{REPO}/refs", Handler.refs),
    ("GET", rf"/api/datasets/{REPO}/tree/{REV}(/(?P<under>.+))?", Handler.tree),
    ("POST", rf"/api/datasets/{REPO}/paths-info/{REV}", Handler.paths),
    ("POST", rf"/api/datasets/{REPO}/preupload/{REV}", Handler.preupload),
    ("POST", rf"/api/datasets/{REPO}/commit/{REV}", Handler.commit),
    ("POST", rf"/api/datasets/{REPO}/tag/{REV}", Handler.tag),
    ("DELETE", rf"/api/datasets/{REPO}/tag/{REV}", Handler.untag),
    ("POST", rf"/datasets/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", rf"/datasets/{REPO}\.git/verify", Handler.verify),
    ("GET HEAD", r"/cdn/(?P<path>.+)", Handler.large),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("GET HEAD", rf"/datasets/{REPO}/resolve/{REV}/(?P<path>.+)", Handler.resolve),
]
