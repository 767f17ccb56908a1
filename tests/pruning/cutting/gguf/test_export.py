"""GGUF files read back by the gguf package: metadata, shapes, values; and what is refused before a byte is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import load_file, save_file

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf import tensors
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.gguf.tensors import rotary_rows
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import CheckpointError, UnsupportedModelError
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(scope="session")
def pruned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths 16, 8, 48, 40 and KV groups 1, 2, 1, 1, of two query heads each. Read-only."""
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    return prune_checkpoint(checkpoint, plan, ranking, tmp_path_factory.mktemp("pruned") / "model")


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def values(file: Path) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
    """Each tensor's type and its values as float32, in PyTorch's shape."""
    found = {}
    for tensor in GGUFReader(file).tensors:
        shape = tuple(int(x) for x in reversed(tensor.shape))
        found[tensor.name] = (tensor.tensor_type, dequantize(tensor.data, tensor.tensor_type).reshape(shape))
    return found


def weights(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return {name.removeprefix("language_model."): tensor.float().numpy() for name, tensor in found.items()}


def edit_config(folder: Path, **changed: Any) -> None:
    """Change fields of the text config."""
    document = json.loads((folder / "config.json").read_text())
    document["text_config"] |= changed
    (folder / "config.json").write_text(json.dumps(document))


def refused(
    folder: Path, out: Path, match: str, error: type[Exception] = UnsupportedModelError, **options: Any
) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=match):
        export_gguf(folder, out, **options)
    assert sorted(out.parent.iterdir()) == before


def test_layers_of_different_sizes_are_arrays(pruned: Path, tmp_path: Path) -> None:
    made = export_gguf(pruned, tmp_path / "a.gguf")
    found = fields(tmp_path / "a.gguf")
    assert made.architecture == found["general.architecture"] == "deci"
    assert found["deci.feed_forward_length"] == [16, 8, 48, 40]
    assert found["deci.attention.head_count"] == [2, 4, 2, 2]
    assert found["deci.attention.head_count_kv"] == [1, 2, 1, 1]
    assert found["deci.attention.key_length"] == found["deci.attention.value_length"] == 8
    assert found["deci.rope.dimension_count"] == 8
    assert found["deci.rope.freq_base"] == 10000.0
    assert (found["deci.block_count"], found["deci.embedding_length"], found["deci.context_length"]) == (4, 32, 2048)
    assert found["deci.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert found["deci.vocab_size"] == len(found["tokenizer.ggml.tokens"]) == 284
    assert found["general.file_type"] == 1
    assert found["lop.plan_id"] == json.loads((pruned / "lop_plan.json").read_text())["plan_id"]
    assert made.file_bytes == (tmp_path / "a.gguf").stat().st_size


def test_what_is_skipped_is_not_in_the_file_but_for_zeros_where_llama_cpp_needs_some(
    checkpoint: Path, tmp_path: Path
) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, [16, 0, 40, 0], [0, 0, 0, 1])
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    made = export_gguf(out, tmp_path / "a.gguf", tensor_type=TensorType.F32)
    found = fields(tmp_path / "a.gguf")
    assert (made.architecture, found["deci.block_count"]) == ("deci", 3)
    assert found["deci.feed_forward_length"] == [16, 40, 32]
    assert found["deci.attention.head_count"] == [1, 0, 2]
    assert found["deci.attention.head_count_kv"] == [1, 0, 1]
    head, channels = made.notes
    assert "skipped FFNs of layers 3 are 32 channels of zeros" in head
    assert "skipped attention of layer 0 is a head of zeros" in channels
    tensors, source = values(tmp_path / "a.gguf"), weights(out)
    assert sorted(name for name in tensors if name.startswith("blk.1.")) == [
        f"blk.1.ffn_{name}.weight" for name in ("down", "gate", "norm", "up")
    ]
    zeros = {name for name, (_, array) in tensors.items() if not array.any()}
    assert zeros == {f"blk.0.attn_{name}.weight" for name in ("norm", "q", "k", "v", "output")} | {
        f"blk.2.ffn_{name}.weight" for name in ("norm", "gate", "up", "down")
    }
    assert tensors["blk.0.attn_q.weight"][1].shape == tensors["blk.0.attn_k.weight"][1].shape == (8, 32)
    assert tensors["blk.2.ffn_down.weight"][1].shape == (32, 32)
    for number, layer in ((0, 0), (1, 2)):
        down = source[f"model.layers.{layer}.mlp.down_proj.weight"]
        assert np.array_equal(tensors[f"blk.{number}.ffn_down.weight"][1], down)
    assert np.array_equal(tensors["blk.2.attn_v.weight"][1], source["model.layers.3.self_attn.v_proj.weight"])


def test_a_file_with_what_its_config_skips_is_refused(copy: Path, tmp_path: Path) -> None:
    edit_config(
        copy, head_dim=8, per_layer_config={"1": {"skip": ["mlp"]}}, allow_global_per_layer_attribute_access=True
    )
    refused(copy, tmp_path / "a.gguf", "layer 1 has mlp.down_proj.weight")
    every = {str(layer): {"skip": ["attention"]} for layer in range(4)}
    edit_config(copy, per_layer_config=every)
    refused(copy, tmp_path / "a.gguf", "one layer at least must have attention.*all 4 layers skip it")


def test_equal_layers_are_the_llama_architecture(checkpoint: Path, tmp_path: Path) -> None:
    export_gguf(checkpoint, tmp_path / "a.gguf")
    found = fields(tmp_path / "a.gguf")
    assert found["general.architecture"] == "llama"
    assert found["llama.feed_forward_length"] == 48
    assert (found["llama.attention.head_count"], found["llama.attention.head_count_kv"]) == (4, 2)
    assert "lop.plan_id" not in found


def test_tensors_are_the_checkpoints_own(pruned: Path, tmp_path: Path) -> None:
    export_gguf(pruned, tmp_path / "a.gguf", tensor_type=TensorType.F32)
    found, source = values(tmp_path / "a.gguf"), weights(pruned)
    assert {kind for kind, _ in found.values()} == {GGMLQuantizationType.F32}
    assert np.array_equal(found["token_embd.weight"][1], source["model.embed_tokens.weight"])
    assert np.array_equal(found["output.weight"][1], source["lm_head.weight"])
    assert np.array_equal(found["output_norm.weight"][1], source["model.norm.weight"])
    for layer in range(4):
        for name, module in {
            "attn_norm": "input_layernorm",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            expected = source[f"model.layers.{layer}.{module}.weight"]
            assert np.array_equal(found[f"blk.{layer}.{name}.weight"][1], expected)
        for name in ("q", "k"):
            rows = found[f"blk.{layer}.attn_{name}.weight"][1]
            # Undone: the even rows of a head are its first half, the odd ones its second.
            undone = np.concatenate([part for head in rows.reshape(-1, 8, 32) for part in (head[::2], head[1::2])])
            assert np.array_equal(undone, source[f"model.layers.{layer}.self_attn.{name}_proj.weight"])
    assert len(found) == 3 + 4 * 9


def test_rotary_order_by_hand() -> None:
    rows = np.arange(8, dtype=np.float32)  # a bias of two heads of four
    assert rotary_rows(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rotary_rows(rows.reshape(8, 1), 4).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("block_bytes", [1, 200, 4096])
def test_blocks_of_any_size_make_the_same_file(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    export_gguf(pruned, tmp_path / "whole.gguf", tensor_type=TensorType.Q8_0)
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
    export_gguf(pruned, tmp_path / "blocks.gguf", tensor_type=TensorType.Q8_0)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "blocks.gguf").read_bytes()


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llava-llama-tied")
    export_gguf(folder, tmp_path / "a.gguf")
    assert "output.weight" not in values(tmp_path / "a.gguf")


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> Tensors:
    """Write the weights of a tied LLaVA anew; what they are now."""
    changed = change(load_file(folder / "model.safetensors"))
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return changed


EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def test_a_tied_head_that_is_stored_twice_is_left_out(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llava-llama-tied")
    change_weights(folder, lambda tensors: tensors | {HEAD: tensors[EMBEDDINGS].clone()})
    export_gguf(folder, tmp_path / "a.gguf")
    assert "output.weight" not in values(tmp_path / "a.gguf")


def test_a_head_that_differs_is_written_whatever_the_config_says(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llava-llama-tied")
    stored = change_weights(folder, lambda tensors: tensors | {HEAD: tensors[EMBEDDINGS] + 1})
    export_gguf(folder, tmp_path / "a.gguf", tensor_type=TensorType.F32)
    found = values(tmp_path / "a.gguf")
    assert np.array_equal(found["output.weight"][1], stored[HEAD].numpy())
    assert np.array_equal(found["token_embd.weight"][1], stored[EMBEDDINGS].numpy())


def test_embeddings_that_are_stored_as_the_head_that_they_are_tied_to(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llava-llama-tied")

    def renamed(tensors: Tensors) -> Tensors:
        return {HEAD if name == EMBEDDINGS else name: x for name, x in tensors.items()}

    stored = change_weights(folder, renamed)
    export_gguf(folder, tmp_path / "a.gguf", tensor_type=TensorType.F32)
    found = values(tmp_path / "a.gguf")
    assert np.array_equal(found["token_embd.weight"][1], stored[HEAD].numpy())
    assert "output.weight" not in found


def test_buffers_of_old_exports_have_no_place(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llama")
    export_gguf(folder, tmp_path / "a.gguf")
    change_weights(folder, lambda x: x | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    export_gguf(folder, tmp_path / "b.gguf")
    assert values(tmp_path / "a.gguf").keys() == values(tmp_path / "b.gguf").keys()


def test_f16_rounds_matrices_and_keeps_vectors(pruned: Path, tmp_path: Path) -> None:
    export_gguf(pruned, tmp_path / "a.gguf", tensor_type=TensorType.F16)
    source = weights(pruned)["model.layers.1.mlp.down_proj.weight"]
    for name, (kind, found) in values(tmp_path / "a.gguf").items():
        assert kind is (GGMLQuantizationType.F16 if found.ndim == 2 else GGMLQuantizationType.F32)
        if name == "blk.1.ffn_down.weight":
            assert np.array_equal(found, source.astype(np.float16).astype(np.float32))


def test_bf16_weights_stay_as_they_are(checkpoint: Path, tmp_path: Path, copy: Path) -> None:
    for path in copy.glob("*.safetensors"):
        save_file({name: x.bfloat16() for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    assert index["weight_map"]
    export_gguf(copy, tmp_path / "a.gguf", tensor_type=TensorType.BF16)
    kind, found = values(tmp_path / "a.gguf")["blk.2.ffn_up.weight"]
    assert kind is GGMLQuantizationType.BF16
    assert np.array_equal(found, weights(copy)["model.layers.2.mlp.up_proj.weight"])
    assert not np.array_equal(found, weights(checkpoint)["model.layers.2.mlp.up_proj.weight"])


def test_q8_0_is_within_half_a_step_and_falls_back_where_rows_do_not_fit(pruned: Path, tmp_path: Path) -> None:
    made = export_gguf(pruned, tmp_path / "a.gguf", tensor_type=TensorType.Q8_0)
    found, source = values(tmp_path / "a.gguf"), weights(pruned)
    fell_back = {name for name, (kind, x) in found.items() if x.ndim == 2 and kind is GGMLQuantizationType.F16}
    # Rows of 32 fit; the widths 16, 8, 48 and 40 and the heads 2 * 8 of three layers do not.
    expected = {f"blk.{layer}.ffn_down.weight" for layer in range(4)}
    assert fell_back == expected | {f"blk.{layer}.attn_output.weight" for layer in (0, 2, 3)}
    assert made.num_f16_fallbacks == 7
    kind, gate = found["blk.0.ffn_gate.weight"]
    assert kind is GGMLQuantizationType.Q8_0
    exact = source["model.layers.0.mlp.gate_proj.weight"]
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(gate - exact) <= step * (0.5 + 127 * 2.0**-11))  # the step itself is stored in f16
    assert fields(tmp_path / "a.gguf")["general.quantization_version"] == 2


def test_progress_counts_every_byte(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export_gguf(checkpoint, tmp_path / "a.gguf", on_bytes=lambda done, total: seen.append((done, total)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1][0] == sum(tensor.n_bytes for tensor in GGUFReader(tmp_path / "a.gguf").tensors) <= seen[-1][1]
    assert len({total for _, total in seen}) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("family", "reason"),
        [
            ("llava-phi", "partial rotary"),
            ("paligemma", "scaled embeddings"),
            ("paligemma2", "soft-capped logits"),
        ],
    )
    def test_other_layers_by_name(self, tmp_path: Path, family: str, reason: str) -> None:
        refused(save_tiny_checkpoint(tmp_path / "m", family), tmp_path / "a.gguf", reason)

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"hidden_act": "gelu"}, "activation must be silu"),
            (
                {
                    "rope_parameters": {
                        "rope_type": "longrope",
                        "rope_theta": 1e4,
                        "short_factor": [1.0] * 4,
                        "long_factor": [2.0] * 4,
                        "original_max_position_embeddings": 1024,
                    }
                },
                "rope_type='longrope'",
            ),
            (
                {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
                "partial_rotary_factor=0.5",
            ),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}, "M-RoPE"),
            ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ],
    )
    def test_what_has_no_place_in_the_format(
        self, copy: Path, tmp_path: Path, changed: dict[str, Any], reason: str
    ) -> None:
        edit_config(copy, **changed)
        refused(copy, tmp_path / "a.gguf", reason)

    def test_dynamic_frequencies_are_the_plain_ones_up_to_the_models_own_length(
        self, copy: Path, tmp_path: Path
    ) -> None:
        edit_config(copy, rope_parameters={"rope_type": "dynamic", "rope_theta": 5e4, "factor": 2.0})
        export_gguf(copy, tmp_path / "a.gguf")
        found = fields(tmp_path / "a.gguf")
        assert (found["llama.rope.freq_base"], found["llama.context_length"]) == (5e4, 2048)
        assert not [name for name in values(tmp_path / "a.gguf") if "rope" in name]

    def test_norms_of_queries_of_another_size(self, tmp_path: Path) -> None:
        folder = save_tiny_checkpoint(tmp_path / "m", "qwen3")
        path = folder / "model.safetensors"
        name = "model.layers.2.self_attn.q_norm.weight"
        save_file({**load_file(path), name: torch.ones(8)}, path, metadata={"format": "pt"})
        refused(folder, tmp_path / "a.gguf", r"q_norm.weight \[8\], should be \[16\]", CheckpointError)

    def test_a_sliding_window_unless_the_context_is_within_it(self, tmp_path: Path) -> None:
        folder = save_tiny_checkpoint(tmp_path / "m", "llava-mistral-window")
        refused(folder, tmp_path / "a.gguf", r"sliding_window=5.*--context 5")
        export_gguf(folder, tmp_path / "a.gguf", context_length=5)
        assert fields(tmp_path / "a.gguf")["llama.context_length"] == 5

    def test_a_window_of_some_layers(self, tmp_path: Path) -> None:
        refused(save_tiny_checkpoint(tmp_path / "m", "llava-qwen2-window"), tmp_path / "a.gguf", "sliding_window=5")

    def test_a_context_past_the_models_own(self, checkpoint: Path, tmp_path: Path) -> None:
        refused(checkpoint, tmp_path / "a.gguf", "4096 of 2048 tokens", context_length=4096)

    def test_a_config_that_the_weights_contradict(self, copy: Path, tmp_path: Path) -> None:
        edit_config(copy, intermediate_size=40)
        refused(copy, tmp_path / "a.gguf", r"gate_proj.weight \[48, 32\], should be \[40, 32\]", CheckpointError)

    def test_an_unknown_tensor(self, copy: Path, tmp_path: Path) -> None:
        path = sorted(copy.glob("*.safetensors"))[-1]
        extra = "language_model.model.layers.3.self_attn.q_norm.weight"
        save_file({**load_file(path), extra: torch.ones(8)}, path, metadata={"format": "pt"})
        index = json.loads((copy / "model.safetensors.index.json").read_text())
        index["weight_map"][extra] = path.name
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(copy, tmp_path / "a.gguf", "layer 3 has self_attn.q_norm.weight")

    def test_an_output_that_exists(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_text("mine")
        refused(checkpoint, tmp_path / "a.gguf", "must not exist yet", CheckpointError)
        assert (tmp_path / "a.gguf").read_text() == "mine"
        refused(checkpoint, tmp_path / "b.gguf", "must not exist yet", CheckpointError, mmproj=tmp_path / "a.gguf")
        refused(checkpoint, tmp_path / "b.gguf", "file of its own", CheckpointError, mmproj=tmp_path / "b.gguf")

    def test_an_output_folder_that_does_not_exist(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="folder must exist"):
            export_gguf(checkpoint, tmp_path / "no" / "a.gguf")

    def test_a_full_disk(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
        refused(checkpoint, tmp_path / "a.gguf", "must have room", CheckpointError)

    @pytest.mark.parametrize(("value", "reason"), [(1e5, "fit the range of f16"), (float("nan"), "finite number")])
    def test_weights_that_a_type_cannot_hold(self, copy: Path, tmp_path: Path, value: float, reason: str) -> None:
        path = next(p for p in copy.glob("*.safetensors") if any("up_proj" in name for name in load_file(p)))
        content = load_file(path)
        name = next(name for name in content if "up_proj" in name)
        content[name][3, 5] = value
        save_file(content, path, metadata={"format": "pt"})
        refused(copy, tmp_path / "a.gguf", f"{reason}.*{name}", CheckpointError)
        if value == 1e5:
            export_gguf(copy, tmp_path / "a.gguf", tensor_type=TensorType.BF16)


def test_an_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(checkpoint, tmp_path / "a.gguf", mmproj=tmp_path / "b.gguf", on_bytes=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"plan_id": "x"}'])
def test_a_plan_file_that_cannot_be_read_hinders_nothing(checkpoint: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "lop_plan.json").write_text(content)
    export_gguf(folder, tmp_path / "a.gguf")
    assert "lop.plan_id" not in fields(tmp_path / "a.gguf")
