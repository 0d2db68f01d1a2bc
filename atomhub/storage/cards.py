"""Render cards from the templates in ``cards/``. Text from manifests is escaped wherever it is printed."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from atomhub import limits
from atomhub.data.places import ALIASES
from atomhub.manifest import Manifest
from atomhub.provenance import Provenance, recipe_name
from atomhub.recipe import Recipe
from atomhub.results import REVISION, Measurement, claimed
from atomhub.text import plain

if TYPE_CHECKING:
    from jinja2 import Environment


def dataset_card(manifest: Manifest, repo: str | None = None) -> str:
    """Return the README.md of a distilled set: YAML metadata and Markdown.

    Args:
        manifest: What is known of the set.
        repo: ``user/name`` on the Hub, for the lines that show how to use it; None: the set's name.
    """
    template = _environment().get_template("dataset_card.md.j2")
    where, metadata = repo or manifest.name, Markup(_metadata(manifest))
    return template.render(**_parts(manifest), where=where, hosted=repo is not None, metadata=metadata)


def model_card(
    manifest: Manifest, network: str, result: Measurement | None, parameters: int, repo: str | None = None
) -> str:  # fmt: skip
    """Return the README.md of a network that was trained on a distilled set, with its result in ``model-index``.

    Args:
        manifest: The manifest of the set.
        network: Its name.
        result: What was measured of it; None: nothing.
        parameters: Numbers in the network.
        repo: The set on the Hub, if it is there.
    """
    from huggingface_hub import EvalResult, ModelCardData

    source = manifest.provenance.source_id
    metadata = ModelCardData(
        license=plain(manifest.provenance.license, 100),
        tags=["atomhub", "dataset-distillation", f"source:{slug(source)}", f"ipc:{manifest.format.ipc}"],
        datasets=[repo] if repo else None,
        pipeline_tag="image-classification",
        library_name="atomhub",
        model_name=f"{network} on {manifest.name}",
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=source,
                dataset_name=f"{source} (test split)",
                metric_type="accuracy",
                metric_name=f"test accuracy (%), protocol {result.protocol}, {result.network}",
                metric_value=result.score.mean,
            )  # fmt: skip
        ]
        if result
        else None,
    ).to_yaml()
    template = _environment().get_template("model_card.md.j2")
    facts = {"network": network, "result": result, "where": repo or manifest.name, "parameters": parameters}
    return template.render(**_parts(manifest), **facts, metadata=Markup(metadata))


def _parts(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as the templates know it: ``f`` format, ``p`` provenance, ``results`` what was measured."""
    p = manifest.provenance
    return {
        "m": manifest, "f": manifest.format, "p": p, "results": manifest.results.measured,
        "recipe": p.recipe if isinstance(p.recipe, Recipe) else None, "images": manifest.format.shape[0],
        "tables": result_tables(manifest.results.measured), "methods": _methods(p),
    }  # fmt: skip


_METHODS = {
    "channel": 'S. Khaki et al., "ATOM: Attention Mixer for Efficient Dataset Distillation", CVPR workshop on dataset '
    "distillation, 2024 ([arXiv 2405.01373](https://arxiv.org/abs/2405.01373)).",
    "spatial": 'A. Sajedi et al., "DataDAM: Efficient Dataset Distillation with Attention Matching", ICCV 2023 '
    "([arXiv 2310.00093](https://arxiv.org/abs/2310.00093)).",
    "feature": 'B. Zhao and H. Bilen, "Dataset Condensation with Distribution Matching", WACV 2023 ([arXiv 2110.04181](https://arxiv.org/abs/2110.04181)).',
    "gradient": 'B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 '
    "([arXiv 2006.05929](https://arxiv.org/abs/2006.05929)).",
    "linear": 'G. Cazenavette, A. Torralba and V. Sitzmann, "Dataset Distillation for Pre-Trained Self-Supervised '
    'Vision Models", NeurIPS 2025 ([arXiv 2511.16674](https://arxiv.org/abs/2511.16674)).',
    "layer": 'T. Wang, J.-Y. Zhu, A. Torralba and A. A. Efros, "Dataset Distillation", 2018 '
    "([arXiv 1811.10959](https://arxiv.org/abs/1811.10959)).",
    "bank": 'H. Zhang et al., "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024.',
    "formation": 'J. Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.',
    "tiles": 'P. Sun et al., "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation '
    'Paradigm", CVPR 2024 ([arXiv 2312.03526](https://arxiv.org/abs/2312.03526)).',
}


def _methods(p: Provenance) -> list[Markup]:
    """Return where the methods of a set's recipes were published: the latest of its matching, and its other parts."""
    found = dict.fromkeys(
        _METHODS[part]
        for r in (p.recipe, *(part.recipe for part in p.parts)) if isinstance(r, Recipe)
        for part, used in (
            ("channel", r.channel), ("spatial", r.spatial and not r.channel),
            ("feature", r.feature and not (r.channel or r.spatial)), ("gradient", r.gradient), ("linear", r.linear),
            ("layer", r.layer),
            ("bank", r.bank), ("formation", r.formation > 1 or r.gradient), ("tiles", r.init == "tiles"),
        ) if used and (r.iterations or (part == "formation" and r.formation > 1) or part == "tiles")
    )  # fmt: skip
    return [Markup(text) for text in found]


def result_tables(measured: Sequence[Measurement]) -> list[tuple[str, list[Measurement]]]:
    """Return results in tables with titles: those of different protocols, norms or labels cannot be compared."""
    tables: dict[str, list[Measurement]] = {}
    for r in sorted(measured, key=lambda r: r.labels):
        norm = re.search(r"norm=(instance|batch)\b", r.network)
        parts = [r.protocol, r.taught, f"{norm[1]} norm" if norm else ""]
        title = ", ".join(filter(None, parts)) + " (an older revision)" * (r.revision != REVISION)
        tables.setdefault(title, []).append(r)
    return list(tables.items())


@cache
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
    environment.filters |= {"code": _code, "fenced": _fenced, "recipe": _recipe}
    return environment


def renewed(card: str, fresh: str) -> str:
    """Return an existing card with the metadata and the generated sections, those between markers, of a fresh one.

    Everything else is its owner's; a section whose markers were taken out is theirs as well.
    """
    sections = {name: text for name, text in _pieces(fresh) if name}
    body = "".join(sections.get(name, text) for name, text in _pieces(card))
    (front, rest), (ours, _) = _front(body), _front(fresh)
    return body if front is None else f"---\n{_merged_metadata(front, ours or '')}\n---\n{rest}"


def merged(own: str | None, manifest: Manifest, repo: str, theirs: str | None) -> str:
    """Return the card to publish, of the one beside the set and the one on the Hub.

    Words that their owner wrote are kept: those beside the set if there are any, else those on the Hub.
    """
    edited = own is not None and _words(own) != _words(dataset_card(manifest))
    base = own if edited else theirs
    fresh = dataset_card(manifest, repo)
    return fresh if base is None else renewed(base, fresh)


def _front(card: str) -> tuple[str | None, str]:
    """Return the YAML block of a card, or None, and what follows it."""
    end = card.find("\n---\n", 3) if card.startswith("---\n") else -1
    return (None, card) if end < 0 else (card[4:end], card[end + 5 :])


def _pieces(card: str) -> Iterator[tuple[str, str]]:
    """Yield a card in pieces: (name, text) of the generated sections, with their markers, and ("", text) between."""
    start = 0
    ends: dict[str, list[int]] = {}
    for mark in re.finditer(r"<!-- (/?)atomhub: (\w{1,40}) -->", card):
        if mark[1]:
            ends.setdefault(mark[2], []).append(mark.end())
    for mark in re.finditer(r"<!-- atomhub: (\w{1,40}) -->", card):
        if mark.start() < start or not (after := ends.get(mark[1])):
            continue
        if (place := bisect(after, mark.end())) < len(after):
            yield "", card[start : mark.start()]
            start = after[place]
            yield mark[1], card[mark.start() : start]
    yield "", card[start:]


def _words(card: str) -> str:
    """Return what of a card its owner may have written."""
    return "".join(text for name, text in _pieces(_front(card)[1]) if not name)


def _merged_metadata(old: str, new: str) -> str:
    """Return the YAML block with our fields up to date and the owner's kept."""
    import yaml
    from huggingface_hub.utils import yaml_dump

    if len(old) > limits.FRONT or old.count("[") + old.count("{") > limits.BRACKETS:
        return old  # theirs to mend

    try:
        # a node used twice may stand for any number of them
        if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(old, yaml.SafeLoader)):
            return old
        owner = yaml.safe_load(old)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        return old  # theirs to mend
    if not isinstance(owner, dict):
        return old
    fresh = yaml.safe_load(new)
    theirs = owner.get("tags")
    theirs = [t for t in theirs if isinstance(t, str)] if isinstance(theirs, list) else []
    tags = [t for t in theirs if not re.match(r"(source|ipc|recipe):", t) and t not in fresh["tags"]]
    try:
        return str(yaml_dump(owner | fresh | {"tags": fresh["tags"] + tags}, sort_keys=False)).strip()
    except (yaml.YAMLError, RecursionError, ValueError, TypeError):
        return old


def _metadata(manifest: Manifest) -> str:
    """Return the YAML block of the Hub: licence, task, size, tags, and where the parquet lies."""
    from huggingface_hub import DatasetCardData

    form, p = manifest.format, manifest.provenance
    alias = ALIASES.get(p.source_id)
    repo = alias.repo if alias else p.source_id if p.source and p.source.kind == "hub" else None
    claims = claimed(manifest.results.measured)
    count = form.shape[0]
    files = [{"split": "train", "path": "data/train-*.parquet"}]
    if form.formation > 1:
        files.append({"split": "views", "path": "data/views-*.parquet"})
    return DatasetCardData(
        license=plain(p.license, 100),
        task_categories=["image-classification"],
        task_ids=["multi-class-image-classification"],
        annotations_creators=["machine-generated"],
        size_categories=["n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"],
        source_datasets=[repo] if repo else None,
        pretty_name=manifest.name,
        tags=[
            "atomhub",
            "dataset-distillation",
            f"source:{slug(p.source_id)}",
            f"ipc:{form.ipc}",
            f"recipe:{slug(p.method)}",
        ],  # fmt: skip
        atomhub={"size": form.bytes} | ({"results": claims} if claims else {}),
        configs=[{"config_name": "default", "data_files": files}],
    ).to_yaml()


def slug(text: str) -> str:
    """Return text as part of a tag."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def _escape(value: Any) -> Any:
    """Make text mean itself in Markdown and HTML, on one line; numbers and trusted Markup pass."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    line = " ".join(plain(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~$@]|:(?=//))", r"\\\1", line)


def _recipe(recipe: Recipe | dict[str, Any]) -> str:
    """Return a recipe in a line: its name and what differs from the preset of that name."""
    return recipe.describe() if isinstance(recipe, Recipe) else recipe_name(recipe)


def _fenced(value: Any) -> Markup:
    """Return text for a code block as it is, on one line; what could end the block loses its backquotes."""
    text = plain(value, limits.CARD)
    return Markup(text.replace("`", "'") if "```" in text else text)


def _code(value: Any) -> Markup:
    """Return text for a line of a code block or an inline code span: one line without backquotes."""
    return Markup(" ".join(plain(value).split()).replace("`", "'"))
