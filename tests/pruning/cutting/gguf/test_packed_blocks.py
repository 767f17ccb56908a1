"""Folders in few bits as GGUF: the blocks say what codes and scales say, and llama.cpp runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.anatomy.architecture import Architecture, Option, Site
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import load_model, load_pruned
from pruning.checkpoints.packed_tensors import packed_in
from pruning.cutting.gguf import tensors
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.llama_runtime import LlamaRuntime
from pruning.cutting.gguf.options import Quantisation, TensorType
from pruning.cutting.gguf.quantise import export_quantised
from pruning.cutting.gguf.tensors import rotary_rows
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.rewriting.quantise_checkpoint import Quantisation as Asked
from pruning.cutting.rewriting.quantise_checkpoint import quantise_checkpoint
from pruning.cutting.rewriting.quantiser import Rounding
from pruning.cutting.surgery import cut_model
from pruning.errors import CheckpointError, UnsupportedModelError
from tests.pruning.cut_models import random_ranking
from tests.pruning.packed_models import ATTENTION, BITS, FFN, JOINT, cut_and_rounded, plan_of, save_wide_checkpoint
from tests.tiny_models import save_tiny_checkpoint, text

pytest.importorskip("compressed_tensors")

Q8, Q4 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
TOKENS = [17, 40, 9, 77, 31, 52, 64, 8, 25, 90, 13]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_checkpoint(tmp_path_factory.mktemp("wide"))


def packed(folder: Path, architecture: Architecture, out: Path) -> Path:
    return prune_checkpoint(folder, plan_of(folder, architecture), random_ranking(read_anatomy(folder)), out)


def products(folder: Path) -> dict[str, np.ndarray]:
    """scale x whole number in float32 of every packed weight, by its name in the decoder: nothing is rounded."""
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    written, found = load_file(folder / "model.safetensors"), {}
    for name, weight in packed_in(stored_tensors(folder)).items():
        codes = unpack_from_int32(written[f"{name}_packed"], weight.bits, torch.Size(weight.shape))
        scales = written[f"{name}_scale"].float().repeat_interleave(weight.group, dim=1)
        found[name.partition("layers.")[2].removesuffix(".weight")] = (codes.float() * scales).numpy()
    return found


NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def in_file(file: Path) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
    """Type and values of the matrices of layers, by the checkpoint's names."""
    found = {}
    for tensor in GGUFReader(file).tensors:
        _, layer, name = [*tensor.name.removesuffix(".weight").split("."), "", ""][:3]
        if name in NAMES:
            shape = tuple(int(x) for x in reversed(tensor.shape))
            values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            found[f"{layer}.{NAMES[name]}"] = (tensor.tensor_type, values)
    return found


@pytest.mark.parametrize("architecture", [BITS, JOINT], ids=["bits", "joint"])
def test_blocks_hold_the_very_numbers_that_were_scored(architecture: Architecture, wide: Path, tmp_path: Path) -> None:
    out = packed(wide, architecture, tmp_path / "out")
    made = export_gguf(out, tmp_path / "a.gguf")
    expected, written = products(out), in_file(tmp_path / "a.gguf")
    view = decoder_view(cut_and_rounded(wide, architecture))
    few = {name: kind for name, (kind, _) in written.items() if kind in (Q8, Q4)}
    assert few.keys() == expected.keys()
    for name, kind in few.items():
        layer, _, inside = name.partition(".")
        site = Site(int(layer), ATTENTION if "attn" in inside else FFN)
        assert kind == (Q8 if architecture.options[site].bits == 8 else Q4)
        rotated = inside.endswith(("q_proj", "k_proj"))
        assert np.array_equal(written[name][1], rotary_rows(expected[name], 8) if rotated else expected[name])
        # What was scored is each product rounded to the checkpoint's dtype, bfloat16, of eight binary digits.
        scored = view.projection(int(layer), inside).weight.detach()
        assert np.array_equal(scored.float().numpy(), torch.from_numpy(expected[name]).bfloat16().float().numpy())
    assert {kind for name, (kind, _) in written.items() if name not in few} == {GGMLQuantizationType.F16}
    kinds = list(few.values())
    assert (made.types["Q8_0"], made.types["Q4_0"]) == (kinds.count(Q8), kinds.count(Q4))
    assert made.num_tensors == len(GGUFReader(tmp_path / "a.gguf").tensors)
    assert not any("half precision" in note for note in made.notes)


def test_blocks_of_rows_of_any_number_make_the_same_file(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = packed(wide, BITS, tmp_path / "out")
    export_gguf(out, tmp_path / "whole.gguf")
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 1000)
    export_gguf(out, tmp_path / "rows.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "rows.gguf").read_bytes()


def test_layers_that_are_filled_up_have_blocks_of_zeros(tmp_path: Path) -> None:
    """qwen3 gives all layers one width: of 64 channels in four bits, 32 are there."""
    folder = save_wide_checkpoint(tmp_path / "wide", "qwen3")
    architecture = Architecture.of({Site(0, FFN): Option(32, 4), Site(1, FFN): Option(32, 8)})
    out = packed(folder, architecture, tmp_path / "out")
    export_gguf(out, tmp_path / "a.gguf")
    expected, written = products(out), in_file(tmp_path / "a.gguf")
    for layer, kind in ((0, Q4), (1, Q8)):
        for name in ("gate", "up", "down"):
            found, own = written[f"{layer}.mlp.{name}_proj"], expected[f"{layer}.mlp.{name}_proj"]
            assert found[0] == kind
            rows, columns = own.shape
            assert found[1].shape == ((32, 64) if name == "down" else (64, 32))
            assert np.array_equal(found[1][:rows, :columns], own)
            assert np.abs(found[1]).sum() == np.abs(own).sum()


def test_larger_groups_are_blocks_with_equal_scales(tmp_path: Path) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", "llama")
    config = text.llama(hidden_size=64, intermediate_size=128)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(dense)
    folder = tmp_path / "out"
    quantise_checkpoint(dense, folder, Asked(Rounding.NEAREST, (4,), 64), torch.device("cpu"))
    export_gguf(folder, tmp_path / "a.gguf")
    expected, written = products(folder), in_file(tmp_path / "a.gguf")
    assert len(expected) == 4 * 7
    for name, values in expected.items():
        own = rotary_rows(values, 16) if name.endswith(("q_proj", "k_proj")) else values
        assert written[name][0] == Q4
        assert np.array_equal(written[name][1], own)


def test_scales_that_half_precision_does_not_hold_are_told(tmp_path: Path) -> None:
    folder = save_wide_checkpoint(tmp_path / "wide", dtype=torch.float32)
    out = packed(folder, Architecture.of({Site(0, FFN): Option(64, 4)}), tmp_path / "out")
    made = export_gguf(out, tmp_path / "a.gguf")
    (note,) = [note for note in made.notes if "half precision" in note]
    assert "of 192 scales" in note  # 64 x 1 of gate and of up, 32 x 2 of down
    for name, values in products(out).items():
        found = in_file(tmp_path / "a.gguf")[name][1]
        assert 0 < np.abs(found - values).max() <= 2**-11 * np.abs(values).max()


def change(folder: Path, end: str, to: torch.Tensor | float) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(x for x in weights if x.endswith(end))
    weights[name] = to if isinstance(to, torch.Tensor) else torch.full_like(weights[name], to)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("scale", [1e5, float("nan"), float("inf")])
def test_a_scale_past_half_precision_is_refused(scale: float, wide: Path, tmp_path: Path) -> None:
    out = packed(wide, BITS, tmp_path / "out")
    change(out, "0.mlp.down_proj.weight_scale", scale)
    with pytest.raises(CheckpointError, match=r"scales .* fit half precision.*0\.mlp\.down_proj\.weight_scale"):
        export_gguf(out, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_groups_that_are_no_blocks_are_refused(wide: Path, tmp_path: Path) -> None:
    out = packed(wide, BITS, tmp_path / "out")
    change(out, "0.mlp.down_proj.weight_scale", torch.ones(32, 4, dtype=torch.bfloat16))
    with pytest.raises(UnsupportedModelError, match=r"whole blocks of 32.*down_proj.*64 inputs, a scale for every 16"):
        export_gguf(out, tmp_path / "a.gguf")
    change(out, "0.mlp.down_proj.weight_scale", torch.ones(32, 3, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"the shape of a packed weight must be that of its scales"):
        export_gguf(out, tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), "int-quantized"),
        (("quant_method",), "gptq"),
        (("kv_cache_scheme",), {"num_bits": 8}),
        (("transform_config",), {"config_groups": {"R1": {}}}),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "type"), "float"),
        (("config_groups", "group_0", "weights", "num_bits"), 3),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8, "dynamic": True}),
    ],
)
def test_other_forms_of_quantisation_are_refused(
    place: tuple[str, ...], value: object, wide: Path, tmp_path: Path
) -> None:
    out = packed(wide, BITS, tmp_path / "out")
    document = json.loads((out / "config.json").read_text())
    section = document["quantization_config"]
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    (out / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match=r"plain numbers, or whole numbers with scales"):
        export_gguf(out, tmp_path / "a.gguf")


def test_weights_with_zero_points_are_refused(wide: Path, tmp_path: Path) -> None:
    out = packed(wide, BITS, tmp_path / "out")
    weights = load_file(out / "model.safetensors")
    name = next(x for x in weights if x.endswith("0.mlp.down_proj.weight_packed"))
    weights[name.replace("_packed", "_zero_point")] = torch.zeros(4, 2, dtype=torch.int32)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"layer 0 has mlp\.down_proj\.weight_zero_point"):
        export_gguf(out, tmp_path / "a.gguf")


def test_llama_cpps_quantiser_does_not_round_again(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    out = packed(wide, BITS, tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match=r"rounds plain numbers.*Leave --quantise out"):
        export_quantised(out, tmp_path / "a.gguf", Quantisation.Q4_0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("family", "bits"),
    [("llava-llama", 4), ("llava-llama", 8), ("llava-llama", None), ("qwen3", 4), ("gemma3-text", 4)],
)
def test_llama_cpp_computes_what_the_rounded_model_does(family: str, bits: int | None, tmp_path: Path) -> None:
    """But for its activations, which it rounds to eight bits beside such weights. None: bits and units of JOINT."""
    pytest.importorskip("llama_cpp")
    folder = save_wide_checkpoint(tmp_path / "wide", family)
    sites = {ATTENTION: Option(2, bits), FFN: Option(64, bits)}
    everywhere = Architecture.of({Site(layer, half): sites[half] for layer in range(4) for half in sites})
    architecture = JOINT if bits is None else everywhere
    out = packed(folder, architecture, tmp_path / "out")
    export_gguf(out, tmp_path / "a.gguf", tensor_type=TensorType.F32)
    with LlamaRuntime(tmp_path / "a.gguf", context_length=64, exact_cache=True) as runtime:
        found = runtime.logits(TOKENS)
    expected, units = logits_of(load_pruned(out, dtype=torch.float32)), load_model(folder, dtype=torch.float32)
    cut_model(units, read_anatomy(folder).sizes(architecture), random_ranking(read_anatomy(folder)))
    off, rounding = np.abs(found - expected).mean(), np.abs(logits_of(units) - expected).mean()
    assert off < 0.03 * np.abs(expected).mean()
    if bits == 4:
        assert off < 0.3 * rounding


def logits_of(model: PreTrainedModel) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    return found
