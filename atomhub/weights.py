"""Weights of networks that were trained elsewhere: read, and put into a network."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from atomhub.errors import AtomhubError, UsageError, first_line
from atomhub.files import read_regular, user_path

FILE = ".safetensors"
TORCHVISION = "torchvision/"
"""Prefix of torchvision's classifiers; needed only for those that have a namesake among atomhub's."""
_LARGEST = 2**33
"""Bytes of a file of weights."""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of some tensors and their names, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(name.encode() + content.view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def with_weights(
    build: Callable[[], nn.Module], state: Mapping[str, Tensor], source: str, running: bool = False
) -> Callable[[], nn.Module]:  # fmt: skip
    """Return how to make a network with given weights; its last layer stays fresh where it has other classes.

    Args:
        build: Makes one with fresh weights.
        state: Its parameters by name, and buffers (the running statistics of batch norm), which may be missing.
        source: Where they are from, for errors.
        running: Refuse weights without running statistics.

    Raises:
        UsageError: they are not those of such a network.
    """
    prefix = "model."  # of grey networks of torchvision, which give theirs three channels
    bare = {n.removeprefix(prefix): t for n, t in state.items()} if all(n.startswith(prefix) for n in state) else state

    def loaded() -> nn.Module:
        whole = build()
        model = getattr(whole, "coloured", whole)
        own_prefix = all(name.startswith(prefix) for name, _ in model.named_parameters())
        weights = state if own_prefix else bare
        last = last_linear(model)
        for name, own in model.named_parameters():
            given = weights.get(name)
            if given is not None and given.shape == own.shape:
                own.data.copy_(given)
            elif name.rpartition(".")[0] != last:
                found = (
                    f"has the shape {tuple(given.shape)}, not {tuple(own.shape)}" if given is not None else "is missing"
                )
                raise UsageError(
                    f"The weights {source!r} are not those of this network: {name} {found}.",
                    "Use those of the network that is named.",
                )
        for name in sorted(weights.keys() - model.state_dict().keys()):
            # what counts batches, and the additional heads of torchvision's, say nothing of the network
            if name.rpartition(".")[0] != last and not re.match(r"aux|.*num_batches_tracked$", name, re.IGNORECASE):
                raise UsageError(
                    f"The weights {source!r} are not those of this network: it has no {name}.",
                    "Use those of the network that is named, norm and all.",
                )
        for name, buffer in model.named_buffers():
            given = weights.get(name)
            if given is not None and given.shape == buffer.shape:
                buffer.copy_(given)
            elif running and name.rpartition(".")[2] in ("running_mean", "running_var"):
                raise UsageError(
                    f"The weights {source!r} have no statistics of batch norm: {name} is missing.",
                    "Use a file with them; a recipe may also take those of real images, statistics=real.",
                )
        return whole

    loaded()  # now, if they do not fit
    return loaded


def last_linear(model: nn.Module) -> str | None:
    """Return the name of a network's last linear layer, which gives the classes; None if it has none."""
    return ([None, *(name for name, module in model.named_modules() if isinstance(module, nn.Linear))])[-1]


def read_weights(weights: str, network: str, pretrained: Callable[[], nn.Module] | None) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or those that torchvision or timm has under a name.

    Args:
        weights: The file; one of torchvision's names, such as ``IMAGENET1K_V1``; or ``pretrained``, those of timm.
        network: The network's name.
        pretrained: Makes one with timm's weights, which are fetched once; None: it is none of timm's.

    Raises:
        UsageError: the file cannot be read, or there are none of that name.
        AtomhubError: they cannot be fetched.
    """
    given, _, digest = weights.partition(" sha256:")  # as a recipe that was used names them
    if given.endswith(FILE):
        try:
            state = load(read_regular(user_path(given), _LARGEST))
        except (OSError, SafetensorError, ValueError) as error:
            raise UsageError(
                f"Cannot read the weights {given!r}: {first_line(error)}.",
                "A name without a folder is looked for in the current one.",
            ) from None
        if digest and digest != (found := digest_of(state)):
            raise UsageError(
                f"The weights {given!r} have the digest {found[:12]}, not {digest[:12]}.", "Find the file."
            )
        return state
    if pretrained is not None and weights == "pretrained":
        try:
            model = pretrained()
        except Exception as error:  # timm's, and those of the Hub's clients
            raise AtomhubError(f"Cannot fetch the weights of {network!r}: {first_line(error)}.") from error
        last = last_linear(model)  # which is for other classes, and random
        return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] != last}
    from torchvision import models

    name = network.removeprefix(TORCHVISION)
    try:
        known: Any = models.get_model_weights(name)  # of its networks alone: ours have options, or its prefix
        chosen = known[weights]
    except (KeyError, ValueError):
        raise UsageError(
            f"There are no weights {weights!r} of the network {network!r}.",
            "Give a .safetensors file, one of torchvision's names such as IMAGENET1K_V1, or for timm's 'pretrained'.",
        ) from None
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # urllib's, and those of torch.hub
        raise AtomhubError(f"Cannot fetch the weights {weights!r} of {name!r}: {first_line(error)}.") from error
