"""Tensor-type files: read, written, and what they come to for each tensor."""

import re
from pathlib import Path

import pytest

from pruning.cutting.gguf.type_files import exact_pattern, read_tensor_types, tensor_type_file, types_by_name
from pruning.errors import InputError

SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (100, 32),
    "blk.1.attn_norm.weight": (32,),
    "blk.1.attn_q.weight": (32, 32),
    "blk.1.ffn_down.weight": (32, 64),
    "blk.11.ffn_down.weight": (32, 64),
}
PLANNED = {"blk.1.attn_q.weight": "q8_0", "blk.1.ffn_down.weight": "q4_k", "blk.11.ffn_down.weight": "q4_k"}


@pytest.mark.parametrize("line", ["blk.0.attn_q", "=q8_0", "blk.(=q8_0", "blk.0.attn_q=q9_9", "blk.0.attn_q=i32"])
def test_a_line_that_is_none_is_named(line: str, tmp_path: Path) -> None:
    listed = tmp_path / "types"
    listed.write_text(f"blk.1=q8_0\n{line}\n")
    with pytest.raises(InputError, match=re.escape(f"line 2: {line!r}")):
        read_tensor_types(listed)


def test_the_first_line_that_fits_counts(tmp_path: Path) -> None:
    listed = tmp_path / "types"
    listed.write_text("ffn_down=q6_k\nblk=q5_1\nffn_down=q2_k\n")
    patterns = read_tensor_types(listed)
    assert patterns == {"ffn_down": "Q6_K", "blk": "Q5_1"}
    assert types_by_name(SHAPES, patterns, {}) == {
        "blk.1.attn_q.weight": "Q5_1",
        "blk.1.ffn_down.weight": "Q6_K",
        "blk.11.ffn_down.weight": "Q6_K",
    }


def test_a_users_patterns_go_before_a_plan() -> None:
    assert types_by_name(SHAPES, {}, PLANNED) == {name: kind.upper() for name, kind in PLANNED.items()}
    # It finds layer 1 alone, and a tensor of which the plan says nothing.
    patterns = {r"blk\.1\.ffn_down": "Q6_K", "token_embd": "Q8_0"}
    assert types_by_name(SHAPES, patterns, PLANNED) == {
        "token_embd.weight": "Q8_0",
        "blk.1.attn_q.weight": "Q8_0",
        "blk.1.ffn_down.weight": "Q6_K",
        "blk.11.ffn_down.weight": "Q4_K",
    }


def test_what_is_written_finds_each_tensor_and_no_other() -> None:
    words = [line.rpartition("=") for line in tensor_type_file(PLANNED).splitlines()]
    assert [[name for name in SHAPES if re.search(pattern, name)] for pattern, _, _ in words] == [[x] for x in PLANNED]
    assert [kind for _, _, kind in words] == [*PLANNED.values()]
    assert not re.search(exact_pattern("blk.1.attn_q.weight"), "blk.1.attn_q.weight.scale")
