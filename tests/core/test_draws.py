"""Random draws: pure functions of their keys, uniform, without repeats."""

import numpy as np

from atomhub.core import draws


def test_draws_are_functions_of_their_keys():
    together = draws.uniform(7, draws.AUGMENTATION, 3, np.arange(5)[:, None], np.arange(4)[None])
    alone = draws.uniform(7, draws.AUGMENTATION, 3, 2, np.arange(4))
    assert np.array_equal(together[2], alone)
    assert not np.array_equal(alone, draws.uniform(8, draws.AUGMENTATION, 3, 2, np.arange(4)))
    assert not np.array_equal(alone, draws.uniform(7, draws.AUGMENTATION, 4, 2, np.arange(4)))
    assert not np.array_equal(alone, draws.uniform(7, draws.REAL, 3, 2, np.arange(4)))


def test_uniform_numbers_are_uniform():
    u = draws.uniform(0, draws.NOISE, 0, np.arange(100_000))
    assert 0 <= u.min() < u.max() < 1
    assert np.abs(np.histogram(u, 10, (0, 1))[0] - 10_000).max() < 500


def test_samples_are_distinct_uniform_and_independent_of_other_classes():
    sizes = np.array([10, 23, 5])
    counts = np.zeros(10)
    pairs = np.zeros((10, 10))
    for iteration in range(1500):
        rows = draws.sample(0, draws.REAL, iteration, np.arange(3), sizes, 4)
        assert all(len(set(row)) == 4 for row in rows.tolist())
        assert (rows < sizes[:, None]).all()
        counts[rows[0]] += 1
        pairs[np.ix_(rows[0], rows[0])] += 1
    assert np.abs(counts - 600).max() < 90
    off = pairs[~np.eye(10, dtype=bool)]  # 1500 * 4 * 3 / 90 = 200 each
    assert np.abs(off - 200).max() < 70
    assert np.array_equal(rows[1], draws.sample(0, draws.REAL, 1499, [1], [23], 4)[0])


def test_a_small_class_is_gone_through_evenly():
    rows = draws.sample(0, draws.REAL, 0, [0], [3], 7)
    assert sorted(np.bincount(rows[0], minlength=3)) == [2, 2, 3]


def test_a_whole_class_is_a_permutation():
    assert sorted(draws.sample(1, draws.INIT, 0, [4], [50], 50)[0]) == list(range(50))
