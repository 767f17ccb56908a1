"""Layers one at a time, out of files: the numbers of a model in memory, one layer resident, no other tensors."""

import gc
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pruning.anatomy.decoder_view import decoder_view
from pruning.arrays import FloatArray
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, BatchStream, make_batches
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError, InputError
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.layer_source import CheckpointLayers, loaded_layers
from pruning.forward.tensor_store import TensorStore
from pruning.measuring.activation_statistics import measure_activations
from pruning.measuring.statistics import StatisticsKind, measure_checkpoint, measure_statistics
from tests.tiny_models import BUILDERS, save_tiny_checkpoint

CPU = torch.device("cpu")
MAPS = Path("/proc/self/maps")
"""The files that this process has mapped, on Linux."""


def text_batches() -> list[Batch]:
    """Two batches of three rows together, one of them padded."""
    ids = torch.randint(7, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return [Batch({"input_ids": ids[r], "attention_mask": mask[r]}, ()) for r in (slice(0, 2), slice(2, 3))]


def streamed(folder: Path, **kwargs: Any) -> dict[str, FloatArray]:
    return measure_activations(CheckpointLayers(folder, CPU), text_batches(), num_rows=3, **kwargs)


def in_memory(model: PreTrainedModel) -> Mapping[str, FloatArray]:
    return measure_statistics(StatisticsKind.ACTIVATIONS, model, text_batches()).arrays


def assert_same(found: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_has_the_numbers_of_whole_forward_passes(family: str, tmp_path: Path) -> None:
    """Layer by layer out of files, layer by layer in memory, and the channels that an undisturbed model computes."""
    folder = save_tiny_checkpoint(tmp_path / "model", family)
    model = load_model(folder)
    found = streamed(folder)
    assert_same(found, in_memory(model))
    view, seen = decoder_view(model), list[list[torch.Tensor]]()
    for layer in range(len(view.layers)):
        kept: list[torch.Tensor] = []
        seen.append(kept)
        view.out_projection(layer).register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[0]))
    with torch.inference_mode():
        for batch in text_batches():
            model(**batch.inputs)
    for layer, (first, second) in enumerate(seen):
        real = torch.cat([first[0], first[1, :6], second[0]]).double()
        np.testing.assert_allclose(found[f"layers.{layer}.ffn_mean"], real.mean(dim=0).numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_and_shards(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", "llava-llama-tied" if tied else "llava-llama")
    folder = tmp_path / "half"
    load_model(dense, dtype=dtype).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert_same(streamed(folder), in_memory(load_model(folder)))


def test_images_and_batches_that_are_made_on_the_way(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor = load_processor(checkpoint)
    batches = BatchStream(conversations, processor, batch_size=4, max_tokens=10**6)
    told: list[tuple[int, int]] = []
    found = measure_checkpoint(checkpoint, batches, CPU, on_batch=lambda *x: told.append(x))
    expected = measure_statistics(
        StatisticsKind.ACTIVATIONS, load_model(checkpoint), make_batches(conversations, processor, batch_size=4)
    )
    assert found.to_bytes() == expected.to_bytes()
    # Six rows in two batches through a front end and four layers.
    assert told == [(done, 30) for start in range(0, 30, 6) for done in (start + 4, start + 6)]


def test_hidden_states_on_disk_are_the_same(checkpoint: Path) -> None:
    expected = streamed(checkpoint)
    for resident_bytes in (0, 2 * 9 * 32 * 4):  # none in memory; those of the first batch only
        assert_same(streamed(checkpoint, resident_bytes=resident_bytes), expected)


def test_the_temporary_file_is_gone_after_an_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[IO[bytes]] = []
    real = tempfile.TemporaryFile

    def remembered(**kwargs: Any) -> IO[bytes]:
        opened.append(real(**kwargs))
        return opened[-1]

    def stop(done: int, _total: int) -> None:
        if done > 3:  # the first layer has begun
            raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", remembered)
    with pytest.raises(KeyboardInterrupt):
        streamed(checkpoint, resident_bytes=0, on_batch=stop)
    (file,) = opened
    assert file.closed
    assert list(tmp_path.iterdir()) == []


def test_one_layer_is_resident(checkpoint: Path) -> None:
    source = CheckpointLayers(checkpoint, CPU)
    expected = load_model(checkpoint)
    assert sum(p.numel() for p in source.slots[0].parameters()) == 0
    # Everything but the decoder layers and the output head, which are measured without.
    known = sum(p.numel() for p in expected.parameters())
    left_out = [*expected.get_decoder().layers, expected.lm_head]
    assert sum(p.numel() for p in source.model.parameters()) == known - sum(
        p.numel() for module in left_out for p in module.parameters()
    )
    for index, whole in enumerate(expected.get_decoder().layers):
        with source.layer(index) as layer:
            for name, parameter in whole.named_parameters():
                torch.testing.assert_close(layer.get_parameter(name).data, parameter.data, rtol=0, atol=0)
        assert all(parameter.is_meta for parameter in layer.parameters())
    decoder = source.release_front_end()
    assert sum(p.numel() for p in decoder.parameters()) == 32  # the final norm
    assert not hasattr(source, "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_keeps_the_front_end_once_it_was_used(checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Not even a cycle of references: Python may look for those hours later. Files are mapped as one, so that a single
    tensor would keep all of what was read of them in memory."""
    folder = tmp_path / "model"
    load_model(checkpoint, dtype=dtype).save_pretrained(folder)
    source = CheckpointLayers(folder, CPU)
    decoder = source.model.get_decoder()
    stays = set(map(id, decoder.modules())) - {id(decoder.get_input_embeddings())}
    goes = {name: weakref.ref(x) for name, x in source.model.named_modules() if id(x) not in stays}
    del decoder
    gc.collect()
    gc.disable()
    try:
        with TensorStore() as store:
            DecoderPass(source, text_batches(), store, on_batch=lambda _rows: None)
        assert [name for name, module in goes.items() if module() is not None] == []
        if MAPS.exists():
            assert str(folder) not in MAPS.read_text()
    finally:
        gc.enable()


def test_a_model_in_memory_is_whole_again_afterwards(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    layers = model.get_decoder().layers
    with loaded_layers(model) as source:
        assert model.get_decoder().layers[0] is source.slots[0]
    assert model.get_decoder().layers is layers
    with pytest.raises(ValueError, match="input_ids"):
        measure_statistics(StatisticsKind.ACTIVATIONS, model, [Batch({"attention_mask": torch.ones(1, 3)}, ())] * 2)
    assert model.get_decoder().layers is layers


def test_tensors_that_do_not_fit_are_told_before_anything_runs(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    whole = load_file(path)
    norm = next(name for name in whole if name.endswith("layers.1.input_layernorm.weight"))
    projector = next(name for name in whole if "projector" in name)

    def write(changes: dict[str, torch.Tensor | None]) -> None:
        tensors = {name: x for name, x in {**whole, **changes}.items() if x is not None}
        save_file(tensors, path, metadata={"format": "pt"})

    write({norm: None})
    with pytest.raises(CheckpointError, match=r"layer 1, input_layernorm\.weight is missing, the model has \(32,\)"):
        CheckpointLayers(folder, CPU)
    write({norm: torch.ones(31)})
    with pytest.raises(CheckpointError, match=r"input_layernorm\.weight is \(31,\), the model has \(32,\)"):
        CheckpointLayers(folder, CPU)
    write({norm.replace("input_layernorm", "other"): torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"other\.weight is \(3,\), the model has none"):
        CheckpointLayers(folder, CPU)
    write({projector: None})
    with pytest.raises(CheckpointError, match="1 missing"):
        CheckpointLayers(folder, CPU)
    # What old exports store and new models compute is no mistake.
    write({norm.replace("input_layernorm.weight", "self_attn.rotary_emb.inv_freq"): torch.ones(4)})
    CheckpointLayers(folder, CPU)


def test_no_data_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="calibration data"):
        measure_checkpoint(checkpoint, BatchStream([], load_processor(checkpoint), max_tokens=9), CPU)


def test_batches_of_too_many_tokens_are_halved(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor = load_processor(checkpoint)
    whole = list(BatchStream(conversations, processor, batch_size=4, max_tokens=10**6))
    shapes = [tuple(batch.inputs["input_ids"].shape) for batch in whole]
    assert [rows for rows, _ in shapes] == [4, 2]
    halved = BatchStream(conversations, processor, batch_size=4, max_tokens=2 * shapes[0][1])
    assert [len(batch.inputs["input_ids"]) for batch in halved] == [2, 2, 2]
    single = BatchStream(conversations, processor, batch_size=4, max_tokens=1)
    assert [len(batch.inputs["input_ids"]) for batch in single] == [1] * 6
    assert single.num_rows == 6
