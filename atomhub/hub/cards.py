"""Render cards from the templates in ``cards/``. Text from manifests is escaped wherever it is printed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from atomhub.manifest import Manifest, Measurement
from atomhub.sources import ALIASES

if TYPE_CHECKING:
    from jinja2 import Environment


def dataset_card(manifest: Manifest, repo: str | None = None) -> str:
    """Return the README.md of a distilled set: YAML metadata and Markdown.

    Args:
        manifest: What is known of the set.
        repo: ``user/name`` on the Hub, for the lines that show how to use it; None: the set's name.
    """
    return (
        _environment()
        .get_template("dataset_card.md.j2")
        .render(
            m=manifest,
            where=repo or manifest.name,
            hosted=repo is not None,
            metadata=Markup(_metadata(manifest)),
            images=len(manifest.class_names) * manifest.ipc,
        )
    )


def model_card(manifest: Manifest, result: Measurement, parameters: int, repo: str | None = None) -> str:
    """Return the README.md of a network that was trained on a distilled set, with its result in ``model-index``.

    Args:
        manifest: Of the set.
        result: What was measured of the network.
        parameters: Numbers in the network.
        repo: Of the set on the Hub, if it is there.
    """
    from huggingface_hub import EvalResult, ModelCardData

    source = manifest.source
    metadata = ModelCardData(
        license=source.license,
        tags=["atomhub", "dataset-distillation", f"source:{slug(source.id)}", f"ipc:{manifest.ipc}"],
        datasets=[repo] if repo else None,
        pipeline_tag="image-classification",
        model_name=f"{result.network} on {manifest.name}",
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=source.id,
                dataset_name=f"{source.id} (test split)",
                metric_type="accuracy",
                metric_name=f"test accuracy (%), protocol {result.protocol}",
                metric_value=result.score.mean,
            )
        ],
    ).to_yaml()
    template = _environment().get_template("model_card.md.j2")
    return template.render(
        m=manifest, r=result, where=repo or manifest.name, parameters=parameters, metadata=Markup(metadata)
    )


def _environment() -> Environment:
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
    return environment


def refresh(card: str, manifest: Manifest, repo: str | None = None) -> str:
    """Return an existing card with its metadata and its generated sections, those between markers, up to date.

    Everything else is its owner's; a section whose markers were taken out is theirs as well.
    """
    return renewed(card, dataset_card(manifest, repo))


def renewed(card: str, fresh: str) -> str:
    """Return an existing card with metadata and generated sections of a fresh one; everything else is its owner's."""
    sections = {section["name"]: section[0] for section in _SECTION.finditer(fresh)}
    card = _SECTION.sub(lambda old: sections.get(old["name"], old[0]), card)
    front = _FRONT.match(fresh)
    metadata = front[1] if front else ""
    return _FRONT.sub(lambda old: f"---\n{_merged_metadata(old[1], metadata)}\n---\n", card, count=1)


def merged(own: str | None, theirs: str | None, manifest: Manifest, repo: str) -> str:
    """Return the card to publish, of the one beside the set and the one on the Hub.

    Words that their owner wrote are kept: those beside the set if there are any, else those on the Hub.
    """
    plain = _SECTION.sub("", _FRONT.sub("", dataset_card(manifest)))
    edited = own is not None and _SECTION.sub("", _FRONT.sub("", own)) != plain
    base = own if edited else theirs
    return dataset_card(manifest, repo) if base is None else refresh(base, manifest, repo)


_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def _merged_metadata(old: str, new: str) -> str:
    """Return the YAML block with our fields up to date and the owner's kept."""
    import yaml
    from huggingface_hub.utils import yaml_dump

    try:
        owner = yaml.safe_load(old)
    except yaml.YAMLError:
        return old  # theirs to mend
    if not isinstance(owner, dict):
        return old
    fresh = yaml.safe_load(new)
    tags = [
        t for t in owner.get("tags") or [] if not re.match(r"(source|ipc|recipe):", str(t)) and t not in fresh["tags"]
    ]
    return str(yaml_dump(owner | fresh | {"tags": fresh["tags"] + tags}, sort_keys=False)).strip()


_SECTION = re.compile(r"<!-- atomhub: (?P<name>\w+) -->.*?<!-- /atomhub: (?P=name) -->", re.DOTALL)


def _metadata(manifest: Manifest) -> str:
    """Return the YAML block of the Hub: licence, task, size, tags, and where the parquet lies."""
    from huggingface_hub import DatasetCardData

    source = manifest.source
    count = len(manifest.class_names) * manifest.ipc
    repo = ALIASES[source.id].repo if source.id in ALIASES else source.id if source.kind == "hub" else None
    result = next((r for r in manifest.results if r.labels == "hard"), None)
    claim = {"mean": result.score.mean, "std": result.score.std, "protocol": result.protocol} if result else None
    size = count * source.channels * source.size**2 * (4 if manifest.recipe.pixels == "float32" else 1)
    files = [{"split": "train", "path": "data/train-*.parquet"}]
    if manifest.formation > 1:
        files.append({"split": "views", "path": "data/views-*.parquet"})
    return DatasetCardData(
        license=source.license,
        task_categories=["image-classification"],
        size_categories=["n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"],
        source_datasets=[repo] if repo else None,
        pretty_name=manifest.name,
        tags=[
            "atomhub",
            "dataset-distillation",
            f"source:{slug(source.id)}",
            f"ipc:{manifest.ipc}",
            f"recipe:{slug(manifest.recipe.name)}",
        ],
        atomhub={"size": size} | ({"result": claim} if claim else {}),
        configs=[{"config_name": "default", "data_files": files}],
    ).to_yaml()


def slug(text: str) -> str:
    """Return text as part of a tag."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


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
