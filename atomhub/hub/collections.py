"""Collections on the Hub: of each owner one per source, with the sets that were distilled from it."""

import hashlib

from atomhub.errors import UsageError
from atomhub.requests import call_hub, hub_api

_TITLE, _ABOUT = 59, 149
"""Most characters of a title and of a description that the Hub takes."""


def collect(repo: str, source: str, token: str | None = None) -> str:
    """Put a published set into its owner's collection of sets of its source, which is created if need be.

    Args:
        repo: ``user/name``; it may be in the collection already.
        source: Such as ``cifar10``.
        token: None: the one you are logged in with.

    Returns:
        The collection's address.

    Raises:
        UsageError: it is private, and the collection would tell of it.
        AtomhubError: the Hub cannot be reached, or does not allow it.
    """
    api = hub_api(token=token)
    title, owner = f"Distilled {source}", repo.split("/")[0]
    if len(title) > _TITLE:  # and those of other sources begin so as well
        title = f"{title[: _TITLE - 9]} {hashlib.sha256(source.encode()).hexdigest()[:8]}"
    about = f"A few synthetic images per class to train on, distilled from {source}"[:_ABOUT]

    def ask() -> str:
        if api.dataset_info(repo, expand=["private"]).private:
            raise UsageError(f"{repo} is private, and is in no collection.", "Push it without --collection.")
        made = api.create_collection(title, namespace=owner, description=about, exists_ok=True)
        return api.add_collection_item(made.slug, repo, "dataset", exists_ok=True).url

    return call_hub(ask, f"the collection {title!r} of {owner}", token)
