"""Render cards from the templates in ``cards/``. Text from manifests is escaped wherever it is printed."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from atomhub.manifest import Manifest
from atomhub.sources import ALIASES


def dataset_card(manifest: Manifest) -> str:
    """Return the README.md of a distilled set: YAML metadata and Markdown."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("atomhub.cards", ""),
        finalize=_escape,  # every expression, so that a template cannot forget to
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    return environment.get_template("dataset_card.md.j2").render(
        m=manifest, metadata=Markup(_metadata(manifest)), images=len(manifest.class_names) * manifest.ipc
    )


def refresh(card: str, manifest: Manifest) -> str:
    """Return an existing card with its generated sections, those between markers, brought up to date.

    Everything else is its owner's; a section whose markers were taken out is theirs as well.
    """
    fresh = {section["name"]: section[0] for section in _SECTION.finditer(dataset_card(manifest))}
    return _SECTION.sub(lambda old: fresh.get(old["name"], old[0]), card)


_SECTION = re.compile(r"<!-- atomhub: (?P<name>\w+) -->.*?<!-- /atomhub: (?P=name) -->", re.DOTALL)


def _metadata(manifest: Manifest) -> str:
    """Return the YAML block of the Hub: licence, task, size, tags, and where the parquet lies."""
    from huggingface_hub import DatasetCardData

    source = manifest.source
    count = len(manifest.class_names) * manifest.ipc
    repo = ALIASES[source.id].repo if source.id in ALIASES else source.id if source.kind == "hub" else None
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source.id)
    return DatasetCardData(
        license=source.license,
        task_categories=["image-classification"],
        size_categories=["n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"],
        source_datasets=[repo] if repo else None,
        pretty_name=manifest.name,
        tags=[
            "atomhub",
            "dataset-distillation",
            f"source:{slug}",
            f"ipc:{manifest.ipc}",
            f"recipe:{manifest.recipe.name}",
        ],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    ).to_yaml()


def _escape(value: Any) -> Any:
    """Make text mean itself in Markdown and HTML, on one line; numbers and trusted Markup pass."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    line = " ".join(value.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~$@]|:(?=//))", r"\\\1", line)


def _code(value: Any) -> Markup:
    """Return text for a line of a code block or an inline code span: one line without backquotes."""
    return Markup(" ".join(str(value).split()).replace("`", "'"))
