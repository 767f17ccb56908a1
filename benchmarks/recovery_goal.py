"""The reference without a share of its FFN, as the product's predictor plans it and as its best stored sample is."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.collect import SAMPLES_DIR, TRAINED_FILE
from benchmarks.learned import Learned
from benchmarks.steps import Steps
from benchmarks.stored_samples import read_samples
from benchmarks.subject import MODEL_ID, REFERENCE, Subject
from lop.workflows.planning import plan_from_database, write_plan
from pruning.allocators.methods import Method
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget

_SAMPLES = SAMPLES_DIR / TRAINED_FILE
_TRAINING_SEED = 0


def planned_ffn_model(folder: Path, steps: Steps, sparsity: float) -> Path:
    """The checkpoint of the product's plan by `lop`, made if it is not there.

    Its predictor learns from reference/search/trained.csv, as in `benchmarks.predictor`.
    """
    out = folder / f"lop-ffn-{sparsity}"
    plan = folder / f"{out.name}.json"
    samples = hashlib.sha256(_SAMPLES.read_bytes()).hexdigest()
    # The predictor is not a step of its own: where the plan was carried from another machine, nobody asks for it.
    make = partial(_write_plan, folder, samples, sparsity, plan)
    steps.call(f"plan {out.name}", [str(sparsity), samples], make, modules=("benchmarks.recovery_goal",))
    model = str(REFERENCE / "model")
    steps.lop(f"apply {out.name}", "apply", "--plan", str(plan), "--model", model, "--out", str(out), makes=out)
    return out


def searched_ffn_model(folder: Path, sparsity: float) -> Path:
    """The checkpoint of the least calibration KL among the reference's stored samples with that FFN sparsity."""
    out = folder / f"searched-ffn-{sparsity}"
    if out.exists():
        return out
    subject = Subject(REFERENCE, None, fresh=False)
    anatomy = subject.anatomy
    wanted = round(sum(layer.ffn_width for layer in anatomy.layers) * (1 - sparsity))
    samples = [sample for _, sample in read_samples(_SAMPLES, subject) if sum(subject.widths(sample)) == wanted]
    best = min(samples, key=lambda sample: sample.metrics.kl)
    plan = make_plan(
        anatomy,
        best.architecture,
        model_id=MODEL_ID,
        target=PlanTarget(sparsity=sparsity),
        method=best.source,
        ranking=PlanRanking(sha256=subject.ranking.sha256),
    )
    return prune_checkpoint(REFERENCE / "model", plan, subject.ranking, out)


def _write_plan(folder: Path, samples: str, sparsity: float, path: Path) -> dict[str, Any]:
    learned = Learned(folder, read_samples(_SAMPLES, Subject(REFERENCE, None, fresh=False)), samples)
    with learned.repository(_TRAINING_SEED) as (_, url):
        found = plan_from_database(url, schema=2, model=MODEL_ID, sparsity=sparsity, method=Method.LOP)
    write_plan(found.plan, found.ranking, path)
    return {"predictor_seconds": learned.training_seconds(_TRAINING_SEED)}
