"""Validation of what a search found: the same configurations on conversations that it never saw.

A search takes the best of hundreds of noisy scores, so its own are optimistic; the gap says by how much.
"""

from collections.abc import Sequence

from lop.engines import EvaluatorRecipe
from mcts.result import SearchResult
from pruning.conversations import Conversation
from pruning.errors import InputError
from pruning.metrics import Metrics
from storage.contract import Repository


def check_disjoint(calibration: Sequence[Conversation], validation: Sequence[Conversation]) -> None:
    """Raises InputError if a conversation is in both: it would validate nothing."""
    known = {(c.image and c.image.resolve(), c.turns) for c in calibration}
    shared = [c.id for c in validation if (c.image and c.image.resolve(), c.turns) in known]
    if shared:
        raise InputError(
            "validation conversations must not be among those that the search scores on",
            values=f"{len(shared)} are, such as {shared[0]}",
            remedy="Split the data in two files",
        )


def validate(
    repository: Repository, model_id: str, validation: Sequence[Conversation], result: SearchResult
) -> list[Metrics]:
    """Metrics on `validation` of the best configuration of each target, in their order."""
    model = repository.get_model(model_id)
    ranking = repository.get_artifact(model.ranking_sha256).content
    evaluate = EvaluatorRecipe.of(model, ranking, validation)()
    return evaluate([target.widths for target in result.targets])
