"""Where synthetic images start from: rows of real images, chosen class by class."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from atomhub.core import draws


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


def rows(
    kind: str, read: Callable[[int], NDArray[np.float32]], classes: NDArray[np.int64], counts: NDArray[np.int64],
    ipc: int, seed: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Choose ``ipc`` images of each class to start from.

    Args:
        kind: ``real`` (random), ``herding`` or ``kmeans``.
        read: From a class to its (n, D) flattened, normalised images.
        classes: (k,) class numbers.
        counts: (k,) images of each.
        ipc: Images per class.
        seed: Seed of the run.

    Returns:
        (k, ipc) rows within each class.
    """
    if kind == "real":
        return draws.sample(seed, draws.INIT, 0, classes, counts, ipc)
    choose = CHOICES[kind]
    return np.stack([choose(read(int(k)), ipc, draws.generator_seed(seed, draws.INIT, 0, int(k))) for k in classes])
