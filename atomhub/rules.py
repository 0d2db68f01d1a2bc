"""What cannot go together in a recipe, and why: each rule once, in the words that a user reads."""

from collections.abc import Callable
from typing import Any

RULES: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (
        lambda r: r.spatial == r.channel == r.feature == r.linear == r.layer == r.gradient == 0,
        "spatial, channel, feature, linear, layer and gradient are all 0: nothing would be matched; set one above 0",
    ),
    (lambda r: r.linear and r.convnet, "linear gradients need another matcher than convnet, such as resnet18: set one"),
    (lambda r: r.layer and r.convnet, "layer needs another matcher than convnet, such as resnet18: set one"),
    (
        lambda r: r.layer and r.classes_per_iteration == 1,
        "layer tells the classes of an iteration apart: set classes_per_iteration to 2 or more",
    ),
    (
        lambda r: r.statistics == "running" and r.bank,
        "running statistics are those of given weights, which a bank trains on: use one of them",
    ),
    (
        lambda r: r.feature == r.gradient == 0 and r.convnet and 1 in (r.depth, *r.depths),
        "depth 1 has no attention layer (attention is taken before the last block); raise depth",
    ),
    (
        lambda r: r.gradient and r.convnet and r.norm == "batch" and r.statistics == "own",
        "gradients are matched with batch norm's statistics of real images: set statistics=real, or norm=instance",
    ),
    (
        lambda r: r.gradient and (r.widths or r.depths),
        "gradients are matched under networks of one width and depth: unset widths and depths",
    ),
    (lambda r: r.calibration and not r.bank, "calibration needs trained networks: set bank above 0"),
    (
        lambda r: r.bank and (r.widths or r.depths),
        "a bank has networks of one width and depth: unset widths and depths",
    ),
    (
        lambda r: not r.convnet and (r.widths or r.depths),
        "{r.matcher} has a width and depth of its own: unset widths and depths",
    ),
    (lambda r: r.convnet and r.weights, "weights are those of another matcher, such as resnet18: set one"),
    (
        lambda r: r.image_step in ("normalized", "adam") and r.image_lr_scaling == "ipc",
        "{r.image_step} steps are as long for any number of images: set image_lr_scaling=none",
    ),
    (
        lambda r: r.init == "typical" and (r.widths or r.depths),
        "typical images are chosen by a network of one width and depth: unset widths and depths",
    ),
    (
        lambda r: r.init == "typical" and r.statistics == "running",
        "typical images are chosen by a trained network, and weights are given: set init=real",
    ),
    (lambda r: r.init == "tiles" and not r.bank, "tiles are chosen by a trained network: set bank above 0"),
    (lambda r: r.zca and r.init == "tiles", "tiles are parts of images, and zca is of whole ones: use one of them"),
    (
        lambda r: r.zca and r.formation > 1,
        "formation takes images apart pixel by pixel, and zca mixes all pixels: use one of them",
    ),
)
"""Whether a recipe breaks a rule, and what is said then."""


def broken(recipe: Any) -> str | None:
    """Return what is said of the first rule that a :class:`atomhub.recipe.Recipe` breaks; None: it breaks none."""
    return next((said.format(r=recipe) for breaks, said in RULES if breaks(recipe)), None)
