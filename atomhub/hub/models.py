"""Trained networks on disk and on the Hub: weights in safetensors, config in JSON, a model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from atomhub.core.whitening import Normalization, Whitening
from atomhub.errors import AtomhubError, IntegrityError, NotFoundError, UsageError
from atomhub.files import check_target, new_folder
from atomhub.hub import cards, remote
from atomhub.hub.client import told
from atomhub.training.classifier import Classifier, ModelConfig, untrained

WEIGHTS = "model.safetensors"
CONFIG = "atomhub.json"
CARD = "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
_WHITENING = "whitening."
_LARGEST = {WEIGHTS: 2**32, CONFIG: 2**22, CARD: 2**22}
"""Bytes a file of a stranger's model may have."""


def write(classifier: Classifier, folder: Path, overwrite: bool = False) -> Path:
    """Write a network to a folder, all or nothing; return the folder.

    Raises:
        AtomhubError: the folder exists and may not be replaced, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    check_target(folder, overwrite, CONFIG)
    with new_folder(folder, overwrite) as temporary:
        for name, content in _content(classifier).items():
            (temporary / name).write_bytes(content)
    return folder


def _content(classifier: Classifier, repo: str | None = None) -> dict[str, bytes]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.model.state_dict().items()}
    normalization = classifier.normalization
    if isinstance(normalization, Whitening):
        tensors |= {f"{_WHITENING}center": normalization.center, f"{_WHITENING}matrix": normalization.matrix}
    card = classifier.card.replace('load_model("user/name")', f'load_model("{repo}")') if repo else classifier.card
    config = classifier.config.model_dump_json(indent=1) + "\n"
    return {WEIGHTS: save(tensors), CONFIG: config.encode(), CARD: card.encode()}


def read(folder: Path) -> Classifier:
    """Read a network from a folder.

    Raises:
        NotFoundError: the folder holds no network.
        IntegrityError: the files do not fit each other, or cannot be read.
        UsageError: the network is not one that atomhub can build.
    """
    path = folder / CONFIG
    if not path.exists() or not (folder / WEIGHTS).exists():
        what = next((name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()), CONFIG)
        raise NotFoundError(f"{folder} is not a network trained by atomhub: it has no {what}.")
    try:
        config = ModelConfig.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise IntegrityError(f"{path} is not a valid config: {reason}.", "Get a fresh copy.") from error
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        whitening = {name: tensors.pop(_WHITENING + name) for name in ("center", "matrix")} if config.zca else {}
        numbers = config.channels * config.size**2
        if config.zca and [tuple(t.shape) for t in whitening.values()] != [(numbers,), (numbers, numbers)]:
            raise ValueError("the whitening has another size")
        if sum(t.numel() for t in tensors.values()) > 2 * config.parameters + 2**20:  # buffers besides
            raise ValueError("there are more numbers than the network has")
        model = untrained(config)
        model.load_state_dict(tensors)
        if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors.values()):
            raise ValueError("some weights are not finite")
    except UsageError:
        raise
    except (SafetensorError, RuntimeError, KeyError, ValueError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise IntegrityError(
            f"{folder / WEIGHTS} does not hold the weights of {config.network}: {reason}.", "Get a fresh copy."
        ) from error
    normalization = (
        Whitening(config.mean, config.std, **whitening) if config.zca else Normalization(config.mean, config.std)
    )
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).exists() else ""
    return Classifier(model.eval(), config, normalization, card)


def load_model(repo_or_dir: str | Path, revision: str | None = None, token: str | None = None) -> Classifier:
    """Load a network that :func:`atomhub.train_classifier` trained, ready to predict.

    >>> classifier.predict(PIL.Image.open("cat.jpg"))  # doctest: +SKIP
    {'cat': 0.83, 'dog': 0.09, ...}

    Args:
        repo_or_dir: A folder, or a model repository on the Hub, ``user/name`` or ``user/name@revision``.
        revision: Branch, tag or commit.
        token: For private repositories; None: the one you are logged in with.

    Raises:
        NotFoundError: there is no such folder or repository, or no network in it.
        IntegrityError: the files do not fit each other.
        AtomhubError: the Hub cannot be reached.
    """
    folder = Path(repo_or_dir).expanduser()
    if folder.is_dir():
        return read(folder)
    if isinstance(repo_or_dir, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", repo_or_dir):
        raise NotFoundError(
            f"There is no network {str(repo_or_dir)!r} on this machine.", "On the Hub networks are called user/name."
        )
    return read(remote.snapshot(repo_or_dir, FILES, _LARGEST, revision, token))


def push(
    classifier: Classifier,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Publish a network as a model repository, in one commit; return its address.

    Args:
        classifier: The network.
        repo_id: ``user/name``, or a name under your own account.
        private: Of a new repository; None: the account's default.
        token: None: the one you are logged in with.
        commit_message: None: says what is pushed.

    Raises:
        AtomhubError: not logged in, not allowed, the repository holds something else, the Hub cannot be reached.
    """
    api = HfApi(token=token)
    account = remote.check_account(repo_id, token)

    def ask(work: Any) -> Any:
        return told(work, repo_id, token, account)

    name = ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
    info = ask(lambda: api.model_info(name))
    paths = {s.rfilename for s in info.siblings or []} - {".gitattributes", CARD}
    if paths and CONFIG not in paths:
        raise AtomhubError(
            f"{name} is not a network trained by atomhub: it holds {', '.join(sorted(paths)[:4])}.",
            "Name another repository.",
        )
    content = _content(classifier, name)
    if CONFIG in paths and CARD in {s.rfilename for s in info.siblings or []}:  # what its owner wrote is kept
        theirs = ask(lambda: hf_hub_download(name, CARD, revision=info.sha, token=token))
        there = Path(theirs).read_text(encoding="utf-8", errors="replace")
        content[CARD] = cards.renewed(there, content[CARD].decode()).encode()
    operations = [CommitOperationAdd(path, data) for path, data in content.items()]
    message = commit_message or f"Publish {classifier.config.network} trained on {classifier.config.trained_on}"
    ask(lambda: api.create_commit(name, operations, commit_message=message, parent_commit=info.sha))
    return f"{api.endpoint}/{name}"
