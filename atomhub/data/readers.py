"""Readers: digits, image folders, parquet, arrow and Hub datasets as rows of encoded images with class numbers."""

import glob
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomhub.data.tables import TEST_NAMES, TRAIN_NAMES, Columns, Raw, Rows, pick, quiet_datasets, tables
from atomhub.errors import SourceError, check_installed, first_line
from atomhub.files import read_regular
from atomhub.limits import PICTURE

IMAGE_SUFFIXES = frozenset(
    f".{s}" for s in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "avif", "ppm", "pgm")
)


def digits() -> Raw:
    """scikit-learn's 1 797 handwritten digits (UCI Optdigits, CC BY 4.0): one split of 8x8 greyscale images."""
    check_installed("The source 'digits'", "distill", "sklearn")
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images * (255 / 16)).round().astype(np.uint8)  # 0..16 to 0..255
    rows = Rows(data.target.astype(np.int64), lambda i: Image.fromarray(pixels[i]), lambda i: f"digit {i}")
    return Raw(tuple(str(k) for k in range(10)), rows, None, test_split=None)


def images(root: Path, columns: Columns) -> Raw:
    """Read an image folder: ``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``root/CLASS/*``."""
    root = root.resolve()
    # a folder without folders is a class that happens to be called train, not a split
    folders = {p.name: p for p in _folders(root) if _folders(p)}
    seen = _Seen(Counter(), {})
    train_name = pick(columns.train, TRAIN_NAMES, folders, "train folder")
    if train_name is None:
        return Raw(*_image_rows(root, root, seen), None, "all", None, notes=seen.notes())
    class_names, train = _image_rows(folders.pop(train_name), root, seen)
    test_name = pick(columns.test, TEST_NAMES, folders, "test folder")
    test = _image_rows(folders[test_name], root, seen, class_names)[1] if test_name else None
    return Raw(class_names, train, test, train_name, test_name, notes=seen.notes())


@dataclass(frozen=True)
class _Seen:
    """What a user may not expect: suffixes of files that are no images, and folders inside of those of classes."""

    other: Counter[str]
    inner: dict[str, None]

    def notes(self) -> tuple[str, ...]:
        found = []
        if self.other:
            kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in sorted(self.other.items()))
            found.append(f"Files that are not images were left out: {kinds}.")
        if self.inner:
            some = f"such as {next(iter(self.inner))}, are" if len(self.inner) > 1 else f"{next(iter(self.inner))}, is"
            count = f"{len(self.inner)} folders" if len(self.inner) > 1 else "folder"
            found.append(f"Classes are the outer folders: the {count} inside them, {some} not told apart.")
        return tuple(found)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_rows(
    root: Path, source: Path, seen: _Seen, class_names: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Rows]:
    """Read the class folders of a split of a source, which images must lie in; what else there is goes to ``seen``."""
    folders = _folders(root)
    if not folders:
        raise SourceError(f"{root} has no class folders.", "Put the images of each class in a folder of its own.")
    names = class_names or tuple(p.name for p in folders)
    files: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        if folder.name not in names:
            raise SourceError(f"{root} has the class {folder.name!r}, which the training images do not have.")
        found = []
        for path in sorted(p for p in folder.rglob("*") if not p.name.startswith(".") and not p.is_dir()):
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise SourceError(f"The name of {str(path)!r} is not UTF-8 text.", "Rename it.") from None
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
                if path.parent != folder:
                    seen.inner[str(path.parent.relative_to(root))] = None
            else:
                seen.other[path.suffix.lower()] += 1
        if not found:
            raise SourceError(f"The class folder {folder} has no images.", "Add some, or remove the folder.")
        files += found
        labels += [names.index(folder.name)] * len(found)
    return names, Rows(
        np.array(labels, dtype=np.int64),
        lambda i: read_regular(files[i], PICTURE, source),
        lambda i: str(files[i].relative_to(source.parent)),
    )


def listed(folder: Path, columns: Columns, workspace: Path) -> Raw:
    """Read images as ``datasets`` does whose classes a ``metadata.csv`` or ``.jsonl`` beside them lists."""
    from datasets import load_dataset

    try:
        with quiet_datasets():
            splits = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(workspace))
    except Exception as error:  # datasets wraps many errors in its own
        reason = first_line(error.__cause__ or error)
        raise SourceError(f"Cannot read the images that metadata lists in {folder}: {reason}.") from error
    return tables(splits, columns, folder)


def parquet(files: Mapping[str, list[str]], columns: Columns, workspace: Path) -> Raw:
    """Read parquet files, split name to paths, as ``datasets`` does; its arrow copy goes to ``workspace``."""
    from datasets import load_dataset

    splits: dict[str, Any] = {}
    for split, paths in files.items():  # each by itself: datasets would give all splits the class names of the first
        escaped = [glob.escape(path) for path in paths]
        try:
            with quiet_datasets():
                # any split name is fine here, so one that datasets accepts
                splits[split] = load_dataset("parquet", data_files=escaped, split="train", cache_dir=str(workspace))
        except Exception as error:  # datasets wraps pyarrow's many errors in its own
            names = ", ".join(Path(p).name for p in paths)
            reason = first_line(error.__cause__ or error)
            raise SourceError(f"Cannot read the parquet files {names}: {reason}.") from error
    return tables(splits, columns)


def arrow(folder: Path, columns: Columns) -> Raw:
    """Read what ``datasets.save_to_disk`` wrote."""
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:
        raise SourceError(f"Cannot read the arrow folder {folder}: {first_line(error)}.") from error
    return tables({"all": found} if isinstance(found, Dataset) else found, columns, folder)


def hub(repo: str, config: str | None, revision: str, data_dir: str | None, token: bool, columns: Columns) -> Raw:
    """Read a dataset of the Hub through ``datasets``, which keeps it in its own cache.

    Rows may name files of the repository that ``datasets`` downloaded, and no others. ``token``: whether to log in.
    """
    from datasets import load_dataset
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        splits = load_dataset(repo, config, revision=revision, data_dir=data_dir, token=token)
    except ValueError as error:
        if "onfig" in str(error):  # datasets lists the configurations in this error
            raise SourceError(
                f"{repo} needs a configuration: {first_line(error)}.", "Choose it with `config`."
            ) from error
        raise SourceError(f"Cannot read {repo} from the Hub: {first_line(error)}.") from error
    except Exception as error:
        raise SourceError(f"Cannot read {repo} from the Hub: {first_line(error)}.") from error
    return tables(splits, columns, Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="dataset"))
