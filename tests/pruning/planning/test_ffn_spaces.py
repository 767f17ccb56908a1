"""Ladders of FFN widths: coarse levels to search, fine widths to plan in."""

from dataclasses import replace

import pytest

from pruning.errors import InputError
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from tests.pruning.made_up import made_up_anatomy


class TestLevels:
    def test_even_steps_up_to_dense(self) -> None:
        space = ffn_levels(made_up_anatomy([64, 48]), num_levels=4, round_to=8)
        assert [row.tolist() for row in space.units] == [[16, 32, 48, 64], [16, 24, 40, 48]]
        assert space.units_of((0, 3)) == (16, 48)

    def test_architectures_on_the_levels_and_off_them(self) -> None:
        anatomy = made_up_anatomy([64, 48])
        space = ffn_levels(anatomy, num_levels=4, round_to=8)
        assert space.choice_of(anatomy.architecture([16, 48])) == (0, 3)
        assert space.choice_of(anatomy.architecture([17, 48])) is None
        assert space.choice_of(anatomy.architecture([16, 48], [1, 2])) is None
        assert anatomy.ffn_widths(space.architecture((0, 3))) == (16, 48)

    def test_a_layer_too_narrow_is_named(self) -> None:
        with pytest.raises(InputError, match="layer 1 is too narrow for 8 levels"):
            ffn_levels(made_up_anatomy([64, 32]), num_levels=8, round_to=8)

    @pytest.mark.parametrize(("num_levels", "round_to"), [(1, 8), (4, 0)])
    def test_at_least_two_levels_of_a_step(self, num_levels: int, round_to: int) -> None:
        with pytest.raises(InputError, match="num_levels >= 2 and round_to >= 1"):
            ffn_levels(made_up_anatomy([64]), num_levels=num_levels, round_to=round_to)


class TestWidths:
    def test_multiples_and_the_dense_width(self) -> None:
        space = ffn_widths(made_up_anatomy([32, 30, 6]), round_to=8)
        assert [row.tolist() for row in space.units] == [[8, 16, 24, 32], [8, 16, 24, 30], [6]]
        assert (space.units_of(space.bottom), space.units_of(space.top)) == ((8, 8, 6), (32, 30, 6))

    def test_tensor_parallelism_divides_every_width(self) -> None:
        space = ffn_widths(made_up_anatomy([48, 30]), round_to=6, tp_size=4)
        assert [row.tolist() for row in space.units] == [[12, 24, 36, 48], [12, 24]]
        # What is dense is another matter: the last option of layer 1 is cut.
        assert made_up_anatomy([48, 30]).ffn_widths(space.architecture(space.top)) == (48, 24)

    @pytest.mark.parametrize(("round_to", "tp_size"), [(0, 1), (-8, 1), (8, 0)])
    def test_steps_are_positive(self, round_to: int, tp_size: int) -> None:
        with pytest.raises(InputError, match="at least 1"):
            ffn_widths(made_up_anatomy([32]), round_to=round_to, tp_size=tp_size)

    def test_a_layer_without_any_width(self) -> None:
        with pytest.raises(InputError, match="tp_size=4, layer 1 has 6 channels"):
            ffn_widths(made_up_anatomy([32, 6]), round_to=8, tp_size=4)

    @pytest.mark.parametrize("tp_size", [1, 2, 4])
    def test_heads_that_can_be_shared(self, tp_size: int) -> None:
        # 4 heads in 2 KV groups: among 4 devices, each group is on two.
        space = ffn_widths(made_up_anatomy([32]), round_to=8, tp_size=tp_size)
        assert space.units_of(space.top) == (32,)

    @pytest.mark.parametrize("tp_size", [3, 8, 16])
    def test_heads_that_cannot(self, tp_size: int) -> None:
        with pytest.raises(InputError, match=r"4 heads in 2 KV groups.*Ask for a tp_size of 1, 2, 4"):
            ffn_widths(made_up_anatomy([480]), round_to=8, tp_size=tp_size)

    def test_groups_that_neither_divide_nor_are_divided(self) -> None:
        anatomy = made_up_anatomy([48])
        anatomy = replace(anatomy, layers=(replace(anatomy.layers[0], num_heads=12, num_kv_groups=3),))
        with pytest.raises(InputError, match="Ask for a tp_size of 1, 3, 6, 12"):
            ffn_widths(anatomy, round_to=4, tp_size=4)
