"""evenly: selections cover all items, not only the first ones."""

import numpy as np
import pytest

from partshot.evenly import evenly


def test_a_selection_covers_all_items():
    assert evenly(range(7), 4) == [0, 1, 3, 5]
    assert evenly([*range(199)], 100)[-1] >= 197


@pytest.mark.parametrize("count, most", [(0, 3), (2, 3), (3, 3), (6, 3), (9, 3)])
def test_few_items_are_all_taken_and_multiples_by_a_constant_step(count, most):
    assert evenly([*range(count)], most) == [*range(count)][:: max(1, count // most)][:most]


def test_none_can_be_asked_for():
    assert evenly([1, 2], 0) == []


def test_rows_of_an_array_are_an_array():
    assert np.array_equal(evenly(np.arange(10).reshape(5, 2), 2), [[0, 1], [4, 5]])
