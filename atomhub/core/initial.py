"""Where synthetic images start from: noise, or real images that are chosen class by class."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import draws
from atomhub.core.real import RealImages
from atomhub.core.synthetic import arranged, from_views
from atomhub.core.watch import look
from atomhub.recipe import Recipe


def herding(images: NDArray[np.float32], ipc: int, seed: int) -> NDArray[np.int64]:
    """Return the rows whose running mean stays closest to the class mean (Welling, ICML 2009).

    Args:
        images: (n, D) flattened, normalised images of one class.
        ipc: Rows to choose, at most n.
        seed: Unused.

    Returns:
        (ipc,) distinct rows.
    """
    mean, total = images.mean(0), np.zeros_like(images[0])
    squares = (images**2).sum(1)
    chosen: list[int] = []
    for count in range(1, ipc + 1):
        # |count * mean - total - x|^2, less what all rows share
        distance = squares - 2 * images @ (count * mean - total)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
        total += images[chosen[-1]]
    return np.array(chosen)


def kmeans(images: NDArray[np.float32], ipc: int, seed: int) -> NDArray[np.int64]:
    """Return the real images nearest to the centres of k-means with k = ipc (DREAM, ICCV 2023, takes such for batches).

    Arguments and result as :func:`herding`; ``seed`` starts the clustering.
    """
    from sklearn.cluster import MiniBatchKMeans

    centers = MiniBatchKMeans(ipc, random_state=seed % 2**32, n_init=3).fit(images).cluster_centers_
    distance = (images**2).sum(1) - 2 * centers @ images.T  # (ipc, n), less what a row shares
    chosen: list[int] = []
    for row in distance:
        row[chosen] = np.inf
        chosen.append(int(row.argmin()))
    return np.array(chosen)


TILES = 2
"""Tiles per side of an image that is made of them, where it does not hold views."""
CANDIDATES, _CROPS, _BATCH = 300, 5, 256
"""Real images of a class that tiles come from, crops of each, and crops that are scored at once."""
_AREA = (0.08, 1.0)
"""Least and most of an image's area that a crop has."""
Teacher = Callable[[Tensor], Tensor]
"""From normalised images (N, C, H, W) to logits (N, K): a trained network."""


def tiles(
    real: RealImages, teacher: Teacher, k: int, start: int, count: int, wanted: int, side: int, seed: int
) -> Tensor:
    """Return the crops of a class that a teacher finds most like it (RDED, CVPR 2024, section 3.2 and its code).

    Of up to 300 random images, or as many as are wanted, 5 random square crops of 8 to 100 % of the area are made
    smaller, and scored by the teacher's cross-entropy with zeros around them. The best of every image is kept, and the
    best of these are returned.

    Args:
        real: The real images.
        teacher: Gives logits.
        k: Number of the class.
        start: First row of its real images.
        count: How many they are, at least ``wanted``.
        wanted: Crops to return.
        side: Of the crops, in pixels.
        seed: Seed of the run.

    Returns:
        (wanted, C, side, side) pixels in 0..1, the best first.
    """
    from torchvision.transforms.functional import resized_crop

    n, size = min(count, max(CANDIDATES, wanted)), real.images.shape[-1]
    rows = start + draws.sample(seed, draws.INIT, 0, [k], [count], n)[0]
    u = draws.uniform(seed, draws.TILES, 0, k, np.arange(n)[:, None, None], np.arange(_CROPS)[None, :, None], [0, 1, 2])
    sides = np.maximum(1, (np.sqrt(_AREA[0] + (_AREA[1] - _AREA[0]) * u[..., 0]) * size).round().astype(int))
    corners = (u[..., 1:] * (size + 1 - sides[..., None])).astype(int)
    around = (size - side) // 2
    padding = (around, size - side - around) * 2
    best, found = [], []
    each = max(1, _BATCH // _CROPS)
    for some in np.array_split(np.arange(n), -(-n // each)):
        pixels = real.pixels(rows[some])
        crops = torch.stack([
            resized_crop(image, int(y), int(x), int(s), int(s), [side, side])
            for image, own, at in zip(pixels, sides[some], corners[some], strict=True)
            for s, (y, x) in zip(own, at, strict=True)
        ])  # fmt: skip
        seen = F.pad(real.normalization.apply(crops), padding)
        label = torch.full((len(seen),), k, device=seen.device)
        losses = F.cross_entropy(teacher(seen), label, reduction="none").view(len(some), _CROPS)
        least, which = losses.min(1)
        best.append(least)
        found.append(crops.unflatten(0, (len(some), _CROPS))[torch.arange(len(some)), which])
    order = torch.cat(best).argsort(stable=True)[:wanted]
    return torch.cat(found)[order]


TYPICAL = 5000
"""Most real images of a class that typical ones are chosen from."""


def typical(
    real: RealImages, teacher: Teacher, k: int, start: int, count: int, wanted: int, seed: int
) -> NDArray[np.int64]:
    """Return real images of a class that a trained network is sure of, and that differ from each other.

    The network's features are clustered by k-means, as many clusters as images are wanted; of each, the image of the
    lowest cross-entropy is taken. All come from the training images, as the hand-picked ones of DataDAM's code do.

    Args:
        real: The real images.
        teacher: Gives logits, by a linear layer.
        k: Number of the class.
        start: First row of its real images.
        count: How many they are, at least ``wanted``.
        wanted: Images to return.
        seed: Seed of the run.

    Returns:
        (wanted,) distinct rows, counted from ``start``.
    """
    from sklearn.cluster import MiniBatchKMeans

    n = min(count, max(TYPICAL, wanted))
    rows = np.sort(draws.sample(seed, draws.INIT, 0, [k], [count], n)[0])
    seen = [look(teacher, real[start + some]) for some in np.array_split(rows, -(-n // _BATCH))]
    features = F.normalize(torch.cat([found for found, _ in seen]).flatten(1).float()).cpu().numpy()
    logits = torch.cat([found for _, found in seen]).float()
    losses = F.cross_entropy(logits, torch.full((n,), k, device=logits.device), reduction="none").cpu().numpy()
    key = draws.generator_seed(seed, draws.INIT, 0, k)
    clusters = MiniBatchKMeans(wanted, random_state=key % 2**32, n_init=3).fit(features).labels_
    surest = losses.argsort(kind="stable")
    _, first = np.unique(clusters[surest], return_index=True)  # the surest of every cluster that is not empty
    others = np.delete(surest, first)[: wanted - len(first)]
    return rows[np.concatenate([surest[first], others])]


CHOICES: dict[str, Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]] = {
    "herding": herding,
    "kmeans": kmeans,
}


def images(
    recipe: Recipe, real: RealImages, classes: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64],
    ipc: int, seed: int, teacher: Teacher | None = None,
) -> Tensor:  # fmt: skip
    """Return the images to start from, (k, ipc, C, H, W) float pixels in 0..1.

    Args:
        recipe: Says how (``init``), and how many real images make one (``formation``).
        real: The real images.
        classes: (k,) class numbers.
        starts: (k,) first rows of their real images.
        counts: (k,) how many they have.
        ipc: Images per class.
        seed: Seed of the run.
        teacher: Chooses tiles or typical images, where the images start from these.
    """
    if recipe.init == "tiles" and teacher is not None:
        grid = recipe.reals_per_image
        side = int(grid**0.5)
        of_class = [
            tiles(real, teacher, int(k), int(a), int(n), ipc * grid, real.images.shape[-1] // side, seed)
            for k, a, n in zip(classes, starts, counts, strict=True)
        ]
        return torch.stack([arranged(own, side) for own in of_class])
    if recipe.init in ("noise", "tiles", "typical") and teacher is None:
        shape = (ipc, *real.images.shape[1:])
        flat = draws.uniform(seed, draws.NOISE, 0, classes[:, None], np.arange(np.prod(shape))[None])
        return torch.from_numpy(flat).view(len(classes), *shape)
    views = ipc * recipe.views_per_image
    if teacher is not None and recipe.init == "typical":
        each = zip(classes, starts, counts, strict=True)
        rows = np.stack([typical(real, teacher, int(k), int(a), int(n), views, seed) for k, a, n in each])
    elif recipe.init == "real":
        rows = draws.sample(seed, draws.INIT, 0, classes, counts, views)
    else:
        keys = [draws.generator_seed(seed, draws.INIT, 0, int(k)) for k in classes]
        flat_of = (real[slice(a, a + n)].flatten(1).float().cpu().numpy() for a, n in zip(starts, counts, strict=True))
        rows = np.stack([CHOICES[recipe.init](flat, views, key) for flat, key in zip(flat_of, keys, strict=True)])
    rows = rows + starts[:, None]
    return torch.cat([from_views(real.pixels(part[None]), recipe.formation) for part in rows])
