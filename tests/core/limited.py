"""In a process of its own, without the libraries that tests need: iterations under a limit, their peak and losses."""

import sys

import numpy as np
import torch

from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization
from atomhub.devices import keep_large_buffers
from atomhub.memory import peak_memory
from atomhub.recipe import Recipe

CLASSES, EACH, SIDE, IPC = 100, 10, 32, 5

torch.set_num_threads(1)
keep_large_buffers()
images = np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, 3, SIDE, SIDE), dtype=np.uint8)
normalization, losses = Normalization((0.5,) * 3, (0.25,) * 3), []
for norm in ("batch", "instance"):
    recipe = Recipe.named("atom", {"norm": norm, "width": 64, "real_batch": EACH}).resolved(IPC, SIDE)
    engine = Engine(
        images, np.arange(CLASSES + 1) * EACH, recipe, IPC, normalization, memory=int(sys.argv[1]), compiled=False
    )
    losses += [float(engine.step(iteration)) for iteration in range(2 if norm == "batch" else 1)]
print(peak_memory(engine.device), *losses)
