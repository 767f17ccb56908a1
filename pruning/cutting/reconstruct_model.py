"""Reconstruction of a model in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.cutting.pruned_config import RECOVERY_KEY
from pruning.cutting.reconstruct_checkpoint import solved_sites
from pruning.cutting.reconstruction import SolvedInMemory, SolvedSite, reconstruct
from pruning.cutting.surgery import check_applicable, cut_model, logger, note_of_training
from pruning.data.batches import make_batches, num_rows
from pruning.data.conversations import Conversation, calibration_id
from pruning.forward.layer_source import loaded_layers
from pruning.planning.plan import PruningPlan, reconstruction_step
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

BATCH_SIZE = 16


def reconstruct_and_cut(
    model: "PreTrainedModel",
    plan: PruningPlan,
    ranking: Ranking,
    conversations: Sequence[Conversation],
    processor: "Processor",
) -> tuple[SolvedSite, ...]:
    """Cut `model` in place as `plan` says, what is kept solved anew; its config records that. Says how it was solved.

    Raises as `pruning.cutting.surgery.apply_plan` and `pruning.cutting.reconstruction.reconstruct`; the model is
    untouched then.
    """
    anatomy = anatomy_of(model)
    if note := note_of_training(plan):
        logger.warning(note)
    plan = plan.untrained.recovered_by(reconstruction_step(calibration_id(conversations)))
    check_applicable(plan, anatomy, ranking, reconstructs=True)
    architecture, solved = plan.architecture(anatomy), SolvedInMemory()
    batches = make_batches(conversations, processor, batch_size=BATCH_SIZE)
    with loaded_layers(model.eval()) as source:
        reconstruct(source, batches, anatomy, architecture, ranking, solved, num_rows=num_rows(batches))
    cut_model(model, architecture, ranking, solved={index: x.tensors for index, x in solved.layers.items()})
    setattr(model.config, RECOVERY_KEY, [step.model_dump(mode="json") for step in plan.recovery])
    return solved_sites(ranking, architecture, solved)
