"""Trained networks on disk and on the Hub: weights in safetensors, config in JSON, a model card."""

import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from atomhub import limits
from atomhub.core.whitening import Normalization, Whitening
from atomhub.errors import IntegrityError, NotFoundError, UsageError, first_line
from atomhub.files import carry_over, check_target, new_folder, open_regular, read_regular, snapshot_of, user_path
from atomhub.hub.pull import download, split_name
from atomhub.hub.push import check_account, publish
from atomhub.storage import cards
from atomhub.training.classifier import Classifier, ModelConfig, planned

WEIGHTS = "model.safetensors"
CONFIG = "atomhub.json"
CARD = "README.md"
_WHITENING = "whitening."
_SIZES = {WEIGHTS: range(limits.WEIGHTS + 1), CONFIG: range(limits.MANIFEST + 1), CARD: range(limits.CARD + 1)}
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
        carry_over(target, temporary, _SIZES)
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
    root = snapshot_of(folder) or folder
    try:
        config = ModelConfig.model_validate(limits.parse_json(read_regular(folder / CONFIG, limits.MANIFEST, root)))
        with open_regular(folder / WEIGHTS, root) as file:
            large = os.fstat(file.fileno()).st_size > limits.WEIGHTS
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{folder} is not a network trained by atomhub: it has no {Path(str(error.filename)).name}."
        ) from None
    except (ValueError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        raise IntegrityError(f"{folder / CONFIG} is not a valid config: {reason}.", "Get a fresh copy.") from error
    try:
        if large:
            raise ValueError(f"there are more than {limits.WEIGHTS} bytes")
        zca, numbers = config.whitening == "zca", config.channels * config.size**2
        whitening: dict[str, Any] = {}
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 no dict
            beside = {f"{_WHITENING}center": (numbers,), f"{_WHITENING}matrix": (numbers, numbers)} if zca else {}
            network = planned(config, sum(math.prod(s) for n, s in shapes.items() if n not in beside))
            expected = {name: tuple(t.shape) for name, t in network.sketch().state_dict().items()} | beside
            if shapes != expected:
                name = min(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n))
                raise ValueError(f"{name} is {shapes.get(name)}, and should be {expected.get(name)}")
            tensors = {name: file.get_tensor(name) for name in shapes}
        if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors.values()):
            raise ValueError("some weights are not finite")
        whitening = {name: tensors.pop(_WHITENING + name).float() for name in ("center", "matrix") if zca}
        model = network.build()
        model.load_state_dict(tensors)
    except UsageError:
        raise
    except (
        SafetensorError, RuntimeError, LookupError, ValueError, TypeError, OSError, AssertionError, ArithmeticError,
        AttributeError,
    ) as error:  # fmt: skip
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise IntegrityError(
            f"{folder / WEIGHTS} does not hold the weights of {config.network}: {reason}.", "Get a fresh copy."
        ) from error
    normalization = Whitening(config.mean, config.std, **whitening) if zca else Normalization(config.mean, config.std)
    card = ""
    with suppress(OSError):
        card = read_regular(folder / CARD, limits.CARD, root).decode(errors="replace")
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
    folder = user_path(repo_or_dir)
    if folder.is_dir():
        return read(folder)
    if isinstance(repo_or_dir, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", repo_or_dir):
        raise NotFoundError(
            f"There is no network {str(repo_or_dir)!r} on this machine.", "On the Hub networks are called user/name."
        )
    repo, revision = split_name(repo_or_dir, revision)
    what = "a network trained by atomhub"
    return download("model", repo, revision, _SIZES, read=read, token=token, what=what)


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
