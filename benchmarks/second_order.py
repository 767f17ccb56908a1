"""What second-order statistics are worth: KL on validation after uniform cuts, with and without what stands on them.

Of every model and at every FFN sparsity the same number of channels goes from each layer:

- `plain`: by the registered ranking, and that is all;
- `reconstructed`: the down projections are solved anew, as `lop apply --reconstruct` does, from inputs that come
  through the layers as they are cut; `dense_inputs`: the same, from inputs of the dense model;
- `elimination`: channels go in the order of elimination, and that is all; `elimination_reconstructed`: both.

The part `ecoflap` is of single weights that are set to zero (`benchmarks.second_order_ecoflap`), the part `joint` of
units and bits under one budget (`benchmarks.second_order_joint`).

SmolLM2-135M-Instruct answers its prompts itself first (`benchmarks.second_order_data`); the reference has data of its
own. Dampings and elimination see calibration data alone. Every figure is a step that is kept: kill it anywhere and run
it again. By estimate, SmolLM2 takes two hours on two cores that are not busy otherwise: fifteen solves over all
calibration tokens make most of it, and its own answers a quarter of an hour; the reference takes a quarter of an hour.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import RESULTS_DIR, write_results
from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import CALIBRATION, VALIDATION
from benchmarks.second_order_data import answered
from benchmarks.second_order_densities import searched_figures, searched_rows
from benchmarks.second_order_ecoflap import MODULES, SparseModel, ecoflap_figures, ecoflap_rows
from benchmarks.second_order_joint import SHARES, JointModel, joint_figures, joint_rows
from benchmarks.second_order_picture import draw_second_order
from benchmarks.steps import Steps, alone_in
from benchmarks.subject import REFERENCE
from lop.workflows.measuring import measure_activations, measure_second_order, streamed
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.atomic_file import replace_file
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.headers import weights_sha256
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.reconstruct_checkpoint import solved_sites
from pruning.cutting.reconstruction import SolvedInMemory, reconstruct
from pruning.cutting.surgery import cut_model
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.forward.layer_source import loaded_layers
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.importance import ranking_of
from pruning.planning.ranking import Ranking

WORK = Path(__file__).parent / ".work" / "second-order"
SMOLLM2 = Path(__file__).parent / ".work" / "real" / "checkpoint"
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)
MAGNITUDE, ELIMINATION = "activations", "elimination"
PARTS = ("cuts", "ecoflap", "joint")
BARS = {"reference": (0.90, 0.85), "smollm2": (0.85, 0.75)}
"""By model: the most that `reconstruction_kl_ratio` and `obs_order_kl_ratio` are to be."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One row a sparsity: by which ranking channels go, and what is solved (None: nothing) from which inputs."""

    name: str
    ranking: str
    propagates: bool | None = None


VARIANTS = (
    Variant("plain", MAGNITUDE),
    Variant("reconstructed", MAGNITUDE, propagates=True),
    Variant("elimination_reconstructed", ELIMINATION, propagates=True),
    Variant("elimination", ELIMINATION),
    Variant("dense_inputs", MAGNITUDE, propagates=False),
)


class Model:
    """A dense checkpoint with its data; `folder` is for what is found of it."""

    def __init__(
        self, name: str, path: Path, data: dict[str, Path], folder: Path, limit: int | None, stored: Path | None = None
    ) -> None:
        self.name, self.path, self._stored = name, path, stored or path
        self._folder = folder
        self._conversations = {part: load_conversations(file, limit) for part, file in data.items()}

    @cached_property
    def anatomy(self) -> ModelAnatomy:
        return read_anatomy(self.path)

    @property
    def sparse(self) -> SparseModel:
        """The model as the part `ecoflap` takes it."""
        validation = self._conversations[VALIDATION]
        return SparseModel(self.name, self.path, self.calibration, validation, self._folder, MODULES[self.name])

    @property
    def joint(self) -> JointModel:
        """The model as the part `joint` takes it."""
        path, validation = self._ranking_path(MAGNITUDE), self._conversations[VALIDATION]
        return JointModel(self.name, self.path, self._stored, path, self.calibration, validation, self._folder)

    @property
    def calibration(self) -> list[Conversation]:
        return self._conversations[CALIBRATION]

    @cached_property
    def key(self) -> tuple[str, ...]:
        """What every figure depends on."""
        return self.name, weights_sha256(self.path), *(calibration_id(x) for x in self._conversations.values())

    def rank(self, by: str) -> dict[str, Any]:
        """Write the ranking's file; what it is called."""
        if by == ELIMINATION:
            sums = self._folder / "sums"
            statistics = measure_second_order(self.path, weights_sha256(self.path), self.calibration, work=sums)
            shutil.rmtree(sums)
        else:
            statistics = measure_activations(self.path, self.calibration)
        ranking = ranking_of(statistics, self.anatomy)
        replace_file(self._ranking_path(by), ranking.to_bytes())
        return {"sha256": ranking.sha256}

    def score(self, sparsity: float, variant: Variant) -> dict[str, Any]:
        """One row."""
        ranking = Ranking.from_bytes(self._ranking_path(variant.ranking).read_bytes())
        model, dense = load_model(self.path), load_model(self.path)
        anatomy = anatomy_of(model)
        widths = [round(layer.ffn_width * (1 - sparsity)) for layer in anatomy.layers]
        architecture = anatomy.architecture(widths)
        solved = SolvedInMemory()
        if variant.propagates is not None:
            batches = streamed(self.path, self.calibration)
            with loaded_layers(model.eval()) as source:
                reconstruct(
                    source,
                    batches,
                    anatomy,
                    architecture,
                    ranking,
                    solved,
                    num_rows=batches.num_rows,
                    propagates=variant.propagates,
                )
        cut_model(model, architecture, ranking, solved={i: x.tensors for i, x in solved.layers.items()})
        validation = make_batches(self._conversations[VALIDATION], load_processor(self.path))
        metrics = evaluate_model(model, validation, dense)
        row = {
            "model": self.name,
            "sparsity": sparsity,
            "variant": variant.name,
            "kl": metrics.kl,
            "agreement": metrics.agreement,
            "answer_tokens": metrics.num_tokens,
        }
        sites = solved_sites(ranking, architecture, solved)
        if sites:
            row |= {
                "calibration_tokens": sites[0].tokens,
                "lost_output": sum(site.loss for site in sites) / len(sites),
                "lost_output_without": sum(site.plain_loss for site in sites) / len(sites),
                # JSON knows no infinity.
                "dampings": [site.damping if math.isfinite(site.damping) else "as cut" for site in sites],
            }
        return row

    def _ranking_path(self, by: str) -> Path:
        return self._folder / f"{by}.ranking.safetensors"


def main(
    parts: Annotated[list[str] | None, typer.Option("--part", help="cuts, ecoflap, joint; default: all.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help="reference, smollm2; default: both.")] = None,
    checkpoint: Annotated[Path, typer.Option(help="Where SmolLM2 is, or is made.")] = SMOLLM2,
    sparsities: Annotated[list[float] | None, typer.Option("--sparsity", help="Default: 10% to 50%.")] = None,
    shares: Annotated[list[float] | None, typer.Option("--share", help="Of bytes, in the part joint.")] = None,
    conversations: Annotated[int | None, typer.Option(min=2, help="Of each part, only the first N: a trial.")] = None,
    results: Annotated[str, typer.Option(help="Name of the files in benchmarks/results.")] = "second-order",
) -> None:
    """Write results/second-order.json and .png."""
    rows: list[dict[str, Any]] = []
    sparse: list[dict[str, Any]] = []
    searched: list[dict[str, Any]] = []
    joint: list[dict[str, Any]] = []
    earlier: list[dict[str, str]] = []
    asked_parts = parts or list(PARTS)
    if unknown := sorted({*asked_parts} - {*PARTS}):
        raise typer.BadParameter(f"no part is called {unknown[0]}; there are {', '.join(PARTS)}")
    asked, asked_shares = tuple(sparsities or SPARSITIES), tuple(shares or SHARES)
    with alone_in(WORK) as lock:
        for name in models or list(BARS):
            folder = WORK / (name if conversations is None else f"{name}-{conversations}")
            steps = Steps(folder / "steps", lock=lock)
            model = prepared(name, checkpoint, folder, steps, conversations)
            rows += measured(model, asked, steps) if "cuts" in asked_parts else []
            sparse += ecoflap_rows(model.sparse, model.key, steps) if "ecoflap" in asked_parts else []
            searched += searched_rows(model.sparse, model.key, steps) if "ecoflap" in asked_parts else []
            if "joint" in asked_parts:
                steps.call(f"rank {MAGNITUDE}", model.key, partial(model.rank, MAGNITUDE))
                joint += joint_rows(model.joint, model.key, steps, asked_shares)
            earlier += [step.code for step in steps.finished.values()]
    summary = (figures(rows) if rows else {}) | (ecoflap_figures(sparse) if sparse else {})
    summary |= searched_figures([*sparse, *searched]) if searched else {}
    summary |= joint_figures(joint) if joint else {}
    path = write_results(
        results, summary, [*rows, *sparse, *searched, *joint], earlier=earlier, runs=["benchmarks.second_order_reload"]
    )
    if rows:
        draw_second_order(rows, RESULTS_DIR / f"{results}.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def prepared(name: str, checkpoint: Path, folder: Path, steps: Steps, limit: int | None) -> Model:
    """The model with its data. SmolLM2 answers and is measured in float32, which has the values of its bfloat16."""
    if name == "smollm2":
        half, wide = smollm2(checkpoint)
        return Model(name, wide, answered(half, folder, steps, limit), folder, limit, half)
    data = REFERENCE / "data"
    files = {CALIBRATION: data / "calibration.json", VALIDATION: data / "validation.json"}
    return Model(name, REFERENCE / "model", files, folder, limit)


def measured(model: Model, sparsities: Sequence[float], steps: Steps) -> list[dict[str, Any]]:
    """All rows of a model, variant by variant."""
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        steps.call(f"rank {variant.ranking}", model.key, partial(model.rank, variant.ranking))
        for sparsity in sparsities:
            name, key = f"{variant.name} {sparsity}", [*model.key, variant.name, str(sparsity)]
            found = steps.call(name, key, partial(model.score, sparsity, variant))
            rows.append({**found.document, "seconds": found.seconds})
    return rows


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary: ratios of KL to that of the plain cut, geometric means over sparsities, and the worst of them."""
    kl = {(row["model"], row["variant"], row["sparsity"]): row["kl"] for row in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))
    ratios = {
        (name, variant.name): [
            kl[name, variant.name, sparsity] / plain
            for (of, kind, sparsity), plain in kl.items()
            if (of, kind) == (name, "plain")
        ]
        for name in names
        for variant in VARIANTS[1:]
    }
    mean = {key: math.exp(sum(map(math.log, own)) / len(own)) for key, own in ratios.items()}
    bars = {name: BARS[name] for name in names}
    return {
        "reconstruction_kl_ratio": {name: mean[name, "reconstructed"] for name in names},
        "reconstruction_kl_ratio_worst": {name: max(ratios[name, "reconstructed"]) for name in names},
        "obs_order_kl_ratio": {name: mean[name, "elimination_reconstructed"] for name in names},
        "obs_order_kl_ratio_worst": {name: max(ratios[name, "elimination_reconstructed"]) for name in names},
        "elimination_alone_kl_ratio": {name: mean[name, "elimination"] for name in names},
        "dense_inputs_kl_ratio": {name: mean[name, "dense_inputs"] for name in names},
        "calibration_tokens": {row["model"]: row["calibration_tokens"] for row in rows if "calibration_tokens" in row},
        "holds": {
            name: {
                "reconstruction": mean[name, "reconstructed"] <= bar and max(ratios[name, "reconstructed"]) <= 1.0,
                "obs_order": mean[name, "elimination_reconstructed"] <= obs_bar,
            }
            for name, (bar, obs_bar) in bars.items()
        },
    }


if __name__ == "__main__":
    typer.run(main)
