"""Readers: digits, image folders, parquet, arrow and Hub datasets as rows of encoded images with class numbers."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from atomhub.data.tables import TEST_NAMES, TRAIN_NAMES, Columns, Raw, Rows, pick, quiet_datasets, tables
from atomhub.errors import SourceError, UsageError, check_installed, first_line
from atomhub.files import read_regular
from atomhub.limits import PICTURE
from atomhub.manifest import MANIFEST, TENSORS

IMAGE_SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm",
))  # fmt: skip


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
    seen = _Seen()
    train_name = pick(columns.train, TRAIN_NAMES, folders, "train folder")
    if train_name is None:
        if columns.test is not None:
            raise UsageError(
                f"{root} has no train folder beside which {columns.test!r} could be the test split.",
                "Name it with `train_split`, or set images aside with `test_fraction`.",
            )
        return Raw(*_image_rows(root, root, seen), None, "all", None, notes=seen.notes())
    class_names, train = _image_rows(folders.pop(train_name), root, seen)
    test_name = pick(columns.test, TEST_NAMES, folders, "test folder")
    test = _image_rows(folders[test_name], root, seen, class_names)[1] if test_name else None
    for folder in _folders(root):
        if folder.name not in (train_name, test_name) and any(is_image(p) for p in pictured(folder, root)):
            seen.unused.append(folder.name)
    seen.look_outside(root, root)
    return Raw(class_names, train, test, train_name, test_name, notes=seen.notes())


def is_set(folder: Path) -> bool:
    """Whether a folder is a distilled set, whose pictures and tables are nobody's real images."""
    return (folder / MANIFEST).is_file() and (folder / TENSORS).is_file()


def is_image(path: Path) -> bool:
    """Whether a file is called like an image, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def pictured(folder: Path, source: Path) -> Iterator[Path]:
    """Yield all files below a folder of a source but hidden ones, those of hidden folders and of distilled sets.

    Raises:
        SourceError: a folder below cannot be read, or is a link, and would be left out without a word.
    """

    def fail(error: OSError) -> None:
        raise SourceError(f"Cannot read the folder {error.filename}: {error.strerror}.", "Make it readable.")

    for at, inner, names in os.walk(folder, onerror=fail):
        inner[:] = [n for n in inner if not n.startswith(".") and not is_set(Path(at, n))]
        if linked := next((n for n in inner if Path(at, n).is_symlink()), None):
            raise SourceError(
                f"{Path(at, linked).relative_to(source.parent)} is a link to a folder, and is not read.",
                "Copy what it leads to into the folder.",
            )
        yield from (Path(at, n) for n in names if not n.startswith("."))


@dataclass(frozen=True)
class _Seen:
    """What a user may not expect.

    Attributes:
        other: Suffixes of files that are no images.
        inner: Folders inside of those of classes.
        unused: Folders beside those of splits.
        outside: Images in no folder of a class.
    """

    other: Counter[str] = field(default_factory=Counter)
    inner: dict[str, None] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def look_outside(self, folder: Path, source: Path) -> None:
        """Add the images that lie in a folder of class folders itself."""
        self.outside.extend(sorted(str(p.relative_to(source.parent)) for p in folder.iterdir() if is_image(p)))

    def notes(self) -> tuple[str, ...]:
        found = []
        if self.other:
            kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in sorted(self.other.items()))
            found.append(f"Files that are not images were left out: {kinds}.")
        if self.unused:
            which = "folders" if len(self.unused) > 1 else "folder"
            found.append(f"Images of the {which} {', '.join(self.unused)} beside the splits were left out.")
        if self.outside:
            count = f"{len(self.outside)} images, such as " if len(self.outside) > 1 else ""
            found.append(f"Left out, as no class folder has them: {count}{self.outside[0]}.")
        if self.inner:
            some = f"such as {next(iter(self.inner))}, are" if len(self.inner) > 1 else f"{next(iter(self.inner))}, is"
            count = f"{len(self.inner)} folders" if len(self.inner) > 1 else "folder"
            found.append(f"Classes are the outer folders: the {count} inside them, {some} not told apart.")
        return tuple(found)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and not is_set(p))


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
    seen.look_outside(root, source)
    for folder in folders:
        if folder.name not in names:
            raise SourceError(f"{root} has the class {folder.name!r}, which the training images do not have.")
        found, others = [], Counter[str]()
        for path in sorted(pictured(folder, source)):
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise SourceError(f"The name of {str(path)!r} is not UTF-8 text.", "Rename it.") from None
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
                if path.parent != folder:
                    seen.inner[str(path.parent.relative_to(root))] = None
            else:
                others[path.suffix.lower()] += 1
        seen.other.update(others)
        if not found:
            suffixes = f": its files end in {', '.join(sorted(others))}" if others else ""
            raise SourceError(f"The class folder {folder} has no images{suffixes}.", "Add some, or remove the folder.")
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
    raw = tables(splits, columns, folder)
    others = sum(map(is_image, pictured(folder, folder))) - sum(len(table) for table in splits.values())
    note = f"Images that no metadata lists were left out: {others}."
    return replace(raw, notes=(*raw.notes, note)) if others > 0 else raw


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
