"""Where synthetic images start from: noise, or real images that are chosen class by class."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import draws
from atomhub.core.convnet import ConvNet
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


TYPICAL = 0.1
"""Share of a class that typical images are drawn from."""
_WIDTH = 64
"""Channels of the network whose features tell typical images."""
_PIXELS = 2**19
"""Pixels that go through it at once."""


@torch.no_grad()
def typical(
    real: RealImages, classes: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64], total: int,
    views: int, seed: int, add: Callable[[Tensor], Tensor],
) -> NDArray[np.int64]:  # fmt: skip
    """Return rows (k, views) drawn from the tenth of each class, and no fewer than ``views``, that is most typical.

    Typical is what a simple classifier is surest of: ridge regression of the classes on the features of a ConvNet with
    random weights, by the margin of an image's class over the best other one. DataDAM's code starts from images that
    were picked by hand for being so; only training images are looked at here.

    Args:
        real: The real images.
        classes: (k,) class numbers.
        starts: (k,) first rows of their real images.
        counts: (k,) how many they have.
        total: Classes of all processes.
        views: Rows to draw of each class, at most the size of the smallest one.
        seed: Seed of the run: of the network, and of what is drawn.
        add: Adds a tensor up over all processes.
    """
    channels, side = real.images.shape[1], real.images.shape[-1]
    network = ConvNet(channels, total, side, _WIDTH)
    network.reinitialise(torch.Generator().manual_seed(draws.generator_seed(seed, draws.INIT, 1)))
    network.to(real.device, real.dtype)
    each = max(1, _PIXELS // side**2)

    def features(start: int, count: int) -> Iterator[Tensor]:  # (n, D + 1), the last column 1
        for first in range(start, start + count, each):
            *_, (_, last) = network.blocks(real[slice(first, min(first + each, start + count))])
            yield F.pad(last.flatten(1), (0, 1), value=1).to("cpu", torch.float64)

    inputs = network.head.in_features + 1
    squares, sums = (torch.zeros(inputs, n, dtype=torch.float64) for n in (inputs, total))
    for k, start, count in zip(classes, starts, counts, strict=True):
        for x in features(start, count):
            squares += x.T @ x
            sums[:, k] += x.sum(0)
    squares, sums = add(squares), add(sums)
    squares.diagonal().add_(0.01 * squares.diagonal()[:-1].mean())
    weights = torch.linalg.solve(squares, sums)
    rows = []
    for k, start, count in zip(classes, starts, counts, strict=True):
        scores = torch.cat([x @ weights for x in features(start, count)])
        own = scores[:, k].clone()
        scores[:, k] = -torch.inf
        order = (own - scores.amax(1)).argsort(descending=True, stable=True).numpy()
        pool = order[: max(views, round(count * TYPICAL))]
        rows.append(pool[draws.sample(seed, draws.INIT, 0, [k], [len(pool)], views)[0]])
    return np.stack(rows)


def images(
    recipe: Recipe, real: RealImages, classes: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64],
    total: int, ipc: int, seed: int, add: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Return the images to start from, (k, ipc, C, H, W) float pixels in 0..1.

    Args:
        recipe: Says how (``init``), and how many real images make one (``formation``).
        real: The real images.
        classes: (k,) class numbers.
        starts: (k,) first rows of their real images.
        counts: (k,) how many they have.
        total: Classes of all processes.
        ipc: Images per class.
        seed: Seed of the run.
        add: Adds a tensor up over all processes.
    """
    if recipe.init == "noise":
        shape = (ipc, *real.images.shape[1:])
        flat = draws.uniform(seed, draws.NOISE, 0, classes[:, None], np.arange(np.prod(shape))[None])
        return torch.from_numpy(flat).view(len(classes), *shape)
    views = ipc * recipe.views_per_image
    if recipe.init == "real":
        rows = draws.sample(seed, draws.INIT, 0, classes, counts, views)
    elif recipe.init == "typical":
        rows = typical(real, classes, starts, counts, total, views, seed, add)
    else:
        keys = [draws.generator_seed(seed, draws.INIT, 0, int(k)) for k in classes]
        flat_of = (real[slice(a, a + n)].flatten(1).float().cpu().numpy() for a, n in zip(starts, counts, strict=True))
        rows = np.stack([CHOICES[recipe.init](flat, views, key) for flat, key in zip(flat_of, keys, strict=True)])
    rows = rows + starts[:, None]
    return torch.cat([from_views(real.pixels(part[None]), recipe.formation) for part in rows])
