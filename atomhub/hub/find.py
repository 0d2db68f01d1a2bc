"""Distilled sets on the Hugging Face Hub, found by their tags; what their cards say are claims."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import HfApi

from atomhub.hub.requests import call_hub
from atomhub.storage import cards


@dataclass(frozen=True)
class Listed:
    """A distilled set on the Hub as its card claims it to be; nothing of it was verified.

    Attributes:
        name: ``user/name``.
        source, ipc, recipe: From its tags.
        claim: ``mean``, ``std`` and ``protocol`` of its first result, if it has one.
        size, downloads, modified: Bytes of its images, the Hub's count, date of the last change (ISO 8601).
    """

    name: str
    source: str
    ipc: int
    recipe: str
    claim: dict[str, Any] | None
    size: int | None
    downloads: int
    modified: str


def search(
    author: str | None = None, source: str | None = None, ipc: int | None = None,
    sort: Literal["accuracy", "downloads", "recent"] = "downloads", token: str | None = None,
) -> list[Listed]:  # fmt: skip
    """Return the distilled sets on the Hub, by their tags.

    Args:
        author: User or organisation.
        source: Such as ``cifar10``.
        ipc: Images per class.
        sort: By claimed accuracy, downloads, or date of the last change.
        token: To see private ones.
    """
    wanted = ["atomhub", "dataset-distillation"]
    wanted += [f"source:{cards.slug(source)}"] if source else []
    wanted += [f"ipc:{ipc}"] if ipc else []
    api = HfApi(token=token)
    expand: Any = ["tags", "downloads", "lastModified", "cardData"]
    found = call_hub(lambda: list(api.list_datasets(filter=wanted, author=author, expand=expand)), "the Hub", token)
    listed = [_listed(info) for info in found]
    keys: dict[str, Callable[[Listed], Any]] = {
        "accuracy": lambda item: (item.claim or {}).get("mean", -1.0),
        "downloads": lambda item: item.downloads,
        "recent": lambda item: item.modified,
    }
    return sorted(listed, key=keys[sort], reverse=True)


def _listed(info: Any) -> Listed:
    tags = dict(tag.split(":", 1) for tag in info.tags or [] if ":" in tag)
    card = info.card_data.to_dict() if info.card_data else {}
    ours: Any = card.get("atomhub")
    ours = ours if isinstance(ours, dict) else {}
    result: Any = ours.get("result")
    numbers = isinstance(result, dict) and all(isinstance(result.get(k), int | float) for k in ("mean", "std"))
    return Listed(
        name=info.id,
        source=tags.get("source", "?"),
        ipc=int(tags["ipc"]) if tags.get("ipc", "").isdecimal() else 0,
        recipe=tags.get("recipe", "?"),
        claim={"mean": result["mean"], "std": result["std"], "protocol": str(result.get("protocol"))}
        if numbers
        else None,
        size=ours.get("size") if isinstance(ours.get("size"), int) else None,
        downloads=info.downloads or 0,
        modified=info.last_modified.isoformat() if info.last_modified else "",
    )
