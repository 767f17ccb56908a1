"""Gemma 3's and Qwen3-VL's decoders, read back by the gguf package."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import Qwen3VLTextConfig

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.gemma3 import query_scale
from pruning.cutting.gguf.layouts import LAYOUTS
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.gguf.rotary import rotary_of
from pruning.cutting.prune_checkpoint import prune_checkpoint
from tests.pruning.cut_models import plan_for, random_ranking
from tests.pruning.cutting.gguf.test_export import edit_config, fields, refused, values, weights
from tests.tiny_models import save_tiny_checkpoint


class TestGemma3:
    def test_windows_bases_and_norms(self, tmp_path: Path) -> None:
        """Layer 1 is gone: the pattern of windows closes over the gap."""
        folder = save_tiny_checkpoint(tmp_path / "m", "gemma3")
        anatomy = read_anatomy(folder)
        ranking = random_ranking(anatomy)
        plan = plan_for(anatomy, ranking, [16, 0, 40, 33], [1, 0, 2, 2])
        pruned = prune_checkpoint(folder, plan, ranking, tmp_path / "out")
        made = export_gguf(pruned, tmp_path / "a.gguf", tensor_type=TensorType.F32)
        found = fields(tmp_path / "a.gguf")
        assert (made.architecture, found["gemma3.block_count"]) == ("gemma3", 3)
        assert found["gemma3.attention.sliding_window"] == 5
        assert found["gemma3.attention.sliding_window_pattern"] == [True, True, False]
        assert (found["gemma3.rope.freq_base"], found["gemma3.rope.freq_base_swa"]) == (1e6, 1e4)
        assert (found["gemma3.feed_forward_length"], found["gemma3.attention.head_count_kv"]) == (64, 2)
        assert any("zeros that fill layers up to the widest" in note for note in made.notes)
        tensors = {name: array for name, (_, array) in values(tmp_path / "a.gguf").items()}
        source = {name.rpartition("layers.2.")[2]: x for name, x in weights(pruned).items() if "layers.2." in name}
        for name, inside in (
            ("attn_norm", "input_layernorm"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
        ):
            assert np.array_equal(tensors[f"blk.1.{name}.weight"], source[f"{inside}.weight"] + 1)
        assert np.array_equal(tensors["blk.1.ffn_up.weight"][:40], source["mlp.up_proj.weight"])
        assert not tensors["blk.1.ffn_up.weight"][40:].any()

    def test_a_linear_scaling_and_another_scale_of_scores(self, tmp_path: Path) -> None:
        folder = save_tiny_checkpoint(tmp_path / "m", "gemma3")
        full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
        sliding = {"rope_type": "default", "rope_theta": 1e4}
        rope = {"full_attention": full, "sliding_attention": sliding}
        edit_config(folder, rope_parameters=rope, query_pre_attn_scalar=64)
        export_gguf(folder, tmp_path / "a.gguf", tensor_type=TensorType.F32)
        found = fields(tmp_path / "a.gguf")
        assert (found["gemma3.rope.scaling.type"], found["gemma3.rope.scaling.factor"]) == ("linear", 8.0)
        (norm,) = (x for name, x in weights(folder).items() if name.endswith("layers.3.self_attn.q_norm.weight"))
        assert np.array_equal(values(tmp_path / "a.gguf")["blk.3.attn_q_norm.weight"][1], (norm + 1) / 2)

    def test_the_scale_that_llama_cpp_gives_27b_is_undone(self) -> None:
        text = SimpleNamespace(hidden_size=5376, query_pre_attn_scalar=168)
        assert query_scale(text, head_dim=128, num_layers=62, num_heads=32) == 1
        assert query_scale(text, head_dim=128, num_layers=61, num_heads=32) == pytest.approx((128 / 168) ** 0.5)
        assert query_scale(text, head_dim=128, num_layers=62, num_heads=16) == pytest.approx(2**0.5)

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping=30\.0"),
            ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping=50\.0"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
            ({"hidden_activation": "silu"}, "must be gelu_pytorch_tanh.*'silu'"),
            (
                {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}},
                "sliding_attention: rope_type='linear'",
            ),
        ],
    )
    def test_what_llama_cpp_would_compute_otherwise(self, tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
        folder = save_tiny_checkpoint(tmp_path / "m", "gemma3")
        edit_config(folder, **changed)
        refused(folder, tmp_path / "a.gguf", reason)


class TestQwen3VL:
    def test_layers_that_see_features_of_the_tower_stay(self, tmp_path: Path) -> None:
        folder = save_tiny_checkpoint(tmp_path / "m", "qwen3-vl")
        anatomy = read_anatomy(folder)
        ranking = random_ranking(anatomy)
        pruned = prune_checkpoint(
            folder, plan_for(anatomy, ranking, [0, 8, 0, 40], [0, 1, 0, 1]), ranking, tmp_path / "out"
        )
        made = export_gguf(pruned, tmp_path / "a.gguf", tensor_type=TensorType.F32)
        found = fields(tmp_path / "a.gguf")
        assert (made.architecture, found["qwen3vl.block_count"], found["qwen3vl.n_deepstack_layers"]) == (
            "qwen3vl",
            3,  # without the third, which sees none
            2,
        )
        tensors = {name: array for name, (_, array) in values(tmp_path / "a.gguf").items()}
        assert not any(x.any() for name, x in tensors.items() if name.startswith("blk.0."))
        assert tensors["blk.0.ffn_up.weight"].shape == (64, 32)

    @pytest.mark.parametrize(
        ("sections", "pairs", "written", "lost"),
        [
            ([24, 20, 20], 64, (24, 20, 20), 2),  # pairs 61 and 62
            ([2, 1, 1], 4, (2, 1, 1), 0),
            ([4, 6, 6], 16, (6, 6, 6), 0),  # pairs 12 and 15 have the time's turn
            ([1, 1, 1], 6, (4, 1, 1), 2),  # as many as there are pairs, for llama.cpp begins anew behind them
        ],
    )
    def test_turns_of_positions(self, sections: list[int], pairs: int, written: tuple[int, ...], lost: int) -> None:
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        found = rotary_of(Qwen3VLTextConfig(rope_parameters=rope), 2 * pairs, LAYOUTS["qwen3_vl_text"])
        assert found.sections == written
        assert (found.note is None) == (lost == 0)
        assert found.note is None or f"{lost} of the {pairs} pairs" in found.note
