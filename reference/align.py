"""Between the stages: the projector learns to say what the vision tower sees in the words of the language model.

The tower of a real LLaVA was trained against captions, so that its features already lie near words. This one was
not; here the projector is fitted so that a patch arrives as the sum of the embeddings of the words for what it
shows and for where it is, plus a direction of its own for each row and column. Reading the picture is then matching
and copying, which attention finds in a few hundred steps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from reference.forward import VisionLanguageModel
from reference.glyphs import CELLS, COLOUR_NAMES, EMPTY, GRID, KINDS, PLACES, SCENE_JITTER
from reference.train_vision import patch_features, sample_patches


@dataclass(frozen=True)
class AlignSettings:
    pictures: int = 1024
    steps: int = 600
    batch: int = 64
    lr: float = 5e-3


def word_targets(
    table: Tensor, tokenizer: PreTrainedTokenizerFast, contents: Tensor, colours: Tensor, generator: torch.Generator
) -> Tensor:
    """The sum of embeddings each patch should arrive as.

    Args:
        table: token embeddings as they enter the decoder [V, D].
        contents: int64 [N, C] and colours: int64 [N, C], as in `render_cells`.
        generator: draws the directions of rows and columns.

    Returns:
        float32 [N, C, D].
    """

    def embed(word: str) -> Tensor:
        """A word as it starts an answer plus the same word inside a sentence: [D]."""
        ids = [*tokenizer(word)["input_ids"], *tokenizer(" " + word)["input_ids"]]
        return table[ids].sum(dim=0)

    nothing = torch.zeros(1, table.shape[1])
    kinds = torch.cat([torch.stack([embed(word) for word in KINDS]), nothing])
    hues = torch.stack([embed(word) for word in COLOUR_NAMES])
    letters = torch.stack([embed(word) for word in PLACES])
    lines = torch.randn(2, GRID, table.shape[1], generator=generator) * table.std()
    cell = torch.arange(CELLS)
    place = letters + lines[0, cell // GRID] + lines[1, cell % GRID]
    return kinds[contents] + hues[colours] * (contents != EMPTY)[..., None] + place


def align_projector(
    model: VisionLanguageModel, tokenizer: PreTrainedTokenizerFast, settings: AlignSettings, seed: int
) -> float:
    """Fit the projector in place; returns the share of the targets' variance it explains."""
    rng = np.random.default_rng([seed, 2])
    pixels, contents, colours = sample_patches(settings.pictures, "train", rng, SCENE_JITTER)
    with torch.no_grad():
        features = torch.cat(
            [patch_features(model.model.vision_tower, part) for part in torch.split(pixels, settings.batch)]
        )
        generator = torch.Generator().manual_seed(seed)
        table = model.model.language_model.embed_tokens(torch.arange(len(tokenizer)))
        targets = word_targets(table, tokenizer, contents, colours, generator)
        variance = targets.var()
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.Adam(projector.parameters(), lr=settings.lr)
    loss = torch.zeros(())
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.lr * (1.0 - step / settings.steps)
        pick = torch.from_numpy(rng.integers(0, settings.pictures, settings.batch))
        loss = functional.mse_loss(projector(features[pick]), targets[pick]) / variance
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return 1.0 - loss.item()
