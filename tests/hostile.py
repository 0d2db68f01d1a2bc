"""What someone who knows the format would do to a set: change it, and make all digests agree again."""

import hashlib
import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from atomhub.cli.main import main
from atomhub.manifest import digest

PARQUET = "data/train-00000-of-00001.parquet"


def run(*words):
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
        raise SystemExit(0)
    return ended.value.code or 0


def described(folder, *names):
    """Give the manifest the digests and sizes of changed files."""
    data = json.loads((folder / "manifest.json").read_text())
    for name in names:
        content = (folder / name).read_bytes()
        data["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(data))


def signed(folder, **changes):
    """Change parts of the manifest field by field, and make the tensors belong to it."""
    data = json.loads((folder / "manifest.json").read_text())
    for part, fields in changes.items():
        data[part] = data[part] | fields if isinstance(fields, dict) else fields
    (folder / "manifest.json").write_text(json.dumps(data))
    path = folder / "distilled.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["atomhub"])
    save_file(load_file(path), path, {"atomhub": json.dumps(header | {"manifest": digest(data)})})
    described(folder, path.name)
