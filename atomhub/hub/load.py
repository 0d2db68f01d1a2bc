"""How a name becomes a set: a folder, the local store, the sets that come with atomhub, the Hub."""

import re
from pathlib import Path

from atomhub.dataset import DistilledDataset
from atomhub.storage import formats, store


def load(
    name_or_path: str | Path, revision: str | None = None, token: str | None = None, local_files_only: bool = False,
    labels: bool = False,
) -> DistilledDataset:  # fmt: skip
    """Load a distilled set and verify it.

    Args:
        name_or_path: The folder of a set; the name of a set in the local store, or of one that comes with atomhub; or
            a set on the Hub, ``user/name`` or ``user/name@revision``, which is downloaded once. Any other bare name
            means ``$ATOMHUB_NAMESPACE/name`` where that is set, else what the index of names says, which pins a commit
            and a digest (``atomhub list --update`` fetches the newest). The first that is there counts.
        revision: Branch, tag or commit on the Hub.
        token: For private sets on the Hub; None: the one you are logged in with.
        local_files_only: Use what was downloaded before; the Hub is not asked.
        labels: Download the stored labels of a set on the Hub as well, which may be many times as large as the set.

    Raises:
        NotFoundError: there is no such set.
        IntegrityError: the set was tampered with or is incomplete; nothing of it is used.
        AtomhubError: the Hub cannot be reached and nothing was downloaded before.
    """
    if revision is None and (folder := store.find(name_or_path)):
        return formats.read(folder)
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or not re.fullmatch(r"([\w.-]+/)?[\w.-]+(@[\w./-]+)?", name):
        raise store.missing(name)
    from atomhub.hub.pull import pull

    return pull(name, revision, token=token, local_files_only=local_files_only, labels=labels)
