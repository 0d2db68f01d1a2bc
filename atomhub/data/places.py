"""Where a source is: a name, a path or a Hub id becomes a place that can be read."""

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomhub.data.cache import SMALLEST
from atomhub.data.real import SourceOptions, decoded_before
from atomhub.data.tables import TEST_NAMES, TRAIN_NAMES
from atomhub.errors import AtomhubWarning, NotFoundError, SourceError, UsageError, closest, first_line


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


@dataclass(frozen=True)
class Place:
    """Where a source was found. ``stamp`` changes when the data do."""

    id: str
    kind: str
    alias: Alias
    stamp: Any
    path: Path | None = None
    files: Mapping[str, list[str]] = field(default_factory=dict)
    repo: str = ""
    revision: str | None = None


def locate(source: str, options: SourceOptions) -> Place:
    """Return where a source is: a known name, a path, or a dataset of the Hub.

    Raises:
        NotFoundError: it is none of these.
        SourceError: the Hub cannot be reached, or the file is no parquet.
    """
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The name {source!r} is not UTF-8 text.", "Rename the folder.") from None
    path = Path(source).expanduser()
    if named := locate_named(source, options):
        return named
    if path.exists():
        return _locate_folder(f"folder:{path.resolve().name}", path.resolve(), Alias(""))
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return locate_hub(source, Alias(source), options)
    raise NotFoundError(
        f"There is no source {source!r}: it is neither a folder here, nor a known name, nor a Hub id (user/name).",
        closest(source, [*ALIASES, "digits"]),
    )


def locate_named(name: str, options: SourceOptions) -> Place | None:
    """Find what has a name: the digits, a folder of ``ATOMHUB_DATA``, a known dataset of the Hub."""
    if name == "digits":
        alias = Alias("", size=SMALLEST, flip=False, license="cc-by-4.0")
        return Place("digits", "digits", alias, "scikit-learn", None)
    data = os.environ.get("ATOMHUB_DATA")
    if data and re.fullmatch(r"[\w-][\w.-]*", name) and (Path(data) / name).is_dir():
        return _locate_folder(name, Path(data) / name, ALIASES.get(name, Alias("")))
    return locate_hub(name, ALIASES[name], options) if name in ALIASES else None


def _locate_folder(name: str, path: Path, alias: Alias) -> Place:
    def hidden(file: Path) -> bool:
        return any(part.startswith(".") for part in file.relative_to(path).parts)

    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not hidden(p))
    stamp = [str(path), [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in found]]
    tables = [p for p in found if p.suffix == ".parquet"]
    if tables:
        files: dict[str, list[str]] = {}
        for table in tables:
            files.setdefault(_split_of(table, path), []).append(str(table))
        return Place(name, "parquet", alias, stamp, path, files)
    if path.is_file():
        raise SourceError(f"{path} is not a parquet file.", "Give a .parquet file or a folder.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Place(name, "arrow", alias, stamp, path)
    return Place(name, "images", alias, stamp, path)


def _split_of(table: Path, root: Path) -> str:
    """Guess the split of a parquet file from its name or its folder: ``mnist_train-00000``, ``test/0000``."""
    parts = [table.stem, *(p for p in table.parent.parts[len(root.parts) :])] if root.is_dir() else [table.stem]
    words = [word for part in parts for word in re.split(r"[^A-Za-z]+", part.lower())]
    return next((w for w in words if w in TRAIN_NAMES + TEST_NAMES), words[0] or "all")


def locate_hub(name: str, alias: Alias, options: SourceOptions) -> Place:
    """Ask the Hub for the commit behind a revision; when it cannot be reached, use what was decoded before."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = options.revision or alias.revision
    try:
        sha = HfApi().dataset_info(alias.repo, revision=wanted).sha
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"There is no dataset {alias.repo!r} on the Hub, or it is private.",
            "Check the name; for a private one log in with: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"The dataset {alias.repo!r} has no revision {wanted!r}.") from error
    except HFValidationError as error:
        raise UsageError(
            f"{alias.repo!r} is not the id of a dataset on the Hub.", "Ids look like user/name."
        ) from error
    except Exception as error:  # no network, no answer, a server's error: each client library has its own
        sha = decoded_before(name, options)
        if sha is None:
            raise SourceError(
                f"The Hub cannot be reached to read {alias.repo!r}: {first_line(error)}.",
                f"Check the network, or put parquet files in $ATOMHUB_DATA/{name}/."
                if name in ALIASES
                else "Check the network.",
            ) from error
        note = f"The Hub cannot be reached: using {name} as decoded before (commit {sha[:8]})."
        warnings.warn(note, AtomhubWarning, stacklevel=4)
    return Place(name, "hub", alias, sha, repo=alias.repo, revision=sha)
