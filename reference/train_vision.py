"""First stage: the vision tower alone learns what is in each cell.

Trained end to end from scratch, the language model would have to discover seeing through the answers; told what
each patch shows, the tower needs minutes. Its small heads are thrown away afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel, SiglipVisionModel

from reference.batches import normalise
from reference.glyphs import CELLS, COLOUR_NAMES, EMPTY, GRID, KINDS, SCENE_JITTER, WIDE_JITTER, Jitter, render_cells
from reference.scans import Pool

_FULL_SHARE = 0.75

Tower: TypeAlias = CLIPVisionModel | SiglipVisionModel


@dataclass(frozen=True)
class VisionSettings:
    steps: int = 1500
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    measured: int = 256
    """Pictures to measure the tower on when it is trained."""
    asks_cells: bool = False
    """Whether a patch is asked for its cell, too: a linear projector cannot make that of row and column."""


class PatchHeads(nn.Module):
    """Linear read-outs of a patch: content, colour, row and column, and its cell if `asks_cells`.

    Row and column are asked for so that the features the language model gets say where they come from.
    """

    def __init__(self, width: int, *, asks_cells: bool = False) -> None:
        super().__init__()
        self.content = nn.Linear(width, len(KINDS) + 1)
        self.colour = nn.Linear(width, len(COLOUR_NAMES))
        self.row = nn.Linear(width, GRID)
        self.column = nn.Linear(width, GRID)
        self.cell = nn.Linear(width, CELLS) if asks_cells else None


def patch_features(tower: Tower, pixels: Tensor) -> Tensor:
    """What the projector receives: last hidden state, without CLIP's class token. [B, 3, H, W] -> [B, C, D]."""
    hidden: Tensor = tower(pixels).last_hidden_state
    return hidden[:, -CELLS:]


def sample_patches(count: int, pool: Pool, rng: np.random.Generator, jitter: Jitter) -> tuple[Tensor, Tensor, Tensor]:
    """Random cells: pictures float32 [B, 3, H, W], contents int64 [B, C], colours int64 [B, C]."""
    contents = rng.integers(0, len(KINDS), (count, CELLS))
    contents = np.where(rng.random((count, CELLS)) < _FULL_SHARE, contents, EMPTY)
    colours = rng.integers(0, len(COLOUR_NAMES), (count, CELLS))
    pictures = render_cells(contents, colours, pool, rng, jitter)
    return normalise(torch.from_numpy(pictures)), torch.from_numpy(contents), torch.from_numpy(colours)


def vision_loss(heads: PatchHeads, features: Tensor, contents: Tensor, colours: Tensor) -> Tensor:
    """Sum of the heads' cross-entropies; colour counts only where there is an object. features [B, C, D]."""
    cell = torch.arange(CELLS).expand(len(features), -1)
    content = functional.cross_entropy(heads.content(features).flatten(0, 1), contents.flatten(), label_smoothing=0.05)
    full = contents != EMPTY
    colour = functional.cross_entropy(heads.colour(features[full]), colours[full])
    row = functional.cross_entropy(heads.row(features).flatten(0, 1), (cell // GRID).flatten())
    column = functional.cross_entropy(heads.column(features).flatten(0, 1), (cell % GRID).flatten())
    total: Tensor = content + colour + 0.3 * (row + column)
    if heads.cell is not None:
        total = total + 0.3 * functional.cross_entropy(heads.cell(features).flatten(0, 1), cell.flatten())
    return total


@torch.no_grad()
def measure_vision(tower: Tower, heads: PatchHeads, pool: Pool, pictures: int) -> dict[str, float]:
    """Share of cells read rightly on one scan pool, under the jitter of real scenes."""
    tower.eval()
    pixels, contents, colours = sample_patches(pictures, pool, np.random.default_rng(7), SCENE_JITTER)
    features = torch.cat([patch_features(tower, part) for part in torch.split(pixels, 64)])
    content = heads.content(features).argmax(-1) == contents
    full = contents != EMPTY
    colour = heads.colour(features).argmax(-1) == colours
    digits = contents < 10
    return {
        "content": content.float().mean().item(),
        "digit": content[digits].float().mean().item(),
        "colour": colour[full].float().mean().item(),
    }


def train_vision(
    tower: Tower,
    settings: VisionSettings,
    seed: int,
    report: Callable[[int, float], None],
) -> dict[str, float]:
    """Train the tower in place; returns its accuracy on validation scans."""
    heads = PatchHeads(tower.config.hidden_size, asks_cells=settings.asks_cells)
    parameters = [*tower.parameters(), *heads.parameters()]
    decayed = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=(0.9, 0.98),
    )
    tower.train()
    for step in range(settings.steps):
        warm = min(1.0, (step + 1) / settings.warmup)
        cool = 0.5 * (1.0 + np.cos(np.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warm * cool
        rng = np.random.default_rng([seed, 1, step])
        pixels, contents, colours = sample_patches(settings.batch, "train", rng, WIDE_JITTER)
        loss = vision_loss(heads, patch_features(tower, pixels), contents, colours)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step + 1, loss.item())
    return measure_vision(tower, heads, "validation", settings.measured)
