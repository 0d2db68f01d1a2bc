"""Random draws keyed by (seed, stream, iteration, class): a pure function of the key, never a position in a stream.

So a result does not depend on how the work is split over classes, processes or micro-batches, nor on a resume.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

INIT, REAL, AUGMENTATION, WEIGHTS, NOISE, BASELINE, TRAINING, SEARCH, BANK, CLASSES, TILES, HEAD = range(12)
"""Streams: independent draws of one (seed, iteration, class)."""

VERSION = 2
"""Grows when the same key gives another draw, or a draw means something else: runs do not go on across it."""
_GLOBAL = RLock()
_ROUNDS = 16


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block, and put them back as they were.

    One thread at a time: what others draw meanwhile would come between.

    Args:
        seed: Any int.
        device: A GPU's generator is seeded as well if it is one.
    """
    on_gpu = device.type == "cuda"
    with _GLOBAL, torch.random.fork_rng([device] if on_gpu else []):
        if on_gpu:
            torch.manual_seed(seed)
        else:  # which leaves the generators of GPUs alone
            torch.default_generator.manual_seed(seed)
        yield


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits with full avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(seed: int, *keys: ArrayLike) -> NDArray[np.uint64]:
    """Return 64 random bits for every combination of the keys.

    Args:
        seed: Any int; negative ones count modulo 2**64.
        keys: Non-negative ints or int arrays, broadcast against each other.

    Returns:
        uint64 array of the broadcast shape (at least 1-d).
    """
    state = _mix(np.array([seed % 2**64], dtype=np.uint64))
    for key in keys:
        state = _next(state, key)
    return state


def _next(state: NDArray[np.uint64], key: ArrayLike) -> NDArray[np.uint64]:
    """Return the bits of one more key."""
    return _mix(state + (np.atleast_1d(key).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def uniform(seed: int, *keys: ArrayLike) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), float64, shaped like :func:`bits`."""
    return (bits(seed, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator_seed(seed: int, *keys: ArrayLike) -> int:
    """Return an int in [0, 2**63) that seeds a ``torch.Generator`` for these scalar keys."""
    return int(bits(seed, *keys)[0] >> np.uint64(1))


def sample(
    seed: int, stream: int, iteration: int, classes: ArrayLike, sizes: ArrayLike, count: int
) -> NDArray[np.int64]:
    """Draw ``count`` members of each class without replacement, in time that does not grow with the class.

    The first ``count`` values of a random permutation of each class, computed element by element with a swap-or-not
    shuffle (Hoang, Morris and Rogaway, CRYPTO 2012). A class smaller than ``count`` is gone through again.

    Args:
        seed: Seed of the run.
        stream: One of the streams above.
        iteration: Iteration number.
        classes: (K,) class numbers, the keys of the draws.
        sizes: (K,) members of each class, all >= 1.
        count: Members drawn per class.

    Returns:
        (K, count) int64, row k in [0, sizes[k]).
    """
    ids = np.asarray(classes, dtype=np.int64)[:, None]
    size = np.asarray(sizes, dtype=np.int64)[:, None]
    x = np.arange(count, dtype=np.int64)[None, :] % size
    rounds, keyed = np.arange(_ROUNDS), bits(seed, stream, iteration, ids)
    pivots = (_next(keyed, 2 * rounds) % size.astype(np.uint64)).astype(np.int64)  # (K, rounds)
    coins = _next(keyed, 2 * rounds + 1)
    for r in rounds:
        partner = pivots[:, r, None] - x
        partner += size * (partner < 0)
        coin = _next(coins[:, r, None], np.maximum(x, partner)) & np.uint64(1)
        x = np.where(coin == 1, partner, x)
    return x
