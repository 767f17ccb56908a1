import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.devices.timing.isotonic import non_decreasing


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([3, 2, 1], [2, 2, 2]),
        ([1, 3, 2, 4], [1, 2.5, 2.5, 4]),
        ([4, 5, 1, 6], [10 / 3, 10 / 3, 10 / 3, 6]),
        ([1, 3, 2, 2, 5], [1, 7 / 3, 7 / 3, 7 / 3, 5]),
        ([7], [7]),
    ],
)
def test_fits_by_hand(values: list[float], fit: list[float]) -> None:
    assert non_decreasing(values) == pytest.approx(fit)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=12))
def test_never_falls_and_keeps_the_sum(values: list[float]) -> None:
    fit = non_decreasing(values)
    assert (np.diff(fit) >= 0).all()
    assert fit.sum() == pytest.approx(sum(values))
    assert np.allclose(non_decreasing(fit), fit)


def test_weights_decide_where_a_block_comes_to_lie() -> None:
    assert non_decreasing([3.0, 0.0], [1.0, 2.0]).tolist() == [1.0, 1.0]
    assert non_decreasing([1.0, 3.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0]).tolist() == [1.0, 2.5, 2.5, 4.0]
