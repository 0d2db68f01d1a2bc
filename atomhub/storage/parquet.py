"""The parquet of a set holds what its tensors hold: checked by its footer first, then a few rows at a time."""

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from atomhub.dataset import DistilledDataset
from atomhub.errors import IntegrityError, first_line
from atomhub.manifest import TENSORS, Format
from atomhub.storage.formats import PARQUET, RESTORE, VIEWS, largest, largest_footer, open_file


def check_parquet(distilled: DistilledDataset, folder: Path) -> None:
    """Check that the parquet holds the images, labels and class names of the tensors; IntegrityError otherwise.

    Its digest says that it is the publisher's; this, that those who load it without atomhub get the same set.
    """
    _check_table(folder, PARQUET, distilled, distilled.pictures(stored=True), distilled.labels)
    if distilled.manifest.format.formation > 1:
        _check_table(folder, VIEWS, distilled, distilled.pictures(), distilled.training_labels())


def _check_table(folder: Path, name: str, distilled: DistilledDataset, pictures: list[Any], labels: Tensor) -> None:
    form = distilled.manifest.format
    slack = (
        0 if name == PARQUET else 1
    )  # views are enlarged in floating point, which another processor rounds otherwise
    try:
        with open_file(folder, name) as content:
            table = _opened_table(content, form, len(labels), largest(name, form))
            row = 0
            # few rows at a time: a value may be repeated in each of them
            for batch in table.iter_batches(batch_size=16):
                if batch["label"].to_pylist() != labels[row : row + len(batch)].tolist():
                    raise ValueError("the labels differ")
                for cell in batch["image"]:
                    if not _same_picture(cell["bytes"].as_py(), pictures[row], slack):
                        raise ValueError(f"the image of row {row} differs")
                    row += 1
    except Exception as error:  # whatever a stranger's bytes make of the readers
        if isinstance(error, MemoryError):
            raise
        if isinstance(error, ValueError) and "differ" in str(error):
            why = f"does not hold the images and classes of {TENSORS}: {error}"
        else:
            why = f"cannot be read: {first_line(error)}"
        raise IntegrityError(f"{folder / name} {why}.", RESTORE) from error


def _opened_table(content: BinaryIO, form: Format, rows: int, most: int) -> Any:
    """Return a parquet file whose footer promises these rows in our columns, and no more bytes than they can have.

    Footers may lie, but what is not compressed, or by Snappy, is at most 21 times as large as it looks.
    """
    import pyarrow as pa
    from pyarrow import parquet

    content.seek(-8, io.SEEK_END)
    if int.from_bytes(content.read(4), "little") > largest_footer(form):
        raise ValueError("its footer is too large")
    limit = {"thrift_string_size_limit": largest_footer(form), "thrift_container_size_limit": 10_000}
    table = parquet.ParquetFile(content, pre_buffer=False, **limit)
    footer = table.metadata
    if footer.num_rows != rows or footer.num_row_groups > max(rows, 1):
        raise ValueError(f"it has {footer.num_rows} rows, and the number must not differ from {rows}")
    image = {t.name: t.type for t in table.schema_arrow.field("image").type}
    kinds = {"bytes": (pa.binary(), pa.large_binary()), "path": (pa.string(), pa.large_string())}
    plain = set(image) == set(kinds) and all(image[key] in some for key, some in kinds.items())
    if table.schema_arrow.names != ["image", "label"] or footer.num_columns != 3 or not plain:
        raise ValueError("its columns differ from image (bytes and path) and label")
    if table.schema_arrow.field("label").type != pa.int64():
        raise ValueError("its labels differ from int64")
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(k) for group in groups for k in range(3)]
    if bad := {c.compression for c in chunks} - {"UNCOMPRESSED", "SNAPPY"}:
        raise ValueError(f"it is compressed by {min(bad)}, which may hide any size")
    if sum(c.total_uncompressed_size for c in chunks) > most:
        raise ValueError(f"it would have more than {most} bytes in memory")
    features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    if tuple(features["label"]["names"]) != form.class_names:
        raise ValueError("its class names differ")
    return table


def _same_picture(content: bytes | None, expected: Any, slack: int) -> bool:
    from PIL import Image

    picture = Image.open(io.BytesIO(content or b""), formats=["PNG"])
    if (picture.size, picture.mode) != (expected.size, expected.mode):
        return False
    difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(expected, dtype=int))
    return bool(difference.max() <= slack)
