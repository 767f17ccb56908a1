"""The part `ecoflap` of `benchmarks.second_order`: validation KL of single weights set to zero.

At 50, 60 and 70% of the weights, by Wanda and by SparseGPT, with ECoFLaP's ratios and with uniform ones; and the
pattern 2:4. Searched ratios: `benchmarks.second_order_densities`. Of the reference decoder and vision tower are
sparsified, as ECoFLaP does, of SmolLM2 the decoder. What is scored is the folder that `lop sparsify` writes. Ratios and
weights see calibration data alone: weights 128 conversations, as in the papers, and ECoFLaP's scores the first 32 of
them in batches of 8, as in its paper, of each answer no more than `NUM_SCORED_WORDS`. Its samples are captions; of
answers as long as SmolLM2 gives them, the scores alone would take hours.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.second_order_data import beginnings, by_length
from benchmarks.second_order_figures import Found, mean, ratio, worst
from benchmarks.steps import Steps
from lop.workflows.compute import compute_device
from lop.workflows.measuring import RECIPES, streamed
from lop.workflows.sparsifying import Ratios, asked_sparsity, block_scores, ecoflap_densities
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.rewriting.blocks import Block, Part
from pruning.cutting.rewriting.sparsifier import LocalStep
from pruning.cutting.rewriting.sparsify_checkpoint import (
    Densities,
    Modules,
    Sparsity,
    alike_within,
    sparsify_checkpoint,
    uniform_densities,
)
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.statistics import StatisticsKind

if TYPE_CHECKING:
    from benchmarks.second_order_models import Model

SPARSITIES = (0.5, 0.6, 0.7)
PATTERN = "2:4"
MODULES = {"reference": Modules.ALL, "smollm2": Modules.LANGUAGE}
SEED = 0

NUM_CALIBRATION = 128

NUM_SCORED_WORDS = 16

_RECIPE = RECIPES[StatisticsKind.ZEROTH_ORDER]
_CODE = ("benchmarks.second_order_ecoflap",)


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a local step with its ratios, at a sparsity or in a pattern (None: no pattern)."""

    step: LocalStep
    ratios: Ratios
    sparsity: float
    pattern: str | None = None

    @property
    def name(self) -> str:
        return f"{self.step} {self.ratios} {self.pattern or self.sparsity}"


CASES = (
    *(Case(step, ratios, s) for step in LocalStep for ratios in (Ratios.UNIFORM, Ratios.ECOFLAP) for s in SPARSITIES),
    *(Case(step, Ratios.UNIFORM, 0.5, PATTERN) for step in LocalStep),
)


@dataclass(frozen=True)
class SparseModel:
    """A dense checkpoint with its conversations; `folder` is for what is found of it."""

    name: str
    path: Path
    calibration: Sequence[Conversation]
    validation: Sequence[Conversation]
    folder: Path
    modules: Modules

    @classmethod
    def of(cls, model: "Model") -> Self:
        """The model as the parts `ecoflap` and `densities` take it."""
        calibration = model.calibration[:NUM_CALIBRATION]
        return cls(model.name, model.path, calibration, model.validation, model.folder, MODULES[model.name])

    @property
    def batches(self) -> list[list[Conversation]]:
        """What ECoFLaP's scores are summed over."""
        used = by_length(beginnings(self.calibration[: _RECIPE.num_conversations], NUM_SCORED_WORDS))
        return [used[start : start + _RECIPE.batch_size] for start in range(0, len(used), _RECIPE.batch_size)]

    def scores(self, batch: int) -> dict[str, list[float]]:
        """ECoFLaP's on one of `batches`, along other directions than on the others, of each part."""
        found = block_scores(self.path, self.batches[batch], self.modules, SEED + batch)
        return {part.value: own.tolist() for part, own in found.items()}

    def score(self, case: Case, scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """One row."""
        asked = asked_sparsity(
            case.step,
            density=None if case.pattern else 1.0 - case.sparsity,
            pattern=case.pattern,
            ratios=case.ratios,
            modules=self.modules,
            seed=SEED,
        )

        def densities(blocks: Sequence[Block]) -> Mapping[str, float]:
            if case.ratios is Ratios.UNIFORM:
                return uniform_densities(asked.density)(blocks)
            import numpy as np

            of_parts = {Part(x): np.array(own) for x, own in scores.items()}
            return alike_within(blocks, ecoflap_densities(blocks, of_parts, asked.density))

        return self.measured(asked, densities, ratios=case.ratios.value, sparsity=case.sparsity)

    def measured(self, asked: Sparsity, densities: Densities, *, ratios: str, sparsity: float) -> dict[str, Any]:
        """The row of what is `asked`, whose densities are called `ratios`, at a wished `sparsity`."""
        out = self.folder / "sparse"
        shutil.rmtree(out, ignore_errors=True)
        batches = streamed(self.path, by_length(self.calibration))
        used = calibration_id(self.calibration)
        report = sparsify_checkpoint(self.path, out, asked, batches, used, compute_device(), densities=densities)
        validation = make_batches(by_length(self.validation), load_processor(self.path))
        metrics = evaluate_model(load_model(out), validation, load_model(self.path))
        shutil.rmtree(out)
        return {
            "part": "ecoflap",
            "model": self.name,
            "step": asked.step.value,
            "ratios": ratios,
            "sparsity": sparsity,
            "pattern": None if asked.pattern is None else str(asked.pattern),
            "modules": self.modules.value,
            "zeroed": 1.0 - report.density,
            "kl": metrics.kl,
            "agreement": metrics.agreement,
            "answer_tokens": metrics.num_tokens,
            "densities": [x["density"] for x in report.layers],
        }


def ecoflap_rows(
    model: SparseModel, key: Sequence[str], steps: Steps, cases: Sequence[Case] = CASES
) -> list[dict[str, Any]]:
    """All rows of a model; `key` is what every figure depends on."""
    scores = ecoflap_scores(model, key, steps)
    return [case_row(model, case, scores, key, steps) for case in cases]


def ecoflap_scores(model: SparseModel, key: Sequence[str], steps: Steps) -> dict[str, list[float]]:
    """Of each part, summed over batches: a step each."""
    total: dict[str, list[float]] = {}
    for batch in range(len(model.batches)):
        name, own = f"ecoflap scores {batch}", [*key, model.modules.value, str(NUM_SCORED_WORDS)]
        found = steps.call(name, own, partial(model.scores, batch), modules=_CODE).document
        total = {
            part: [x + y for x, y in zip(total.get(part, [0.0] * len(new)), new, strict=True)]
            for part, new in found.items()
        }
    return total


def case_row(
    model: SparseModel, case: Case, scores: Mapping[str, Sequence[float]], key: Sequence[str], steps: Steps
) -> dict[str, Any]:
    """One row of a model."""
    own = [*key, str(len(model.calibration)), model.modules.value, case.name]
    found = steps.call(f"{case.name} {model.modules}", own, partial(model.score, case, scores), modules=_CODE)
    return {**found.document, "seconds": found.seconds}


def ecoflap_figures(rows: Sequence[dict[str, Any]]) -> Found:
    """Ratios of validation KL, each the greatest of its rows and, as `..._mean`, the geometric mean.

    ECoFLaP's ratios are against uniform ones with the same local step, SparseGPT is against Wanda with the same ratios.
    """
    kl = {(x["model"], x["step"], x["ratios"], x["pattern"] or x["sparsity"]): x["kl"] for x in rows}
    names = list(dict.fromkeys(x["model"] for x in rows))
    wanda, sparsegpt = LocalStep.WANDA.value, LocalStep.SPARSEGPT.value
    uniform, ecoflap = Ratios.UNIFORM.value, Ratios.ECOFLAP.value

    def ratios(name: str, of: tuple[str, str], other: tuple[str, str], at: Sequence[float | str]) -> list[float]:
        pairs = [((name, *of, x), (name, *other, x)) for x in at]
        return [ratio(kl[a], kl[b]) for a, b in pairs if a in kl and b in kl]

    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        steps = [ratios(name, (sparsegpt, own), (wanda, own), SPARSITIES) for own in (uniform, ecoflap)]
        own = {
            "ecoflap_wanda_vs_uniform": ratios(name, (wanda, ecoflap), (wanda, uniform), SPARSITIES),
            "ecoflap_sparsegpt_vs_uniform": ratios(name, (sparsegpt, ecoflap), (sparsegpt, uniform), SPARSITIES),
            "sparsegpt_vs_wanda": [x for of in steps for x in of],
        }
        for figure, values in own.items():
            found.setdefault(figure, {})[name] = worst(values)
            found.setdefault(f"{figure}_mean", {})[name] = mean(values)
        found.setdefault("sparsegpt_vs_wanda_2_4", {})[name] = worst(
            ratios(name, (sparsegpt, uniform), (wanda, uniform), [PATTERN])
        )
    return found
