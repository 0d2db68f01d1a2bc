"""In a process of its own, without the libraries that tests need: iterations under a limit, their peak and losses."""

import sys
from functools import partial

import numpy as np
import torch
from torch import nn

from atomhub.core.anynet import AnyEngine
from atomhub.core.convnet import ConvNet
from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization
from atomhub.devices import keep_large_buffers
from atomhub.memory import peak_memory
from atomhub.recipe import Recipe

SIDE = 32
LIMIT, KIND = int(sys.argv[1]), sys.argv[2]
GRADIENTS = {"width": 128, "gradient": 1.0, "spatial": 0.0, "channel": 0.0, "feature": 0.0, "formation": 2}
# classes, real images of each, images per class, further fields, iterations under norms
CLASSES, EACH, IPC, FIELDS, NORMS = {
    "attention": (100, 10, 5, {"width": 64}, {"batch": 2, "instance": 1}),
    "gradients": (2, 128, 32, GRADIENTS, {"instance": 1}),
    "gradients of many weights": (2, 800, 200, GRADIENTS, {"none": 1}),
}[KIND]


class Wide(nn.Sequential):
    """Of 17 million bytes of weights, where maps take little."""

    def __init__(self):
        first = nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU()
        super().__init__(*first, nn.Flatten(), nn.Linear(4096, 1024), nn.ReLU(), nn.Linear(1024, CLASSES))


torch.set_num_threads(1)
keep_large_buffers()
images = np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, 3, SIDE, SIDE), dtype=np.uint8)
offsets, normalization = np.arange(CLASSES + 1) * EACH, Normalization((0.5,) * 3, (0.25,) * 3)
for norm, iterations in NORMS.items():
    recipe = Recipe.named("atom", FIELDS | {"norm": norm, "real_batch": EACH}).resolved(IPC, SIDE)
    kind = Engine
    if KIND != "attention":
        build = Wide if "many weights" in KIND else partial(ConvNet, 3, CLASSES, SIDE, recipe.width, 3, norm)
        kind = partial(AnyEngine, build=build)
    engine = kind(images, offsets, recipe, IPC, normalization, memory=LIMIT, compiled=False)
    print(*(float(engine.step(iteration)) for iteration in range(iterations)))
print(peak_memory(engine.device))
