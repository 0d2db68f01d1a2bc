"""Where a source is: a name, a path or a Hub id becomes a place that can be read."""

import csv
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from atomhub.data import objects
from atomhub.data.cache import SMALLEST
from atomhub.data.readers import is_image, is_set
from atomhub.data.real import SourceOptions, decoded_before
from atomhub.data.tables import TEST_NAMES, TRAIN_NAMES
from atomhub.errors import AtomhubError, AtomhubWarning, NotFoundError, SourceError, UsageError, closest
from atomhub.files import snapshot_of, user_path
from atomhub.manifest import MANIFEST
from atomhub.requests import call_hub, hub_api


@dataclass(frozen=True)
class Alias:
    """A well-known dataset: its Hub id and what its users expect. ``columns`` are tried before detection."""

    repo: str
    columns: tuple[str, ...] = ()
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    size: int | None = None
    flip: bool = True
    license: str = "unknown"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ALIASES: dict[str, Alias] = {
    "mnist": Alias("ylecun/mnist", flip=False, license="mit", mean=(0.1307,), std=(0.3081,)),
    "fashion-mnist": Alias("zalando-datasets/fashion_mnist", license="mit", mean=(0.2861,), std=(0.3530,)),
    "cifar10": Alias("uoft-cs/cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Alias(
        "uoft-cs/cifar100", ("img", "fine_label"), mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762)
    ),
    "svhn": Alias(
        "ufldl-stanford/svhn", config="cropped_digits", flip=False,
        mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970),
    ),
    "tiny-imagenet": Alias("zh-plus/tiny-imagenet", **_IMAGENET),
    # the repository itself is a loading script, which datasets 4 no longer runs: its parquet branch has the images
    "imagenette": Alias(
        "frgfm/imagenette", data_dir="160px", revision="refs/convert/parquet", size=128, license="apache-2.0",
        **_IMAGENET,
    ),
}  # fmt: skip
"""Names for Hub datasets; normalisation constants are the literature's (DC, DM, DataDAM code bases)."""


METADATA = ("metadata.csv", "metadata.jsonl")
"""Files that say the classes of the images beside them, as ``datasets``' imagefolder has them."""


@dataclass(frozen=True)
class Place:
    """Where a source was found.

    ``stamp`` changes when the data do; ``token``: only those who log in may read it; ``given``: it is an object.
    """

    id: str
    kind: str
    alias: Alias
    stamp: Any
    path: Path | None = None
    files: Mapping[str, list[str]] = field(default_factory=dict)
    repo: str = ""
    revision: str | None = None
    token: bool = False
    given: objects.Given | None = None


def locate(source: object, options: SourceOptions) -> Place:
    """Return where a source is: a known name, a path, a dataset of the Hub, or an object (:mod:`atomhub.data.objects`).

    Raises:
        NotFoundError: it is none of these.
        SourceError: the Hub cannot be reached, or the file is no parquet.
        UsageError: an object that is no source.
    """
    if not isinstance(source, str | Path):
        found = objects.given(source)
        return Place(f"memory:{found.name}", "memory", Alias(""), found.stamp(), given=found)
    is_path, source = isinstance(source, Path), str(source)
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The name {source!r} is not UTF-8 text.", "Rename the folder.") from None
    path = user_path(source)
    if not (is_path and path.exists()) and (named := locate_named(source, options)):
        return named
    if path.exists():
        return _locate_folder(f"folder:{path.resolve().name}", path.resolve(), Alias(""))
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return locate_hub(source, Alias(source), options)
    raise NotFoundError(
        f"There is no source {source!r}: it is neither a folder here, nor a known name, nor a Hub id (user/name).",
        closest(source, [*ALIASES, "digits"]),
    )


def on_this_machine(name: str) -> bool:
    """Whether a name means data that are here: the digits, or a folder of ``ATOMHUB_DATA``."""
    data = os.environ.get("ATOMHUB_DATA")
    return name == "digits" or bool(data and re.fullmatch(r"[\w-][\w.-]*", name) and (Path(data) / name).is_dir())


def locate_named(name: str, options: SourceOptions) -> Place | None:
    """Find what has a name: the digits, a folder of ``ATOMHUB_DATA``, a known dataset of the Hub."""
    if name == "digits":
        alias = Alias("", size=SMALLEST, flip=False, license="cc-by-4.0")
        return Place("digits", "digits", alias, "scikit-learn", None)
    if on_this_machine(name):
        return _locate_folder(name, Path(os.environ["ATOMHUB_DATA"]) / name, ALIASES.get(name, Alias("")))
    return locate_hub(name, ALIASES[name], options) if name in ALIASES else None


def _locate_folder(name: str, path: Path, alias: Alias) -> Place:
    everything = [] if path.is_file() else sorted(path.rglob("*"))
    sets = {p.parent for p in everything if p.name == MANIFEST and is_set(p.parent)} - {path}

    def skipped(file: Path) -> bool:  # hidden, or of a distilled set that was saved here
        return any(p.startswith(".") for p in file.relative_to(path).parts) or not sets.isdisjoint(file.parents)

    below = [p for p in everything if not skipped(p) and p not in sets]
    found = [p for p in below if p.is_file()] or [path] * path.is_file()
    tables = [p for p in found if p.suffix == ".parquet"]
    root = snapshot_of(path if path.is_dir() else path.parent) or (path if path.is_dir() else path.parent)
    if out := next((p for p in tables if not p.resolve().is_relative_to(root.resolve())), None):
        raise SourceError(f"{out} is a link that leads out of its folder, and is not read.", "Copy the file there.")
    stamp = [str(path), [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in found],
             [(str(p), p.is_symlink()) for p in below if p.is_dir()]]  # fmt: skip
    classes = {p.parent for p in found if is_image(p)} - {path}
    if tables and len(classes) > 1 and path.is_dir():
        raise SourceError(
            f"{path} has the table {tables[0].relative_to(path)}, and images in {len(classes)} folders.",
            "Give the one or the other, in a folder of its own.",
        )
    if tables:
        files: dict[str, list[str]] = {}
        for table in tables:
            files.setdefault(_split_of(table, path), []).append(str(table))
        return Place(name, "parquet", alias, stamp, path, files)
    if path.is_file():
        raise SourceError(f"{path} is not a parquet file.", "Give a .parquet file or a folder.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Place(name, "arrow", alias, stamp, path)
    metadata = [p for p in found if p.name in METADATA]
    listed = bool(metadata) and (not classes or any(_lists_files(p) for p in metadata))
    return Place(name, "metadata" if listed else "images", alias, stamp, path)


def _lists_files(metadata: Path) -> bool:
    """Whether a table names images, as ``datasets``' imagefolder wants it; others may lie beside folders of classes.

    Raises:
        SourceError: it does, and is not separated by commas.
    """
    with metadata.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
    if metadata.suffix == ".csv":
        columns = next(csv.reader([first]), [])
    else:
        try:
            columns = list(json.loads(first))
        except (ValueError, TypeError):
            columns = []
    listed = any(re.fullmatch(r"(.*_)?file_names?", str(name)) for name in columns)
    if not listed and metadata.suffix == ".csv" and "file_name" in first:
        raise SourceError(f"{metadata} is not separated by commas: it begins with {first.strip()[:80]!r}.")
    return listed


def _split_of(table: Path, root: Path) -> str:
    """Guess the split of a parquet file from its name or its folder: ``mnist_train-00000``, ``test/0000``."""
    parts = [table.stem, *(p for p in table.parent.parts[len(root.parts) :])] if root.is_dir() else [table.stem]
    words = [word for part in parts for word in re.split(r"[^A-Za-z]+", part.lower())]
    return next((w for w in words if w in TRAIN_NAMES + TEST_NAMES), words[0] or "all")


def locate_hub(name: str, alias: Alias, options: SourceOptions) -> Place:
    """Ask the Hub for the commit behind a revision; when it cannot be reached, use what was decoded before.

    The user's token is sent only where the dataset cannot be read without.
    """
    wanted = options.revision or alias.revision
    try:
        sha, token = call_hub(lambda: _commit(alias.repo, wanted), alias.repo, None)
    except NotFoundError as error:
        if "revision" in error.message:
            raise NotFoundError(f"The dataset {alias.repo!r} has no revision {wanted!r}.") from error
        raise NotFoundError(
            f"There is no dataset {alias.repo!r} on the Hub, or it is private.",
            "Check the name; for a private one log in with: hf auth login",
        ) from error
    except UsageError as error:
        raise UsageError(f"{alias.repo!r} is not the id of a dataset on the Hub.", error.hint) from error
    except AtomhubError as error:  # no network, no answer, a server's error
        before = decoded_before(name, options)
        if before is None:
            in_data = f", or put parquet files in $ATOMHUB_DATA/{name}/." if name in ALIASES else "."
            raise SourceError(error.message, f"Check the network{in_data}") from error
        sha, token = before, False
        note = f"The Hub cannot be reached: using {name} as decoded before (commit {sha[:8]})."
        warnings.warn(note, AtomhubWarning, stacklevel=4)
    return hub_place(name, alias, sha, token)


def hub_place(name: str, alias: Alias, commit: str, token: bool = False) -> Place:
    """Return a dataset of the Hub at a commit as a place."""
    return Place(name, "hub", alias, commit, repo=alias.repo, revision=commit, token=token)


def _commit(repo: str, revision: str | None) -> tuple[str, bool]:
    """Return the commit of a revision, and whether one must log in to read it."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    def ask(token: bool) -> Any:
        return hub_api(token=token).dataset_info(repo, revision=revision, expand=["sha", "gated"])

    try:
        info = ask(False)
        return str(info.sha), bool(info.gated) and get_token() is not None
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404) or get_token() is None:
            raise
    return str(ask(True).sha), True


def hub_size(repo: str, revision: str | None) -> int | None:
    """Return the bytes of a dataset of the Hub, asked for without a token; None: it is not told, or cannot be known."""
    from huggingface_hub.hf_api import RepoFile

    def ask() -> int:
        tree = hub_api(token=False).list_repo_tree(repo, recursive=True, repo_type="dataset", revision=revision)
        return sum(entry.size for entry in islice(tree, 10_000) if isinstance(entry, RepoFile))

    try:
        return call_hub(ask, repo, None)
    except AtomhubError:
        return None
