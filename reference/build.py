"""Make the reference model and its data, ``python -m reference.build``, or the second model, ``... build second``.

Stages: tokenizer, vision tower, projector, language model, then figures, card and files. A killed build goes on
where it stopped (`--resume`, the default): batches depend on the seed and the step alone, and checkpoints hold the
optimizers' state. On a machine shared with other jobs, GOMP_SPINCOUNT=20000 keeps torch's threads from burning
their time waiting for each other: a step there took 0.34 s instead of 5 s.
"""

import json
import os
import platform
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from reference import facts
from reference.align import AlignSettings, align_projector
from reference.batches import Encoder
from reference.blueprints import BLUEPRINTS, Blueprint, ModelName
from reference.card import write_card
from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.dataset import SPLIT_SIZES, Split, write_split
from reference.evaluate import accuracy, load_split
from reference.forward import VisionLanguageModel
from reference.tightness import channel_importance, widths
from reference.tokenizer import train_tokenizer
from reference.train_language import LanguageSettings, Report, train_language
from reference.train_vision import VisionSettings, train_vision

SHARD_SIZE = "4MB"
"""transformers counts in powers of ten, so no file exceeds 4 MiB."""

_WATCHED = 100  # validation conversations looked at during training
_ENCODE_ALL = 256  # tokens: more than any conversation has
_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class BuildSettings:
    """One build. `sizes` are conversations a split; smaller ones are for trying the script out."""

    out: Path
    work: Path
    vision: VisionSettings
    language: LanguageSettings
    blueprint: Blueprint = BLUEPRINTS[ModelName.REFERENCE]
    seed: int = 0
    align: AlignSettings = field(default_factory=AlignSettings)
    sizes: dict[Split, int] = field(default_factory=lambda: dict(SPLIT_SIZES))
    use_compile: bool = True


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _see(model: VisionLanguageModel, settings: BuildSettings, bar: Progress) -> dict[str, float]:
    """The vision stage, or its result if an earlier run of this build finished it."""
    tower, folder = model.model.vision_tower, settings.work / "vision"
    done = load_checkpoint(folder, tower, {})
    if done is None:
        task = bar.add_task("vision tower", total=settings.vision.steps, status="")
        measured = train_vision(
            tower,
            settings.vision,
            settings.seed,
            lambda step, loss: bar.update(task, completed=step, status=f"loss {loss:.3f}"),
        )
        done = {"accuracy": measured}
        save_checkpoint(folder, tower, {}, done)
    shares: dict[str, float] = done["accuracy"]
    return shares


def _speak(
    model: VisionLanguageModel, tokenizer: PreTrainedTokenizerFast, settings: BuildSettings, bar: Progress
) -> None:
    """Projector and language model; resumes from its own checkpoints."""
    if not (settings.work / "language").exists():
        align_projector(model, tokenizer, settings.align, settings.seed)
    watched = load_split(
        Encoder(tokenizer, _ENCODE_ALL, settings.blueprint.layout),
        "validation",
        settings.seed,
        min(_WATCHED, settings.sizes["validation"]),
    )
    task = bar.add_task("language model", total=settings.language.steps, status="")
    last = "accuracy not measured yet"

    def report(now: Report) -> None:
        nonlocal last
        if now.accuracy is not None:
            last = f"accuracy {now.accuracy:.1%}"
        bar.update(task, completed=now.step, status=f"loss {now.loss:.3f}, {last}")

    train_language(
        model,
        Encoder(tokenizer, settings.language.tokens, settings.blueprint.layout),
        settings.language,
        settings.seed,
        settings.work,
        lambda: accuracy(model, watched),
        report,
        settings.use_compile,
    )


def measure(model: VisionLanguageModel, tokenizer: PreTrainedTokenizerFast, settings: BuildSettings) -> dict[str, Any]:
    """Accuracy per kind on both held-out splits, dense and with uniformly narrowed feed-forward layers."""
    encoder = Encoder(tokenizer, _ENCODE_ALL, settings.blueprint.layout)
    held_out: list[Split] = ["validation", "test"]
    sets = {split: load_split(encoder, split, settings.seed, settings.sizes[split]) for split in held_out}
    calibration = load_split(encoder, "calibration", settings.seed, settings.sizes["calibration"])
    importance = channel_importance(model, calibration)
    text = model.config.text_config
    at_width: dict[str, dict[str, dict[str, float]]] = {}
    for share in _SHARES:
        with widths(model, importance, [int(share * text.intermediate_size)] * text.num_hidden_layers):
            at_width[str(share)] = {split: accuracy(model, data) for split, data in sets.items()}
    return {"accuracy": at_width["1.0"], "uniform_widths": at_width}


def _facts_of_the_build(
    model: VisionLanguageModel, settings: BuildSettings, vision: dict[str, float]
) -> dict[str, Any]:
    """Everything the card says beside the accuracies."""
    text = model.config.text_config
    progress = json.loads((settings.work / "language" / "progress.json").read_text(encoding="utf-8"))
    knowledge = facts.knowledge_base()
    return {
        "model": {
            "name": settings.blueprint.name,
            "path": f"reference/{settings.blueprint.folder}/model".replace("//", "/"),
            "family": settings.blueprint.family,
            "parts": settings.blueprint.parts,
            "purpose": settings.blueprint.purpose,
            "dtype": str(settings.blueprint.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": text.num_hidden_layers,
            "hidden": text.hidden_size,
            "ffn": text.intermediate_size,
            "heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads,
        },
        "world": {
            "people": len(knowledge.people),
            "attributes": len(facts.QUESTIONS),
            "names": len(knowledge.names),
        },
        "training": {
            "seed": settings.seed,
            "vision_steps": settings.vision.steps,
            "steps": settings.language.steps,
            "batch": settings.language.batch,
            "look_until": settings.language.curriculum.look_until,
            "study_until": settings.language.curriculum.study_until,
            "minutes": progress["seconds"] / 60.0,
            "machine": f"{os.cpu_count()} {platform.machine()} CPU cores",
        },
        "vision": vision,
    }


def export(
    model: VisionLanguageModel, processor: ProcessorMixin, metrics: dict[str, Any], settings: BuildSettings
) -> None:
    """Write model, processor, figures and card below `out`, and data if they are its own, replacing older ones."""
    folder = settings.out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    processor.save_pretrained(folder)
    for shard in folder.glob("*.safetensors"):
        shard.chmod(0o644)  # safetensors writes for the owner alone
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_card(folder)
    if not settings.blueprint.writes_data:
        return
    shutil.rmtree(settings.out / "data", ignore_errors=True)
    for split, count in settings.sizes.items():
        write_split(settings.out / "data", split, settings.seed, count)


def build(settings: BuildSettings, console: Console | None = None) -> dict[str, Any]:
    """Run every stage that is not done yet, write the result, and return what was measured."""
    settings.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    blueprint = settings.blueprint
    tokenizer = train_tokenizer(blueprint.layout)
    processor = blueprint.build_processor(tokenizer)
    model = blueprint.build_model(tokenizer)
    with _bar(console or Console()) as bar:
        vision = _see(model, settings, bar)
        _speak(model, tokenizer, settings, bar)
    model.eval().to(blueprint.dtype).float()  # as it is when it is read again
    metrics = measure(model, tokenizer, settings) | _facts_of_the_build(model, settings, vision)
    export(model.to(blueprint.dtype), processor, metrics, settings)
    return metrics


def main(
    model: Annotated[ModelName, typer.Argument(help="Which of the two models.")] = ModelName.REFERENCE,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and data.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where model/ and data/ are written; its place by default.")] = None,
    work: Annotated[Path | None, typer.Option(help="Checkpoints and log; .work/MODEL beside this by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on from the checkpoints, or start anew.")] = True,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the language stage; 0: the model's own.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 leaves its default.")] = 0,
) -> None:
    """Build one of the models, the reference with the visual-question data of both."""
    blueprint = BLUEPRINTS[model]
    out = out or blueprint.out
    work = work or Path(__file__).parent / ".work" / model
    if threads:
        torch.set_num_threads(threads)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    language = replace(blueprint.language, steps=steps or blueprint.language.steps)
    metrics = build(BuildSettings(out, work, blueprint.vision, language, blueprint, seed))
    shares = metrics["accuracy"]
    typer.echo(f"validation {shares['validation']['all']:.1%}, test {shares['test']['all']:.1%}, written to {out}")


if __name__ == "__main__":
    typer.run(main)
