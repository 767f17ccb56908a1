"""ECoFLaP's importance: projected gradients, against autograd's, and weights that come back bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.answer_loss import num_answer_tokens, summed_answer_loss
from pruning.measuring.zeroth_order_statistics import measure_zeroth_order, noise_seed
from tests.tiny_models import tiny_model

IMAGE_TOKEN = 3


@pytest.fixture
def batches(checkpoint: Path, conversations: list[Conversation]) -> list[Batch]:
    return make_batches(conversations, load_processor(checkpoint), batch_size=4)


def test_equals_the_gradient_along_the_same_noise(checkpoint: Path, batches: list[Batch]) -> None:
    """|g . z| summed over matrices and batches, with g from autograd through the whole model, in float64."""
    model = load_model(checkpoint, dtype=torch.float64)
    found = measure_zeroth_order(model, batches, seed=5)["ffn_zeroth_order"]
    expected, step = np.zeros(4), 0
    for index, layer in enumerate(model.get_decoder().layers):
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            for batch in batches:
                hidden = model.model(**batch.inputs).last_hidden_state
                loss = summed_answer_loss(decoder_view(model), hidden, batch) / num_answer_tokens([batch])
                (gradient,) = torch.autograd.grad(loss, linear.weight)
                z = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(noise_seed(5, step)))
                expected[index] += abs(float((gradient * z).sum()))
                step += 1
    # The loss is summed in float32: 1e-7 of it is 1e-4 of a projected gradient.
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=2e-3)
    assert expected.min() > 0.02


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llava-llama", "llava-llama-tied", "qwen2-vl"])
def test_half_precision_checkpoints_give_the_numbers_of_the_same_weights_in_float32(
    family: str, half: torch.dtype, batches: list[Batch], tmp_path: Path
) -> None:
    if family == "qwen2-vl":  # its processor, and so its images, are of another kind
        batches = [Batch({k: v for k, v in x.inputs.items() if k != "pixel_values"}, x.spans) for x in batches]
        for batch in batches:
            batch.inputs["input_ids"][batch.inputs["input_ids"] == IMAGE_TOKEN] = 7
    tiny_model(family).to(half).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.dtype == half
    found = measure_zeroth_order(model, batches)["ffn_zeroth_order"]
    assert model.dtype == half
    expected = measure_zeroth_order(load_model(tmp_path, dtype=torch.float32), batches)["ffn_zeroth_order"]
    assert found.tolist() == expected.tolist()


def test_weights_come_back_bit_for_bit(checkpoint: Path, batches: list[Batch]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = load_model(checkpoint, dtype=dtype)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        measure_zeroth_order(model, batches)
        assert {x.dtype for x in model.parameters()} == {dtype}
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_come_back_when_measuring_breaks_off(checkpoint: Path, batches: list[Batch]) -> None:
    model = load_model(checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = 0
    perturbed: list[str] = []

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # after one recording pass for each of the two batches
            perturbed.extend(name for name, x in model.state_dict().items() if not torch.equal(x, before[name]))
            raise KeyboardInterrupt

    model.get_decoder().layers[3].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_zeroth_order(model, batches)
    assert [name.split("layers.")[1] for name in perturbed] == ["0.mlp.gate_proj.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_progress_counts_every_matrix_and_batch(checkpoint: Path, batches: list[Batch]) -> None:
    progress: list[tuple[int, int]] = []
    measure_zeroth_order(load_model(checkpoint), batches, on_batch=lambda *x: progress.append(x))
    assert progress == [(i + 1, 4 * 3 * len(batches)) for i in range(4 * 3 * len(batches))]
