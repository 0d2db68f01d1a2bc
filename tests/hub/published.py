"""What a published set consists of."""

from atomhub.storage import formats

FILES = {"README.md", "manifest.json", "distilled.safetensors", formats.PARQUET, "preview.png", "curve.png"}


def content(folder):
    """Return the files of a set but the card."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".md"
    }
