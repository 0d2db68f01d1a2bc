"""Trained networks on disk and on the Hub: weights in safetensors, config in JSON, a model card."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from atomhub.core.whitening import Normalization, Whitening
from atomhub.errors import IntegrityError, NotFoundError, UsageError
from atomhub.files import check_target, new_folder
from atomhub.hub.pull import download, split_name
from atomhub.hub.push import check_account, publish
from atomhub.storage import cards
from atomhub.training.classifier import Classifier, ModelConfig, untrained

WEIGHTS = "model.safetensors"
CONFIG = "atomhub.json"
CARD = "README.md"
_WHITENING = "whitening."
_SIZES = {WEIGHTS: range(2**32), CONFIG: range(2**22), CARD: range(2**22)}
"""Bytes that a file of a stranger's model may have."""


def save_model(classifier: Classifier, folder: str | Path, overwrite: bool = False) -> Path:
    """Write weights (safetensors), config and model card to a folder, all or nothing; return the folder.

    Args:
        classifier: The network.
        folder: Where.
        overwrite: Replace a network that is there.

    Raises:
        AtomhubError: the folder exists and may not be replaced, or cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    check_target(target, overwrite, CONFIG)
    with new_folder(target, overwrite) as temporary:
        for name, content in _content(classifier).items():
            (temporary / name).write_bytes(content)
        (temporary / CARD).write_text(classifier.card, encoding="utf-8")
    return target


def _content(classifier: Classifier) -> dict[str, bytes]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.model.state_dict().items()}
    normalization = classifier.normalization
    if isinstance(normalization, Whitening):
        tensors |= {f"{_WHITENING}center": normalization.center, f"{_WHITENING}matrix": normalization.matrix}
    config = classifier.config.model_dump_json(indent=1) + "\n"
    return {WEIGHTS: save(tensors), CONFIG: config.encode()}


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
        zca = config.whitening == "zca"
        whitening = {name: tensors.pop(_WHITENING + name) for name in ("center", "matrix")} if zca else {}
        numbers = config.channels * config.size**2
        if zca and [tuple(t.shape) for t in whitening.values()] != [(numbers,), (numbers, numbers)]:
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
    normalization = Whitening(config.mean, config.std, **whitening) if zca else Normalization(config.mean, config.std)
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
    repo, revision = split_name(repo_or_dir, revision)
    what = "a network trained by atomhub"
    return read(download("model", repo, revision, _SIZES, token=token, what=what))


def push_model(classifier: Classifier, repo_id: str, *, token: str | None = None, **options: Any) -> str:
    """Publish a network as a model repository, in one commit; return its address.

    Args:
        classifier: The network.
        repo_id: ``user/name``, or a name under your own account.
        token: None: the one you are logged in with.
        options: Those of :func:`atomhub.hub.push.publish`, whose errors it raises as well.
    """
    check_account(repo_id, token)

    def card(repo: str, theirs: str | None) -> str:
        fresh = classifier.card.replace('load_model("user/name")', f'load_model("{repo}")')
        return fresh if theirs is None else cards.renewed(theirs, fresh)

    what = f"{classifier.config.network} trained on {classifier.config.trained_on}"
    return publish("model", what, _content(classifier), CONFIG, card, repo_id, token=token, **options).url
