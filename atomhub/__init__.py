"""atomhub: the hub for distilled datasets.

>>> import atomhub
>>> distilled = atomhub.distill("digits", ipc=1, overrides={"iterations": 5})
>>> images, labels = distilled.as_tensors()
>>> tuple(images.shape), labels.tolist()
((10, 1, 16, 16), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomhub.composition import concat as concat
    from atomhub.distilled import DistilledDataset as DistilledDataset
    from atomhub.errors import AtomhubError as AtomhubError
    from atomhub.hub.models import load_model as load_model
    from atomhub.hub.store import load as load
    from atomhub.pipeline import distill as distill
    from atomhub.recipe import Recipe as Recipe
    from atomhub.sources import open_source as open_source
    from atomhub.training.classifier import Classifier as Classifier
    from atomhub.training.classifier import accuracy as accuracy
    from atomhub.training.classifier import train as train
    from atomhub.training.classifier import train_classifier as train_classifier
    from atomhub.training.evaluation import evaluate as evaluate
    from atomhub.training.evaluation import verify as verify
    from atomhub.training.search import search as search
    from atomhub.training.softening import soften as soften

_WHERE = {
    "distill": "atomhub.pipeline",
    "load": "atomhub.hub.store",
    "concat": "atomhub.composition",
    "train": "atomhub.training.classifier",
    "accuracy": "atomhub.training.classifier",
    "evaluate": "atomhub.training.evaluation",
    "verify": "atomhub.training.evaluation",
    "search": "atomhub.training.search",
    "soften": "atomhub.training.softening",
    "train_classifier": "atomhub.training.classifier",
    "load_model": "atomhub.hub.models",
    "open_source": "atomhub.sources",
    "Classifier": "atomhub.training.classifier",
    "DistilledDataset": "atomhub.distilled",
    "Recipe": "atomhub.recipe",
    "AtomhubError": "atomhub.errors",
}

__all__ = [
    "AtomhubError", "Classifier", "DistilledDataset", "Recipe", "accuracy", "concat", "distill", "evaluate", "load",
    "load_model", "open_source", "search", "soften", "train", "train_classifier", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names when first used, so that importing atomhub stays cheap."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("atomhub")
        except PackageNotFoundError:  # a source tree that was not installed
            return "unknown"
    if name not in _WHERE:
        raise AttributeError(f"module 'atomhub' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
