"""ECoFLaP's scores of whole layers, of decoder and vision tower."""

from pathlib import Path

import numpy as np
import torch

from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.rewriting.blocks import Part
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.block_scores import measure_block_scores
from pruning.measuring.zeroth_order_statistics import noise_seed


def test_scores_are_sums_of_projected_gradients(checkpoint: Path, conversations: list[Conversation]) -> None:
    """A decoder layer's by hand; of vision layers before a projector that is 0, nothing; weights are as before."""
    model = load_model(checkpoint)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    (batch,) = make_batches(conversations[:3], load_processor(checkpoint))
    told: list[tuple[int, int]] = []
    scores = measure_block_scores(
        model, [batch], tuple(Part), seed=5, epsilon=1e-2, on_batch=lambda *progress: told.append(progress)
    )
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert told == [(i + 1, 28 + 12) for i in range(28 + 12)]
    layer, by_hand = model.get_decoder().layers[1], 0.0
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    modules = dict(layer.named_modules())
    for step, name in enumerate(names, start=len(names)):
        weight = next(x for full, x in modules.items() if full.endswith(name)).weight
        z = torch.randn(weight.shape, generator=torch.Generator().manual_seed(noise_seed(5, step)))
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-2 * z)
                logits = model(**batch.inputs).logits
                weight.copy_(
                    before[next(x for x in before if x.endswith(f"language_model.layers.1.{_full(name)}.weight"))]
                )
            answers = [(s.row, i) for s in batch.spans for i in range(s.start, s.stop)]
            rows = torch.stack([logits[r, i - 1] for r, i in answers])
            losses.append(
                float(
                    torch.nn.functional.cross_entropy(
                        rows, torch.stack([batch.inputs["input_ids"][r, i] for r, i in answers])
                    )
                )
            )
        by_hand += abs(losses[0] - losses[1]) / 2e-2
    np.testing.assert_allclose(scores[Part.LANGUAGE][1], by_hand, rtol=2e-3)
    assert scores[Part.LANGUAGE].shape == (4,)
    assert scores[Part.VISION].shape == (2,)
    assert (scores[Part.VISION] > 0).all()
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.zero_()
    assert not measure_block_scores(model, [batch], [Part.VISION])[Part.VISION].any()


def _full(name: str) -> str:
    return f"self_attn.{name}" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else f"mlp.{name}"
