"""Where synthetic images start from: noise, or real images that are chosen class by class."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomhub.core import draws
from atomhub.core.real import RealImages
from atomhub.core.synthetic import from_views
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


CHOICES: dict[str, Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]] = {
    "herding": herding,
    "kmeans": kmeans,
}


def images(
    recipe: Recipe, real: RealImages, classes: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64],
    ipc: int, seed: int,
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
    """
    if recipe.init == "noise":
        shape = (ipc, *real.images.shape[1:])
        flat = draws.uniform(seed, draws.NOISE, 0, classes[:, None], np.arange(np.prod(shape))[None])
        return torch.from_numpy(flat).view(len(classes), *shape)
    views = ipc * recipe.views_per_image
    if recipe.init == "real":
        rows = draws.sample(seed, draws.INIT, 0, classes, counts, views)
    else:
        keys = [draws.generator_seed(seed, draws.INIT, 0, int(k)) for k in classes]
        flat_of = (real[slice(a, a + n)].flatten(1).float().cpu().numpy() for a, n in zip(starts, counts, strict=True))
        rows = np.stack([CHOICES[recipe.init](flat, views, key) for flat, key in zip(flat_of, keys, strict=True)])
    rows = rows + starts[:, None]
    return torch.cat([from_views(real.pixels(part[None]), recipe.formation) for part in rows])
