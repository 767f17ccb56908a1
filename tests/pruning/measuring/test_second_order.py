"""Sums of products, against the same from activations that were kept whole; and what is left of a run that stops."""

import errno
from pathlib import Path

import pytest
import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, make_batches, num_rows
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError, InputError
from pruning.forward.input_products import InputRole, ProductRecorder
from pruning.forward.layer_source import CheckpointLayers, LayerSource, loaded_layers
from pruning.measuring import second_order
from pruning.measuring.eliminated_units import eliminate
from pruning.measuring.second_order import MeasuredOn, SecondOrderStore, measure_second_order
from tests.pruning.measuring.test_activation_statistics import kept_whole
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
NAMES = {
    InputRole.FFN_OUT: "mlp.down_proj",
    InputRole.ATTENTION_OUT: "self_attn.o_proj",
    InputRole.FFN_IN: "mlp.up_proj",
    InputRole.ATTENTION_IN: "self_attn.v_proj",
}
OF = MeasuredOn("f" * 64, "w" * 64, "c" * 64)


@pytest.fixture
def batches(checkpoint: Path, conversations: list[Conversation]) -> list[Batch]:
    return make_batches(conversations, load_processor(checkpoint), batch_size=4)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equals_the_obvious_computation(
    checkpoint: Path, conversations: list[Conversation], batches: list[Batch], tmp_path: Path
) -> None:
    """Of all projections, the second of six conversations held out, from a model and from its files."""
    model = load_model(checkpoint)
    store = SecondOrderStore(tmp_path / "model", OF, list(InputRole))
    with loaded_layers(model) as source:
        measure_second_order(source, batches, store, num_rows=num_rows(batches))
    processor = load_processor(checkpoint)
    parts = [conversations[:1] + conversations[2:], conversations[1:2]]
    seen = [kept_whole(model, make_batches(part, processor, batch_size=1)) for part in parts]
    for layer in range(4):
        for role, name in NAMES.items():
            found = store.get(layer, role, CPU)
            fit, held_out = (rows[f"{layer}.{name}"] for rows in seen)
            torch.testing.assert_close(found.fit.double(), fit.T @ fit, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.held_out.double(), held_out.T @ held_out, rtol=1e-4, atol=1e-5)
            assert (found.fit_tokens, found.held_out_tokens) == (len(fit), len(held_out))
            assert found.tokens == len(fit) + len(held_out)
    files = SecondOrderStore(tmp_path / "files", OF, list(InputRole))
    measure_second_order(CheckpointLayers(checkpoint, CPU), batches, files, num_rows=num_rows(batches))
    assert files_of(tmp_path / "files") == files_of(tmp_path / "model")


def test_a_run_that_stops_is_gone_on_with(
    checkpoint: Path, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(folder: str, stop_at: int | None = None) -> list[int]:
        recorded: list[int] = []

        class Counting(ProductRecorder):
            def __enter__(self) -> "Counting":
                recorded.append(1)
                super().__enter__()
                return self

        monkeypatch.setattr(second_order, "ProductRecorder", Counting)
        store = SecondOrderStore(tmp_path / folder, OF)

        def progress(done: int, total: int) -> None:
            assert done <= total
            if stop_at is not None and done > stop_at:
                raise KeyboardInterrupt

        measure_second_order(
            CheckpointLayers(checkpoint, CPU), batches, store, num_rows=num_rows(batches), on_batch=progress
        )
        monkeypatch.setattr(second_order, "ProductRecorder", ProductRecorder)
        return recorded

    assert len(measure("whole")) == 4
    with pytest.raises(KeyboardInterrupt):
        measure("stopped", stop_at=3 * 6 + 2)  # six conversations: in the third layer
    assert sorted(files_of(tmp_path / "stopped")) == [
        "layer-00000.safetensors",
        "layer-00001.safetensors",
        "second-order.json",
    ]
    monkeypatch.undo()
    assert len(measure("stopped")) == 2
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert measure("stopped") == []


def test_not_a_number_is_named_by_layer(checkpoint: Path, batches: list[Batch], tmp_path: Path) -> None:
    model = load_model(checkpoint)
    with torch.no_grad():
        model.get_decoder().layers[2].self_attn.v_proj.weight[3] = float("nan")
    store = SecondOrderStore(tmp_path / "sums", OF)
    with loaded_layers(model) as source, pytest.raises(CheckpointError, match=r"enters self_attn\.o_proj of layer 2"):
        measure_second_order(source, batches, store, num_rows=num_rows(batches))
    assert [store.has(layer) for layer in range(4)] == [True, True, False, False]


def test_a_folder_is_of_one_model_and_one_calibration_set(tmp_path: Path) -> None:
    SecondOrderStore(tmp_path / "sums", OF)
    SecondOrderStore(tmp_path / "sums", OF)
    for other in (MeasuredOn("f" * 64, "w" * 64, "d" * 64), MeasuredOn("f" * 64, "x" * 64, "c" * 64)):
        with pytest.raises(InputError, match="another model, calibration set"):
            SecondOrderStore(tmp_path / "sums", other)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="none of second-order statistics"):
        SecondOrderStore(tmp_path / "notes", OF)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_a_folder_that_another_worker_is_about_to_fill_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".second-order.json.worker-2-1.partial").write_bytes(b"{")
    SecondOrderStore(tmp_path, OF)
    assert (tmp_path / "second-order.json").is_file()


def test_one_conversation_is_too_few(checkpoint: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    batches = make_batches(conversations[:1], load_processor(checkpoint))
    store = SecondOrderStore(tmp_path / "sums", OF)
    with pytest.raises(InputError, match="need two conversations"):
        measure_second_order(CheckpointLayers(checkpoint, CPU), batches, store, num_rows=1)


def test_a_disk_that_is_full_and_a_file_that_is_damaged(
    checkpoint: Path, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SecondOrderStore(tmp_path / "sums", OF)

    def full(_path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def measure(source: LayerSource) -> None:
        measure_second_order(source, batches, store, num_rows=num_rows(batches))

    monkeypatch.setattr(second_order, "replace_file", full)
    with pytest.raises(InputError, match=r"must fit on the disk .*No space left.*what is finished stays"):
        measure(CheckpointLayers(checkpoint, CPU))
    monkeypatch.undo()
    measure(CheckpointLayers(checkpoint, CPU))
    path = tmp_path / "sums" / "layer-00001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="layer-00001"):
        store.get(1, InputRole.FFN_OUT, CPU)


@pytest.mark.parametrize("family", ["phi", "phi3", "gemma2"])
def test_families_with_other_projections(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    ids = torch.randint(7, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ())
    store = SecondOrderStore(tmp_path / "sums", OF, list(InputRole))
    with loaded_layers(model) as source:
        measure_second_order(source, [batch], store, num_rows=2)
    for role in InputRole:
        assert store.get(3, role, CPU).tokens == 18


def test_elimination_is_of_the_model_and_goes_on(
    anatomy: ModelAnatomy, checkpoint: Path, batches: list[Batch], tmp_path: Path
) -> None:
    """A channel that never says anything goes first; layers that are finished are read again."""
    model = load_model(checkpoint)
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[17] = 0.0
    store = SecondOrderStore(tmp_path / "sums", OF)
    with loaded_layers(model) as source:
        measure_second_order(source, batches, store, num_rows=num_rows(batches))
        arrays = eliminate(source, anatomy, store)
        assert arrays["layers.1.ffn_elimination"].argmin() == 17
        assert {x.shape for name, x in arrays.items() if name.endswith("group_elimination")} == {(2,)}
        for layer in range(4):
            (tmp_path / "sums" / f"layer-{layer:05d}.safetensors").unlink()
        again = eliminate(source, anatomy, store)
    assert {name: x.tolist() for name, x in again.items()} == {name: x.tolist() for name, x in arrays.items()}
