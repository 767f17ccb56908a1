"""The part `ecoflap` of `benchmarks.second_order`: validation KL of single weights set to zero.

At 50, 60 and 70% of the weights, by Wanda and by SparseGPT, with ECoFLaP's ratios and with uniform ones; and the
pattern 2:4. Searched ratios: `benchmarks.second_order_densities`. Of the reference decoder and vision tower are
sparsified, as ECoFLaP does, of SmolLM2 the decoder. What is scored is the folder that `lop sparsify` writes. Ratios and
weights see calibration data alone, 128 conversations, as in the papers; ECoFLaP's scores are the product's own, by its
defaults, each batch of them a step. Rows hold the KL of each validation conversation, for what
`benchmarks.second_order_sparse_figures` makes of pairs of them.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.second_order_data import by_length
from benchmarks.steps import Steps
from lop.workflows.compute import compute_device
from lop.workflows.ecoflap_scores import SCORED_TOKENS, BatchScores, block_scores
from lop.workflows.measuring import streamed
from lop.workflows.sparsifying import Ratios, asked_sparsity, ecoflap_densities
from pruning.arrays import FloatArray
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

if TYPE_CHECKING:
    from benchmarks.second_order_models import Model

SPARSITIES = (0.5, 0.6, 0.7)
PATTERN = "2:4"
MODULES = {"reference": Modules.ALL, "smollm2": Modules.LANGUAGE}
SEED = 0

NUM_CALIBRATION = 128

_SCORED = f"{SCORED_TOKENS} tokens"
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

    def score(self, case: Case, scores: Mapping[Part, FloatArray]) -> dict[str, Any]:
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
            return alike_within(blocks, ecoflap_densities(blocks, scores, asked.density))

        return self.measured(asked, densities, ratios=case.ratios.value, sparsity=case.sparsity)

    def measured(self, asked: Sparsity, densities: Densities, *, ratios: str, sparsity: float) -> dict[str, Any]:
        """The row of what is `asked`, whose densities are called `ratios`, at a wished `sparsity`."""
        out = self.folder / "sparse"
        shutil.rmtree(out, ignore_errors=True)
        batches = streamed(self.path, by_length(self.calibration))
        used = calibration_id(self.calibration)
        report = sparsify_checkpoint(self.path, out, asked, batches, used, compute_device(), densities=densities)
        found = self.evaluated(out)
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
            **found,
            "densities": [x["density"] for x in report.layers],
        }

    def evaluated(self, folder: Path) -> dict[str, Any]:
        """KL and agreement of the checkpoint in `folder` with the dense one, and of each validation conversation the
        summed KL in nats."""
        model, dense = load_model(folder), load_model(self.path)
        nats, tokens, agreeing = [0.0] * len(self.validation), 0, 0.0
        for row in make_batches(self.validation, load_processor(self.path), batch_size=1):
            metrics = evaluate_model(model, [row], dense)
            nats[row.conversations[0]] += metrics.kl * metrics.num_tokens
            tokens += metrics.num_tokens
            agreeing += (metrics.agreement or 0.0) * metrics.num_tokens
        kl, agreement = sum(nats) / tokens, agreeing / tokens
        return {"kl": kl, "agreement": agreement, "answer_tokens": tokens, "conversation_nats": nats}


def ecoflap_rows(
    model: SparseModel, key: Sequence[str], steps: Steps, cases: Sequence[Case] = CASES
) -> list[dict[str, Any]]:
    """All rows of a model; `key` is what every figure depends on."""
    scores = ecoflap_scores(model, key, steps)
    return [case_row(model, case, scores, key, steps) for case in cases]


def ecoflap_scores(model: SparseModel, key: Sequence[str], steps: Steps) -> dict[Part, FloatArray]:
    """Of each part: each batch is a step."""
    own = [*key, model.modules.value, _SCORED]

    def keep(batch: int, measure: Callable[[], BatchScores]) -> BatchScores:
        return steps.call(f"ecoflap scores {batch}", own, measure, modules=_CODE).document

    return block_scores(model.path, model.calibration, model.modules.parts, seed=SEED, keep=keep)


def case_row(
    model: SparseModel, case: Case, scores: Mapping[Part, FloatArray], key: Sequence[str], steps: Steps
) -> dict[str, Any]:
    """One row of a model."""
    own = [*row_key(model, key), model.modules.value, case.name]
    if case.ratios is Ratios.ECOFLAP:
        own.append(_SCORED)
    found = steps.call(f"{case.name} {model.modules}", own, partial(model.score, case, scores), modules=_CODE)
    return {**found.document, "seconds": found.seconds}


def row_key(model: SparseModel, key: Sequence[str]) -> list[str]:
    """What every row depends on, and what it says."""
    return [*key, str(len(model.calibration)), "KL of conversations"]
