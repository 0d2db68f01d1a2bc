"""Mutated files of strangers against every reader: ``python tests/trust/fuzz.py CASES`` prints the peak memory in MB, without
the pages of the libraries.

Nothing but AtomhubError may come out. Cases are drawn by hypothesis, which shrinks the one that fails.
"""

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
WORK = Path(tempfile.mkdtemp(prefix="atomhub-fuzz-"))
os.environ["ATOMHUB_HOME"] = str(WORK / "home")

import pyarrow as pa
from hostile import described, signed
from hypothesis import HealthCheck, given, settings, strategies as st
from pyarrow import parquet
from safetensors.torch import load_file

from atomhub.errors import AtomhubError
from atomhub.hub import models
from atomhub.memory import peak_memory
from atomhub.storage import cards, formats, store
from atomhub.storage.parquet import check_parquet

PARQUET = "data/train-00000-of-00001.parquet"
VALUES = (
    None, True, -1, 0, 1, 2, 10**400, -(10**30), 1e308, 1e-320, 0.5, "", "x", "x" * 3000, "\ud800", "\x1b[2J\u202e", "../..", [], {},
    [[]], {"a": {}}, [1] * 3000, json.loads("[" * 40 + "]" * 40), float("nan"), "convnet:width=2048,depth=32", "vit_h_14", 8192,
)  # fmt: skip


def mutate(random, data):
    """Change one to three places of a JSON tree."""
    data = copy.deepcopy(data)
    for _ in range(random.randint(1, 3)):
        node = data
        while isinstance(node, dict | list) and node:
            key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
            if isinstance(node[key], dict | list) and node[key] and random.random() < 0.8:
                node = node[key]
                continue
            change = random.random()
            if change < 0.7:
                node[key] = copy.deepcopy(random.choice(VALUES))
            elif change < 0.85:
                del node[key]
            elif isinstance(node, dict):
                node[random.choice(["new", "\x1b", "a" * 500])] = copy.deepcopy(random.choice(VALUES))
            break
    return data


def flip(random, content, where=None):
    """Change some bytes, cut, or repeat a part."""
    content = bytearray(content)
    kind = random.random()
    if kind < 0.1:
        return bytes(content[: random.randrange(len(content))])
    if kind < 0.2:
        start = random.randrange(len(content))
        return bytes(content[:start] + content[start : start + 300] * 3 + content[start:])
    low, high = where or (0, len(content))
    for _ in range(random.randint(1, 8)):
        content[random.randrange(low, high)] = random.randrange(256)
    return bytes(content)


def only_our_errors(work):
    try:
        work()
    except AtomhubError as error:
        assert len(str(error)) < 20_000
        assert all(line.isprintable() for line in str(error).split("\n"))


def fresh(name="digits-ipc1"):
    folder = WORK / "set"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(store.STARTER / name, folder)
    return folder


def load_and_show(folder):
    one = formats.read(folder)
    check_parquet(one, folder)
    one.as_tensors()
    cards.dataset_card(one.manifest)


def manifest(random):
    folder = fresh()
    data = json.loads((folder / "manifest.json").read_text())
    changed = mutate(random, {key: data[key] for key in ("name", "format", "provenance", "results")})
    (folder / "manifest.json").write_text(json.dumps(mutate(random, data) if random.random() < 0.2 else data | changed))
    with contextlib.suppress(KeyError, TypeError, AttributeError, UnicodeError):  # not signed, then
        signed(folder)
    only_our_errors(lambda: load_and_show(folder))


def tensors(random):
    folder = fresh()
    path = folder / "distilled.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if random.random() < 0.5:
        header = json.dumps(mutate(random, json.loads(content[8 : 8 + size]))).encode()
        content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    else:
        content = flip(random, content, (0, 8 + size))
    path.write_bytes(content)
    described(folder, path.name)
    only_our_errors(lambda: load_and_show(folder))


def table(random):
    folder = fresh()
    path = folder / PARQUET
    content = path.read_bytes()
    if random.random() < 0.3:
        found = parquet.read_table(path)
        image = found["image"].to_pylist()
        image[random.randrange(len(image))] = random.choice(
            [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"\0" * 10**6, "path": None}]
        )
        columns = {"image": pa.array(image, found["image"].type), "label": found["label"]}
        if random.random() < 0.5:
            columns["more"] = pa.array([b"\0" * 10**6] * len(image))
        rows = pa.table(columns).replace_schema_metadata(found.schema.metadata)
        parquet.write_table(
            rows,
            path,
            compression=random.choice(["zstd", "snappy", "none", "gzip"]),
            use_dictionary=random.random() < 0.5,
        )
    else:
        footer = int.from_bytes(content[-8:-4], "little")
        path.write_bytes(flip(random, content, random.choice([None, (len(content) - 8 - footer, len(content))])))
    described(folder, PARQUET)
    only_our_errors(lambda: load_and_show(folder))


def card(random):
    old = (store.STARTER / "digits-ipc1" / "README.md").read_text()
    made = formats.read_manifest(store.STARTER / "digits-ipc1")
    pieces = ["---\n", "tags:", "- a\n", "&a ", "*a", "[" * 50, "{", "<!-- atomhub: results -->", "<!-- /atomhub: results -->", "\n---\n",
              "2020-99-99", "!!python/object:os.system", "\x00", "\ud800", "\u202e", "'", '"', ": ", "\n", "? ", "| ", "> "]  # fmt: skip
    for _ in range(random.randint(1, 12)):
        at = random.randrange(min(len(old), random.choice([200, 5000])))
        old = old[:at] + random.choice(pieces) * random.choice([1, 1, 5]) + old[at + random.choice([0, 10]) :]
    only_our_errors(lambda: cards.merged(old, made, "user/name", random.choice([None, old])))
    only_our_errors(lambda: cards.renewed(old, cards.dataset_card(made)))


def config(random):
    folder = WORK / "net"
    if not folder.exists():
        one = "atomhub.train_classifier(atomhub.load('digits-ipc1'), 'mlp:width=8', 'quick')"
        subprocess.run(
            [sys.executable, "-c", f"import atomhub; atomhub.save_model({one}, {str(folder)!r})"], check=True
        )
    broken = WORK / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(folder, broken)
    if random.random() < 0.7:
        data = json.loads((folder / "atomhub.json").read_text())
        (broken / "atomhub.json").write_text(json.dumps(mutate(random, data)))
    else:
        content = (folder / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(
            flip(random, content, (0, 8 + int.from_bytes(content[:8], "little")))
        )
        assert load_file(folder / "model.safetensors")
    only_our_errors(lambda: models.read(broken))


def main(cases):
    """Run all targets; return the peak memory in bytes."""
    warnings.simplefilter("ignore")
    for target in (manifest, tensors, table, card, config):
        rules = settings(max_examples=cases // 5, deadline=20_000, database=None, derandomize=cases <= 500,
                         suppress_health_check=list(HealthCheck))  # fmt: skip
        rules(given(st.randoms(use_true_random=False))(target))()
    # how many pages of the libraries' files are in the process is the system's choice, and no stranger's
    libraries = 1024 * int(re.search(r"RssFile:\s*(\d+)", Path("/proc/self/status").read_text()).group(1))
    return peak_memory(__import__("torch").device("cpu")) - libraries


if __name__ == "__main__":
    try:
        print(main(int(sys.argv[1])) // 10**6)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
        assert re.match(r".*/atomhub-fuzz-", str(WORK))
