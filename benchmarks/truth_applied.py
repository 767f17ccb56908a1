"""Plans applied to the checkpoint: their files weighed, and what answering takes in memory held against the bound."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.built_activations import peak_bytes, workload_of
from benchmarks.truth_subjects import TruthSubject
from lop.workflows.profiling import TimedModel
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.activations import activation_bytes
from pruning.planning.cost import kv_cache_bytes
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking

ANSWER_TOKENS = 6
"""That an applied plan's model answers with while its memory is watched."""


@dataclass(frozen=True)
class Applied:
    """A plan that was applied: the bytes of its files less what it said, and the most that lived in memory beside the
    weights as a fraction of the bound on cache and activations."""

    disk_error: int
    memory_used: float


def apply_plan(
    subject: TruthSubject, plan: PruningPlan, ranking: Ranking, anatomy: ModelAnatomy, out: Path, *, batch: int
) -> Applied:
    """`plan`, applied to the checkpoint of `subject` in the new folder `out`, which is removed at the end.

    Its model answers `batch` prompts with a picture. The bound is of the plan's own KV cache.
    """
    prune_checkpoint(subject.source, plan, ranking, out)
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    inputs = TimedModel(subject.source, anatomy).images(batch=batch)
    assert inputs is not None
    workload = workload_of(inputs, ANSWER_TOKENS)
    bound = activation_bytes(anatomy, workload) + kv_cache_bytes(anatomy, workload, plan.architecture(anatomy))
    taken = peak_bytes(load_model(out), inputs, ANSWER_TOKENS)
    shutil.rmtree(out)
    return Applied(written - plan.achieved.disk_bytes, taken / bound)
