"""Second stage: projector and language model, on answer tokens only; the vision tower stays as it is.

Matrices inside the decoder are trained with Muon, the rest with Adam, neither with weight decay: decay would let
the feed-forward layers shrink to what half their width can hold. Warm-up, a plateau, then a linear descent to zero.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from reference.batches import IGNORE, Batch, ConversationBatches, Curriculum, Encoder
from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.forward import Decoder, VisionLanguageModel, answer_logits, decoder_of
from reference.muon import Muon


@dataclass(frozen=True)
class LanguageSettings:
    steps: int = 5600
    batch: int = 16
    tokens: int = 160
    muon_lr: float = 0.01
    adam_lr: float = 1e-3
    norm_lr: float = 1e-3
    """Of the gains inside layers, and of the projector's norms and biases."""
    projector_lr: float = 0.001
    warmup: int = 100
    curriculum: Curriculum = field(default_factory=Curriculum)
    plateau: float = 0.55
    """Share of the steps before the descent begins."""
    clip: float = 1.0
    evaluate_every: int = 250
    checkpoint_every: int = 250


@dataclass(frozen=True)
class Report:
    """What the reporter is told after every step."""

    step: int
    loss: float
    accuracy: float | None


def lr_factor(step: int, settings: LanguageSettings) -> float:
    """Trapezoid in [0, 1]: warm-up, plateau, linear descent."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    descent = settings.plateau * settings.steps
    return 1.0 if step < descent else max(0.0, (settings.steps - step) / (settings.steps - descent))


def build_optimizers(model: VisionLanguageModel, settings: LanguageSettings) -> dict[str, Optimizer]:
    """Muon for the matrices of decoder and projector, Adam for embeddings, norms and biases.

    The projector goes slower: under Adam at the embeddings' rate its output grows and drifts faster than attention
    learns to read it.
    """
    language, projector = model.model.language_model, model.model.multi_modal_projector
    matrices = [p for p in language.layers.parameters() if p.ndim == 2]
    seeing = [p for p in projector.parameters() if p.ndim == 2]
    gains = [p for part in (language.layers, projector) for p in part.parameters() if p.ndim < 2]
    # Where embeddings are scaled on their way in, they are smaller by that, and tied logits by as much: Adam's steps,
    # which do not depend on the size of gradients, are scaled with what they change.
    scale = float(getattr(language.embed_tokens, "scalar_embed_scale", 1.0))
    groups = [
        {"params": [language.embed_tokens.weight], "lr": settings.adam_lr / scale},
        {"params": [language.norm.weight], "lr": settings.adam_lr * scale},
        {"params": gains, "lr": settings.norm_lr},
    ]
    return {
        "muon": Muon(matrices, lr=settings.muon_lr),
        "projector": Muon(seeing, lr=settings.projector_lr),
        "adam": torch.optim.Adam(groups, betas=(0.9, 0.98)),
    }


def compiled(decoder: Decoder) -> Decoder:
    """The decoder with its element-wise operations fused, or as it is where there is no C++ compiler."""
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return decoder
    fast: Decoder = torch.compile(decoder, dynamic=False)
    return fast


def _stream(dataset: ConversationBatches, start: int, stop: int) -> Iterator[Batch]:
    """Batches of steps [start, stop), made by one background process."""
    loader = DataLoader(dataset, batch_size=None, sampler=range(start, stop), num_workers=1, prefetch_factor=4)
    yield from loader


def train_language(
    model: VisionLanguageModel,
    encoder: Encoder,
    settings: LanguageSettings,
    seed: int,
    work: Path,
    evaluate: Callable[[], dict[str, float]],
    report: Callable[[Report], None],
    use_compile: bool = True,
) -> None:
    """Train in place, resuming from the checkpoint in `work` if there is one."""
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(False)
    optimizers = build_optimizers(model, settings)
    checkpoint = work / "language"
    restored = load_checkpoint(checkpoint, model, optimizers)
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    base = [group["lr"] for group in groups]
    start = int(restored["step"]) if restored else 0
    spent = float(restored["seconds"]) if restored else 0.0
    decoder = compiled(decoder_of(model)) if use_compile else decoder_of(model)
    trained = [p for group in groups for p in group["params"]]
    model.train()
    began = time.monotonic()
    batches = _stream(
        ConversationBatches(encoder, settings.batch, seed, settings.curriculum),
        start,
        settings.steps,
    )
    for step, batch in enumerate(batches, start=start):
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr * lr_factor(step, settings)
        logits = answer_logits(model, decoder, batch)
        loss = functional.cross_entropy(logits, batch.labels[batch.labels != IGNORE])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, settings.clip)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        seconds = spent + time.monotonic() - began
        accuracy = None
        if done % settings.evaluate_every == 0 or done == settings.steps:
            model.eval()
            kinds = evaluate()
            model.train()
            accuracy = kinds["all"]
            line = {"step": done, "loss": loss.item(), "seconds": round(seconds, 1), "accuracy": kinds}
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save_checkpoint(checkpoint, model, optimizers, {"step": done, "seconds": seconds})
        report(Report(done, loss.item(), accuracy))
    model.eval()
