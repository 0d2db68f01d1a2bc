"""What the Hub of the tests holds, and what goes wrong with it."""

import hashlib
from dataclasses import dataclass, field


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, Commit] = field(default_factory=dict)
    downloads: int = 0

    def commit(self, title, files):
        """Add a commit and return it."""
        text = title + "".join(f"{p}{hashlib.sha1(c).hexdigest()}" for p, c in sorted(files.items()))
        made = Commit(hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest(), title, dict(files))
        self.commits.append(made)
        return made

    def at(self, revision):
        """Return the commit of a branch, tag, pull request or commit id; None if there is none."""
        if revision in (None, "main"):
            return self.commits[-1]
        if revision in self.pulls:
            return self.pulls[revision]
        oid = self.tags.get(revision, revision)
        return next((c for c in self.commits if c.oid == oid), None)


@dataclass
class Fault:
    """What goes wrong with requests that match.

    Attributes:
        method, path: Which ones: a method, and a pattern searched in the path.
        times: How often.
        status, headers: What is answered.
        cut: Bytes after which the connection is dropped instead (of the body that is sent or received).
        before: Called before the request is served as usual, in place of an answer.
    """

    method: str
    path: str
    times: int = 1
    status: int = 500
    headers: dict = field(default_factory=dict)
    cut: int | None = None
    before: object = None
