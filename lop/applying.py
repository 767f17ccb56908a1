"""Applying a plan with the ranking that it names, wherever that is."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lop.client import fetch_ranking
from pruning.atomic_file import beside
from pruning.errors import CheckpointError, LopError, LopServerError
from pruning.missing_packages import needing
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

_logger = logging.getLogger(__name__)

RankingSource = Ranking | bytes | str | Path | None
"""A ranking, its file's content, its path, or None: from the plan's URL."""


def ranking_path(plan_path: str | Path) -> Path:
    """Where `lop plan --out` puts the ranking of the plan at `plan_path`: beside it."""
    path = Path(plan_path)
    return beside(path, ".ranking.safetensors", stem=path.name.removesuffix(".json"), start="")


def load_ranking_of(plan: PruningPlan, plan_path: Path) -> Ranking:
    """The ranking of the plan in the file `plan_path`: the one beside it, else from the plan's URL.

    Raises as `load_ranking`; where neither is there, the error names the missing file first.
    """
    beside = ranking_path(plan_path)
    if beside.is_file():
        return load_ranking(plan, beside)
    url = plan.ranking.url
    missing = f"{beside} is not there"
    advice = f"Copy {beside.name} from where the plan was written, give --ranking FILE, or request the plan again"
    rule = "a plan needs the ranking file that was written beside it"
    if url is None or not url.startswith(("http://", "https://")):
        raise CheckpointError(rule, values=missing, remedy=advice)
    try:
        return load_ranking(plan)
    except LopError as error:
        kind = LopServerError if isinstance(error, LopServerError) else CheckpointError
        values = f"{missing}; from its URL: {error.rule}: {error.values}"
        raise kind(rule, values=values, remedy=advice) from error


def load_ranking(plan: PruningPlan, source: RankingSource = None) -> Ranking:
    """The ranking that `plan` needs, from `source`; whether it is the right one is checked when it is applied.

    Raises:
        CheckpointError: the file is missing, damaged, or not what the plan names.
        LopServerError: the plan's URL does not answer.
    """
    if isinstance(source, Ranking):
        return source
    if source is None:
        return Ranking.from_bytes(fetch_ranking(plan))
    if isinstance(source, bytes):
        return Ranking.from_bytes(source)
    try:
        return Ranking.from_bytes(Path(source).read_bytes())
    except OSError as error:
        raise CheckpointError("the ranking file must be readable", values=f"{source}: {error.strerror}") from error


def apply_plan(
    model: "PreTrainedModel",
    plan: PruningPlan,
    ranking: RankingSource = None,
    *,
    reconstruct: str | Path | None = None,
    processor: "Processor | None" = None,
) -> "PreTrainedModel":
    """Cut `model` in place as `plan` says; returns the model, ready to run or to `lop.save_pruned`.

    Args:
        model: the dense transformers model that the plan was made for.
        plan: from `Client.plan` or `PruningPlan.load`.
        ranking: which channels to keep; by default it is downloaded from the plan's URL.
        reconstruct: a file of conversations, LLaVA-format JSON. The projections out of what is cut are solved anew on
            them, so that what is kept takes over for what goes; `model.config` and `lop.save_pruned` record it. Where
            they have fewer tokens than a projection has inputs, a warning is logged.
        processor: of the model, for these conversations; by default that of the folder which the model came from.

    Raises:
        FingerprintMismatchError: plan, ranking and model do not belong together; the model is untouched.
        PlanError: the plan asks for what cannot be cut; the model is untouched.
        CheckpointError, LopServerError: the ranking cannot be read.
        DatasetError, InputError: the conversations cannot be used; the model is untouched.
        MissingExtraError: torch or transformers is not installed.
    """
    with needing("apply"):
        from pruning.checkpoints.anatomy_reader import anatomy_of
        from pruning.cutting import surgery

    plan.check_fingerprint(anatomy_of(model).fingerprint)
    if reconstruct is None:
        return surgery.apply_plan(model, plan, load_ranking(plan, ranking))
    with needing("apply"):
        from pruning.checkpoints.loading import load_processor
        from pruning.cutting.reconstruct_checkpoint import warnings_of
        from pruning.cutting.reconstruct_model import reconstruct_and_cut
        from pruning.data.conversations import load_conversations

    own = processor or load_processor(Path(model.config.name_or_path))
    sites = reconstruct_and_cut(model, plan, load_ranking(plan, ranking), load_conversations(reconstruct), own)
    for warning in warnings_of(sites):
        _logger.warning(warning)
    return model
