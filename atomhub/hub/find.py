"""Distilled sets on the Hugging Face Hub, found by their tags; what their cards say are claims."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._pagination import paginate
from pydantic import BaseModel, Field, ValidationError

from atomhub import limits
from atomhub.errors import UsageError
from atomhub.requests import WHO, call_hub
from atomhub.results import REVISION
from atomhub.storage import cards
from atomhub.text import plain
from atomhub.training.protocols import column, find_protocol

_MOST = 1000
"""Most sets that are listed."""
_CLAIMS = 20
"""Most results of a card that are read."""


class Claim(BaseModel, frozen=True, allow_inf_nan=False):
    """An accuracy that a card claims: mean and standard deviation over some networks, in percent."""

    protocol: limits.Word
    network: limits.Word
    mean: float = Field(ge=0, le=100)
    std: float = Field(ge=0, le=100)
    runs: int = Field(ge=1, le=limits.RUNS)
    revision: int = 1

    @property
    def column(self) -> str | None:
        """Where it belongs in a table (:func:`atomhub.training.protocols.column`)."""
        return column(self.protocol, self.network) if self.revision == REVISION else None


@dataclass(frozen=True)
class Listed:
    """A distilled set on the Hub as its card claims it to be; nothing of it was verified.

    Attributes:
        name: ``user/name``.
        source, ipc, recipe: From its tags.
        claims: Of its results.
        size, downloads, modified: Bytes of its images, the Hub's count, date of the last change (ISO 8601).
    """

    name: str
    source: str
    ipc: int
    recipe: str
    claims: tuple[Claim, ...]
    size: int | None
    downloads: int
    modified: str


def search(
    author: str | None = None, source: str | None = None, ipc: int | None = None,
    sort: Literal["accuracy", "downloads", "recent"] = "downloads", protocol: str = "dm", token: str | None = None,
) -> list[Listed]:  # fmt: skip
    """Return the distilled sets on the Hub, by their tags.

    Args:
        author: User or organisation.
        source: Such as ``cifar10``.
        ipc: Images per class.
        sort: By the accuracy claimed under a protocol for its network, by downloads, or by date of the last change.
        protocol: The protocol to sort by.
        token: To see private ones.
    """
    wanted = ["atomhub", "dataset-distillation"]
    wanted += [f"source:{cards.slug(source)}"] if source else []
    wanted += [f"ipc:{ipc}"] if ipc else []
    headers = build_hf_headers(token=token, **WHO)
    asked = {"filter": wanted, "expand": ["tags", "downloads", "lastModified", "cardData"], "limit": _MOST}
    asked |= {"author": author} if author else {}
    address = f"{constants.ENDPOINT}/api/datasets"
    # the JSON as it is: huggingface_hub's own reading fails for all where one card is odd
    found = call_hub(lambda: [dict(e) for e in islice(paginate(address, asked, headers), _MOST)], "the Hub", token)
    listed = [item for entry in found if (item := _listed(entry))]
    if sort == "accuracy" and find_protocol(protocol).norm is None:
        raise UsageError(f"Sets cannot be ordered by the protocol {protocol!r}: each has another network in it.")

    def claimed(item: Listed) -> float:
        return max((c.mean for c in item.claims if c.protocol == protocol and c.column), default=-1.0)

    keys: dict[str, Callable[[Listed], Any]] = {
        "accuracy": claimed,
        "downloads": lambda item: item.downloads,
        "recent": lambda item: item.modified,
    }
    return sorted(listed, key=keys[sort], reverse=True)


def _listed(entry: dict[str, Any]) -> Listed | None:
    """Return what an answer of the Hub says of a set, each part of it only where it can be true."""
    if not isinstance(entry.get("id"), str):
        return None
    given = entry.get("tags")
    tags = dict(t.split(":", 1) for t in given if isinstance(t, str) and ":" in t) if isinstance(given, list) else {}
    card = entry.get("cardData")
    ours = card.get("atomhub") if isinstance(card, dict) else None
    ours = ours if isinstance(ours, dict) else {}
    digits = tags.get("ipc", "")
    ipc = int(digits) if re.fullmatch(r"[0-9]{1,9}", digits) and int(digits) <= limits.IPC else 0
    size, downloads = ours.get("size"), entry.get("downloads")
    claims: list[Claim] = []
    results = ours.get("results")
    for result in results[:_CLAIMS] if isinstance(results, list) else ():
        with suppress(ValidationError):
            claims.append(Claim.model_validate(result, strict=True))
    return Listed(
        name=plain(entry["id"], 200), source=plain(tags.get("source", "?"), 100), ipc=ipc,
        recipe=plain(tags.get("recipe", "?"), 100), claims=tuple(claims),
        size=size if type(size) is int and 0 <= size <= limits.IMAGES else None,
        downloads=downloads if type(downloads) is int and 0 <= downloads < 10**15 else 0,
        modified=plain(entry.get("lastModified") or "", 40),
    )  # fmt: skip
