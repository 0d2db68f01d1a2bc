"""Collections on the Hub: of each owner one per source, with the sets that were distilled from it."""

from atomhub.requests import call_hub, hub_api

_TITLE = 59
"""Most characters of a title that the Hub takes."""


def collect(repo: str, source: str, token: str | None = None) -> str:
    """Put a published set into its owner's collection of sets of its source, which is created if need be.

    Args:
        repo: ``user/name``; it may be in the collection already.
        source: Such as ``cifar10``.
        token: None: the one you are logged in with.

    Returns:
        The collection's address.

    Raises:
        AtomhubError: the Hub cannot be reached, or does not allow it.
    """
    api = hub_api(token=token)
    title, owner = f"Distilled {source}"[:_TITLE], repo.split("/")[0]
    about = f"Sets distilled from {source}: a few synthetic images per class to train on."

    def ask() -> str:
        made = api.create_collection(title, namespace=owner, description=about, exists_ok=True)
        return api.add_collection_item(made.slug, repo, "dataset", exists_ok=True).url

    return call_hub(ask, f"the collection {title!r} of {owner}", token)
