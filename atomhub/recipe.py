"""Recipes: every knob of the distillation with its unit, range and source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from atomhub.errors import UsageError, closest
from atomhub.presets import PRESETS, TUNED
from atomhub.rules import broken
from atomhub.values import allowed_values, parsed, read_toml, text_of

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
T = TypeVar("T", bound=str)
Size = Annotated[int, Field(ge=1, le=2048)]
Depth = Annotated[int, Field(ge=1, le=8)]


def _knob(default: Any, description: str, unit: str = "-", source: str = "atomhub", **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit, "source": source}, **bounds)


_RATES = {"normalized": 0.05, "adam": 0.02}
"""Learning rate of steps that are as long for any network and number of images."""


class Recipe(BaseModel):
    """How a set is distilled. Immutable; the effective recipe is saved with every set.

    The loss is ``loss_scale * (spatial * L_spatial + channel * L_channel + feature * L_feature + linear * L_linear
    + layer * L_layer + gradient * L_gradient + calibration * L_ce)``. The first three are sums over classes of squared
    distances between class means (ATOM, arXiv 2405.01373, section 3; DM for the feature term). L_linear is 1 minus
    the cosine between two gradients, of the mean cross-entropy of a random linear layer on the features of real and
    of synthetic images (linear gradient matching, arXiv 2511.16674). L_layer is the mean cross-entropy on the
    features of real images of the linear layer that is trained on those of synthetic ones, whose gradient goes
    through that training (Dataset Distillation, arXiv 1811.10959). L_gradient is the sum over classes of the squared
    distance between two gradients by the weights of the network's layers, but for the last linear one, of the mean
    cross-entropy of a class's real and of its synthetic images (DC, ICLR 2021, with the distance of IDC, ICML 2022).
    The last is the sum over classes of the mean cross-entropy of the synthetic images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = _knob("custom", "name of the recipe", min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$")
    spatial: float = _knob(0.0, "weight of the spatial attention term", "-", "DataDAM eq. 2", ge=0, le=1e6)
    channel: float = _knob(0.0, "weight of the channel attention term", "-", "ATOM section 3", ge=0, le=1e6)
    feature: float = _knob(0.01, "weight of the mean-feature (MMD) term, lambda", "-", "DataDAM eq. 4", ge=0, le=1e6)
    linear: float = _knob(
        0.0, "weight of the linear gradient term; needs a matcher other than convnet", "-",
        "linear gradient matching (NeurIPS 2025)", ge=0, le=1e6, exclude_if=lambda value: value == 0,  # as before it
    )  # fmt: skip
    layer: float = _knob(
        0.0, "weight of the term that trains a linear layer on synthetic features and tries it on real ones; needs a "
        "matcher other than convnet", "-", "Dataset Distillation (arXiv 1811.10959)", ge=0, le=1e6,
        exclude_if=lambda value: value == 0,  # as before it
    )  # fmt: skip
    gradient: float = _knob(
        0.0, "weight of the term that matches gradients of the network's weights", "-",
        "DC (ICLR 2021), IDC (ICML 2022)", ge=0, le=1e6, exclude_if=lambda value: value == 0,  # as before it
    )  # fmt: skip
    calibration: float = _knob(
        0.0, "weight of the cross-entropy under trained networks; needs a bank", "-", "DANCE", ge=0, le=1e6
    )
    loss_scale: float = _knob(100.0, "factor on the whole loss", "-", "DataDAM's code", gt=0, le=1e9)
    # the papers say p 4 and instance norm, DataDAM's code does p 1 and batch norm
    power: float = _knob(1.0, "p of the attention maps, sum of |f|^p", "-", "DataDAM's code", ge=1, le=8)
    matcher: str = _knob(
        "convnet", "network that images are matched under: convnet, of the width and depth below, or any other that "
        "atomhub can train, with batch norm's statistics of real images", "-", "ATOM section 3",
        pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200, exclude_if=lambda value: value == "convnet",
    )  # fmt: skip
    weights: str | None = _knob(
        None, "weights to start every network from, in place of fresh ones: a .safetensors file, torchvision's name of "
        "those of the matcher, or for one of timm's: pretrained", pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1000,
        exclude_if=lambda value: value is None,
    )  # fmt: skip
    norm: Literal["instance", "batch", "none"] = _knob(
        "batch", "norm layers of the networks that images are matched under, where these leave a choice", "-",
        "DataDAM's code",
    )  # fmt: skip
    statistics: Literal["own", "real", "running"] = _knob(
        "own", "batch norm's mean and variance for synthetic images: their own, those of the real batch (gradients: of "
        "about 256 images of it, for both sides), or for both sides those that the weights of the matcher bring"
    )  # fmt: skip
    width: int = _knob(128, "channels of every ConvNet block", "channels", "DC, section 4", ge=1, le=2048)
    depth: int | None = _knob(
        None, "blocks of the ConvNet; unset: follows the resolution (3 at 32x32)", "blocks", "DM", ge=1, le=8
    )
    widths: tuple[Size, ...] = _knob((), "if set: widths to draw a network from at every iteration", "channels")
    depths: tuple[Depth, ...] = _knob((), "if set: depths to draw a network from at every iteration", "blocks")
    bank: int = _knob(
        0, "networks trained briefly on the real images; an iteration uses one, somewhere on the line from its initial "
        "to its trained weights; 0: fresh networks", "networks", "DANCE, NCFM", ge=0, le=1000,
    )  # fmt: skip
    bank_epochs: int = _knob(2, "epochs of the bank's networks", "epochs", "DANCE (60), NCFM", ge=1, le=10000)
    bank_reach: float = _knob(
        1.0, "the share of that line that is used, from the initial weights on", "-", "IDC: networks early in training",
        gt=0, le=1, exclude_if=lambda value: value == 1,  # as before it
    )  # fmt: skip
    iterations: int = _knob(
        8000, "iterations, with one network each, fresh or from the bank; 0: the initial images are the set", "-",
        "DataDAM", ge=0,
    )  # fmt: skip
    real_batch: int = _knob(128, "real images per class in an iteration", "images", "DataDAM", ge=1, le=65536)
    classes_per_iteration: int | None = _knob(
        None, "classes of an iteration, drawn so that all have their turn; unset: all. Less memory, another result",
        "classes", ge=1, le=65536, exclude_if=lambda value: value is None,  # as sets without it were written
    )  # fmt: skip
    image_lr: float | None = _knob(
        None, "learning rate of the images; unset: 1 up to ipc 50, 10 above, 1 where it is scaled, 0.05 if steps are "
        "normalized, 0.02 of adam", "-", "DataDAM", gt=0, le=1e6,
    )  # fmt: skip
    image_lr_scaling: Literal["none", "ipc"] = _knob(
        "none", "what the learning rate of the images is multiplied by: nothing, or the images per class, among which "
        "the gradient of a class mean is shared out", "-", "DANCE: ipc", exclude_if=lambda value: value == "none",
    )  # fmt: skip
    image_schedule: Literal["constant", "cosine"] = _knob(
        "constant", "learning rate of the images over the run: constant, or along half a cosine to 0"
    )
    image_step: Literal["gradient", "normalized", "adam"] | None = _knob(
        None, "what a step follows: the gradient as it is; divided by its root mean square in every image, so that "
        "image_lr is in normalised pixels, whatever the network and the scale of its loss; or Adam, every number with "
        "a rate of its own; unset: gradient under ConvNets or where image_lr_scaling is ipc, else normalized", "-",
        exclude_if=lambda value: value is None,  # as sets without it were written
    )  # fmt: skip
    image_pyramid: bool = _knob(
        False, "whether a step goes along the gradient of an image pyramid, coarse levels as far as fine ones", "-",
        "linear gradient matching", exclude_if=lambda value: value is False,
    )  # fmt: skip
    image_momentum: float = _knob(
        0.5, "momentum of the images' SGD; of adam its first beta", "-", "DataDAM, DM", ge=0, lt=1
    )
    init: Literal["real", "noise", "herding", "kmeans", "typical", "tiles"] = _knob(
        "real", "initial images: random real ones, noise, real ones nearest the class mean or centres, typical ones "
        "(in every cluster of features the one that a trained network, the first of a bank, is surest of), or four "
        "crops each that it is surest of", "-", "DM; DataDAM's code: typical ones, by hand; RDED: tiles",
    )  # fmt: skip
    formation: int = _knob(
        1, "views per side of every image; networks see each at full size", "views", "IDC (ICML 2022)", ge=1, le=8
    )
    zca: bool = _knob(False, "whiten images by ZCA (eps 0.1), fit on the training images", "-", "DataDAM")
    augmentation: tuple[Operation, ...] = _knob(
        ("color", "crop", "cutout", "flip", "scale", "rotate"), "operations of the siamese augmentation", "-", "DSA"
    )
    augmentation_draw: Literal["one", "all"] = _knob(
        "one", "whether one of these operations is drawn for each class, or all are applied in their order", "-",
        "DSA: one; DANCE, NCFM: all of color, crop, cutout", exclude_if=lambda value: value == "one",  # as before it
    )  # fmt: skip
    pixels: Literal["uint8", "uint4", "uint2", "float32"] = _knob(
        "uint8", "stored pixels; all but float32 round inside the optimisation, so PNGs are exact", "-", "atomhub"
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = _knob(
        "auto", "numbers the networks compute in; auto: bfloat16 where the device is fast at it; tf32: of NVIDIA's GPUs"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        truth = cls.model_fields[str(info.field_name)].annotation is bool
        if isinstance(value, bool) != truth:
            raise ValueError("use true or false" if truth else "true and false are not numbers")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if said := broken(self):
            raise ValueError(said)
        return self

    @classmethod
    def named(cls, name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Return a preset, or the recipe in a TOML file, with some fields replaced.

        Args:
            name: A preset of :data:`PRESETS`, or the path of a ``.toml`` file.
            overrides: Field name to value; strings are read as TOML values where the field is not text.

        Raises:
            UsageError: unknown preset or field (with the closest match), value out of range, unreadable file.
        """
        path = Path(name)
        if str(name) in PRESETS:
            fields = {"name": str(name), **PRESETS[str(name)]}
        elif path.suffix == ".toml":
            fields = {"name": path.stem, **read_toml(path)}
        else:
            raise UsageError(
                f"There is no recipe {str(name)!r}.", f"{closest(str(name), PRESETS)} Or give a .toml file."
            )
        return cls.checked({**fields, **{k: parsed(k, v) for k, v in (overrides or {}).items()}})

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> Recipe:
        """Validate fields; raises UsageError with one sentence that names the field, its value and what is allowed."""
        for key in fields:
            if key not in cls.model_fields:
                raise UsageError(f"A recipe has no field {key!r}.", closest(key, cls.model_fields))
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise UsageError(
                    f"This recipe is not possible: {first['msg'].removeprefix('Value error, ')}."
                ) from None
            key = str(first["loc"][0])
            allowed = f"Allowed: {allowed_values(cls, key)}."
            # what is none of a few words needs no other reason than these words
            reason = "" if first["type"] == "literal_error" else f": {first['msg'].removeprefix('Value error, ')}"
            raise UsageError(f"Recipe field {key!r} cannot be {fields[key]!r}{reason}.", allowed) from None

    def replace(self, **fields: Any) -> Recipe:
        """Return a copy with some fields replaced, read and validated as in :meth:`named`."""
        return self.checked({**self.model_dump(), **{k: parsed(k, v) for k, v in fields.items()}})

    def describe(self) -> str:
        """Return the recipe's name, and what its owner changed if it is a preset: ``atom with power=1.0``.

        What may follow from the data is left out, so also a rate of images that the preset leaves to their number.
        """
        if self.name not in PRESETS:
            return self.name
        preset = Recipe.named(self.name)
        follow = {"depth", "image_lr_scaling", "precision"}  # filled in from the data, see resolved()
        step = self._step()
        usual = (_RATES[step],) if step in _RATES else (1.0, 10.0)
        if preset.image_lr is None and (preset.image_lr_scaling == "ipc" or self.image_lr in (None, *usual)):
            follow.add("image_lr")
        if step == preset.model_copy(update={"matcher": self.matcher})._step():
            follow.add("image_step")
        if self.augmentation in (preset.augmentation, safe_operations(preset.augmentation, flip=False)):
            follow.add("augmentation")
        needed = {"image_lr": self.iterations, "image_step": self.iterations, "bank_epochs": self.taught().bank}
        follow |= {key for key, there in (needed | {"bank_reach": self.bank}).items() if not there}
        if self.norm != "batch":
            follow.add("statistics")
        changed = [f"{key}={text}" for key, text in self.settings(preset).items() if key not in follow]
        return self.name + (f" with {', '.join(changed)}" if changed else "")

    def settings(self, base: Recipe) -> dict[str, str]:
        """Return the fields that differ from those of another recipe, as text that ``overrides`` reads back."""
        return {key: text_of(value) for key, value in self if value != getattr(base, key)}

    def network(self) -> str:
        """Return the ConvNet that a resolved recipe distils with, by its name in :mod:`atomhub.training.networks`."""
        return f"convnet:width={self.width},depth={self.depth},norm={self.norm}"

    @property
    def convnet(self) -> bool:
        """Whether images are matched under ConvNets."""
        return self.matcher == "convnet"

    def _step(self) -> str:
        """Return what the images' steps follow."""
        # a rate that suits one kind of network makes noise of the images under another
        usual = "gradient" if self.convnet or self.image_lr_scaling == "ipc" else "normalized"
        return self.image_step or usual

    def resolved(self, ipc: int, size: int, flip: bool = True) -> Recipe:
        """Fill in what follows from the data: depth from the resolution, learning rate from ipc, flips only if safe.

        Args:
            ipc: Synthetic images per class.
            size: Side of the images in pixels.
            flip: Whether a mirrored image keeps its class (false for digits and text).

        Raises:
            UsageError: the recipe's depth does not fit the resolution.
        """
        depth = self.depth or default_depth(size)
        if self.convnet and size < 2 ** (max(depth, *self.depths, 0) + 1):
            raise UsageError(
                f"Recipe field 'depth' cannot be {max(depth, *self.depths, 0)} at {size}x{size} pixels: "
                "too little is left after pooling.",
                f"Use depth {default_depth(size)} or fewer, or larger images (`size`).",
            )
        if self.init == "tiles" and size % 2:
            raise UsageError(
                f"Recipe field 'init' cannot be 'tiles' at {size}x{size} pixels: they are of half that side.",
                "Use an even size (`size`).",
            )
        if size % self.formation or size // self.formation < 4:
            raise UsageError(
                f"Recipe field 'formation' cannot be {self.formation} at {size}x{size} pixels.",
                "Use a divisor of the size that leaves views of 4x4 pixels or more, such as 1, or another `size`.",
            )
        step = self._step()
        if step in _RATES:
            rate = self.image_lr or _RATES[step]
        elif self.image_lr_scaling == "ipc":
            rate = ipc * (self.image_lr or 1.0)
        else:
            rate = self.image_lr or (1.0 if ipc <= 50 else 10.0)
        return self.replace(
            depth=depth if self.convnet else None,
            image_lr=rate,
            image_step=None if self.convnet and step == "gradient" else step,  # as sets without it were written
            image_lr_scaling="none",
            augmentation=safe_operations(self.augmentation, flip),
        )

    def taught(self) -> Recipe:
        """Return the recipe with all networks that a run trains: its bank, or one to choose typical images."""
        if self.init != "typical" or self.bank:
            return self
        # the same network, whatever the length of a run makes of its precision
        return self.replace(bank=1, precision="float32")

    @property
    def stages(self) -> tuple[tuple[Operation, ...], ...]:
        """The augmentation as :func:`atomhub.core.augment.augment` takes it."""
        return (self.augmentation,) if self.augmentation_draw == "one" else tuple((op,) for op in self.augmentation)

    @property
    def views_per_image(self) -> int:
        """Views that one stored image holds."""
        return self.formation**2

    @property
    def reals_per_image(self) -> int:
        """Real images that one stored image starts from."""
        return max(self.formation, 2) ** 2 if self.init == "tiles" else self.views_per_image

    def to_toml(self) -> str:
        """Return the recipe as TOML; unset fields are left out. ``Recipe.named`` reads it back."""
        # JSON literals of str, int, float, bool and lists of str are TOML literals as well
        return "".join(
            f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in self.model_dump(exclude_none=True).items()
        )


def choose_recipe(recipe: str | Path | Recipe, source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe to use for a source: a preset with the source's tuned values, then the overrides.

    Args:
        recipe: As in :meth:`Recipe.named`, or a Recipe, which no tuned value changes.
        source: Name of the source.
        overrides: Field name to value.
    """
    if isinstance(recipe, Recipe):
        return recipe.replace(**(overrides or {}))
    tuned = {} if str(recipe).endswith(".toml") else TUNED.get(source, {})
    own = PRESETS.get(str(recipe), {})
    # none of something stays none, and a network with weights of its own stays what it is
    kept = {"matcher", "norm"} if own.get("linear") or own.get("layer") else set()
    tuned = {key: value for key, value in tuned.items() if own.get(key) != 0 and key not in kept}
    return Recipe.named(recipe, {**tuned, **(overrides or {})})


def safe_operations(operations: tuple[T, ...], flip: bool) -> tuple[T, ...]:
    """Return the augmentation operations that keep an image's class: all, or all but ``flip``."""
    return tuple(op for op in operations if flip or op != "flip")


def default_depth(size: int) -> int:
    """Blocks that leave about 4x4 pixels: 2, 3, 4, 5 at 16, 32, 64, 128; 28 is padded to 32 (DC, section 4)."""
    return max(1, round(math.log2(size / 4)))
