"""Seconds to decode 60 000 PNGs of 32x32 pixels from a folder and from parquet, beside Pillow alone.

    python benchmarks/decode.py [--images 60000]

Pillow alone opens, decodes and copies each file in one thread: what any reader needs at least, times the cores.
"""

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import write
from PIL import Image

CLASSES = 10


def encoded(rng):
    """Return a PNG that is about as hard to decode as a photo."""
    low = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    noisy = np.asarray(low).astype(int) + rng.integers(-8, 9, (32, 32, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["ATOMHUB_HOME"] = str(Path(home) / "home")
        import pyarrow as pa
        from pyarrow import parquet

        import atomhub

        rng, root = np.random.default_rng(0), Path(home) / "images"
        pictures = [encoded(rng) for _ in range(1000)]  # again and again: what is decoded is the same work
        labels = np.arange(arguments.images) % CLASSES
        for i, label in enumerate(labels):
            folder = root / ("train" if i % 6 else "test") / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:06}.png").write_bytes(pictures[i % 1000])
        table = pa.table({
            "image": pa.array([{"bytes": pictures[i % 1000], "path": None} for i in range(arguments.images)]),
            "label": pa.array([str(label) for label in labels]),
        })  # fmt: skip
        parquet.write_table(table, Path(home) / "train.parquet")
        del table

        start = time.perf_counter()
        for i in range(arguments.images):
            image = Image.open(io.BytesIO(pictures[i % 1000]))
            image.load()
            np.asarray(image.convert("RGB")).transpose(2, 0, 1).tobytes()
        alone = time.perf_counter() - start
        seconds = {"Pillow alone, from memory": alone}
        for name, source, options in (
            ("folder", root, {}), ("parquet", Path(home) / "train.parquet", {"test_fraction": 0}),
        ):  # fmt: skip
            start = time.perf_counter()
            atomhub.open_source(source, **options)
            seconds[name] = time.perf_counter() - start
        for name, took in seconds.items():
            print(f"{name:28} {took:6.1f} s  {took / alone:.2f} of Pillow alone")
    print(write("decode", torch.device("cpu"), images=arguments.images, seconds=seconds))


if __name__ == "__main__":
    main()
