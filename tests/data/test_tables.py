"""Rows of a table that are read several at once."""

import numpy as np

from atomhub.data.tables import Rows


def test_a_damaged_row_does_not_take_its_neighbours_with_it():
    def encoded(row):
        if row == 1:
            raise OSError("damaged page")
        return bytes([row])

    def fetch(rows):
        raise OSError("damaged page")

    found = Rows(np.zeros(3, np.int64), encoded, str, fetch).several([0, 1, 2])
    assert found[0] == b"\x00" and found[2] == b"\x02"
    assert isinstance(found[1], OSError)
