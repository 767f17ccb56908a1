"""Half types on CPUs that are slow with them: computed in float32, one layer at a time, and given back as stored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.arrays import FloatArray
from pruning.checkpoints.loading import load_model
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.forward.compute_dtype import compute_dtype, converted_calls, widened
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.layer_source import CheckpointLayers
from pruning.forward.tensor_store import TensorStore
from pruning.measuring.activation_statistics import measure_activations
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from tests.tiny_models import (
    BUILDERS,
    IMAGE_FAMILIES,
    save_tiny_checkpoint,
    tiny_model,
    tiny_processor,
    with_pictures,
)

CPU = torch.device("cpu")


@pytest.fixture
def slow_with_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


@pytest.mark.parametrize(
    ("features", "float16", "bfloat16"),
    [
        ({}, torch.float32, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.float32, torch.float32),
        ({"avx512_fp16": True}, torch.float16, torch.float32),
        ({"amx_bf16": True}, torch.float32, torch.bfloat16),
        ({"amx_bf16": True, "amx_fp16": True}, torch.float16, torch.bfloat16),
    ],
)
def test_the_dtype_by_what_the_cpu_has(
    features: dict[str, bool], float16: torch.dtype, bfloat16: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert compute_dtype(torch.float16, CPU) == float16
    assert compute_dtype(torch.bfloat16, CPU) == bfloat16
    for exact in (torch.float32, torch.float64, torch.int64, torch.bool):
        assert compute_dtype(exact, CPU) == exact
    assert compute_dtype(torch.float16, torch.device("cuda")) == torch.float16


@pytest.mark.usefixtures("slow_with_halves")
def test_weights_and_calls_are_as_before_afterwards() -> None:
    layer = nn.Linear(3, 2, dtype=torch.bfloat16)
    stored = {name: x.data for name, x in layer.named_parameters()}
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].dtype))
    with torch.inference_mode(), widened(layer.parameters()), converted_calls(layer):
        assert layer.weight.dtype == torch.float32
        expected = nn.functional.linear(x.float(), layer.weight, layer.bias).bfloat16()
        assert torch.equal(layer(x), expected)
    handle.remove()
    for name, parameter in layer.named_parameters():
        assert parameter.data.data_ptr() == stored[name].data_ptr()
        assert parameter.dtype == torch.bfloat16
        assert not parameter.is_inference()
    assert layer(x).dtype == torch.bfloat16


class HalfProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products and convolutions in a half type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(word in name for word in ("mm", "linear", "conv", "attention")):
            halves = [x for x in args if isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)]
            self.names += [name] if halves else []
        return func(*args, **(kwargs or {}))


@contextmanager
def half_products() -> Iterator[list[str]]:
    with HalfProducts() as counted:
        yield counted.names


def assert_close(found: Mapping[str, FloatArray], expected: Mapping[str, FloatArray], rtol: float) -> None:
    for name, array in expected.items():
        if name.endswith(("ffn_second_moment", "attention_second_moment", "down_norm")):
            assert np.linalg.norm(found[name] - array) < rtol * np.linalg.norm(array), name


@pytest.mark.usefixtures("slow_with_halves")
@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_without_a_half_product(family: str, conversations: list[Conversation], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    tiny_model(family).to(torch.bfloat16).save_pretrained(folder)
    if family in IMAGE_FAMILIES:
        batches = [with_pictures(family, x) for x in make_batches(conversations, tiny_processor(), batch_size=4)]
    else:
        ids = torch.randint(7, 100, (3, 9), generator=torch.Generator().manual_seed(0))
        batches = [Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ())]
    rows = sum(len(x.inputs["attention_mask"]) for x in batches)
    with half_products() as products:
        found = measure_activations(CheckpointLayers(folder, CPU), batches, num_rows=rows)
    assert products == []
    model = load_model(folder)
    in_memory = measure_statistics(StatisticsKind.ACTIVATIONS, model, batches).arrays
    for name, array in in_memory.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    whole = measure_statistics(StatisticsKind.ACTIVATIONS, load_model(folder, dtype=torch.float32), batches).arrays
    # Gemma multiplies its embeddings by a factor in the type that they are stored in.
    assert_close(found, whole, rtol=0.01 if "gemma" in family else 1e-4)


@pytest.mark.usefixtures("slow_with_halves")
@pytest.mark.parametrize("family", ["llava-llama", "qwen3"])
def test_hidden_states_wait_as_they_were_computed(family: str, tmp_path: Path) -> None:
    class Remembering(TensorStore):
        def put(self, tensor: torch.Tensor) -> int:
            put.append(tensor)
            return super().put(tensor)

    put: list[torch.Tensor] = []
    dense = save_tiny_checkpoint(tmp_path / "dense", family)
    load_model(dense, dtype=torch.float16).save_pretrained(tmp_path / "half")
    ids = torch.randint(7, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ())
    source = CheckpointLayers(tmp_path / "half", CPU)
    with Remembering() as store:
        decoder_pass = DecoderPass(source, [batch], store, on_batch=lambda _rows: None)
        assert [x.dtype for x in put if x.shape == (3, 9, 32)] == [torch.float32]
        with source.layer(0) as layer:
            assert {x.dtype for x in layer.parameters()} == {torch.float32}
            decoder_pass.through(0, layer, lambda _mask: None)
