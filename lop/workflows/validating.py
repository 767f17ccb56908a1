"""Validation of what a search found: the same configurations on conversations that it never saw.

A search takes the best of hundreds of noisy scores, so its own are optimistic; the gap says by how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lop.workflows.engines import LOCAL_ENGINE, EngineOptions, EvaluatorRecipe, open_engine, squares_for
from lop.workflows.measuring import record_calibration
from mcts.result import SearchResult
from pruning.anatomy.architecture import DENSE
from pruning.data.conversations import Conversation
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.space import Space
from storage.contract import Registry


@dataclass(frozen=True, slots=True)
class Validated:
    """What the best configurations of a search are worth on conversations that it never saw.

    Attributes:
        data: the validation file's name.
        calibration_id: of the set of conversations.
        metrics: of the best configuration of each target, in their order.
        dense: of the dense model.
    """

    data: str
    calibration_id: str
    metrics: tuple[Metrics, ...]
    dense: Metrics


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
    repository: Registry,
    model_id: str,
    validation: Sequence[Conversation],
    result: SearchResult,
    *,
    calibration: Sequence[Conversation],
    space: Space,
    name: str,
    engine: EngineOptions = LOCAL_ENGINE,
    squares: bytes | None = None,
) -> Validated:
    """Score the best choice of each target on `validation`, a set called `name`, by the engine of the search.

    `space` is what was searched, on `calibration`, by which weights that are zeroed were chosen: `squares` are
    `squares_for` it; None: they are measured here.

    Raises what `lop.workflows.searching.search_model` raises of the checkpoint, the engine and the database.
    """
    model = repository.get_model(model_id)
    ranking = repository.get_artifact(model.ranking_sha256).content
    recorded = record_calibration(repository, validation, name)
    found = [space.architecture(target.choice) for target in result.targets]
    if squares is None and space.has_density:
        squares = squares_for(model, calibration)
    recipe = EvaluatorRecipe.of(model, ranking, validation, has_bits=space.has_bits, squares=squares)
    with open_engine(recipe, engine) as evaluate:
        *metrics, of_dense = (measured.metrics for measured in evaluate([*found, DENSE]))
    return Validated(name, recorded.id, tuple(metrics), of_dense)
