"""Cross-validation of what a search found: rankings and choices that were made without a fold, judged on it.

It costs two evaluations a target and one pass for the statistics, against the hundreds of the search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engines.memo import MemoisedEvaluator
from lop.workflows.engines import EngineOptions, EvaluatorRecipe, open_engine
from lop.workflows.measuring import measure_activations, record_calibration
from mcts.result import SearchResult
from pruning.anatomy.architecture import DENSE, Architecture
from pruning.data.conversations import Conversation, calibration_id
from pruning.data.folds import fold_numbers
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.space import Space
from storage.contract import Repository
from storage.records import BINARY, ModelRecord
from values.cross_validation import CrossValidation, FoldScore

SOURCE = "cross-validation"
"""`source` of the samples that it stores: of one fold each, so nothing is trained on them."""


def cross_validate(
    repository: Repository,
    model: ModelRecord,
    conversations: Sequence[Conversation],
    space: Space,
    result: SearchResult,
    *,
    name: str,
    engine: EngineOptions,
) -> SearchResult:
    """`result` with the `cross_validation` of every target; as it is where `conversations` are too few for folds.

    The conversations are those of the search, `name` is their file's. Where the model's ranking was learnt on them too,
    each fold is judged with one that was learnt on the others; where it comes from elsewhere, with that. Every
    evaluation is stored, so one that was killed goes on where it stopped.

    Raises what `lop.workflows.searching.search_model` raises of the checkpoint, the engine and the database.
    """
    numbers = fold_numbers(conversations)
    if numbers is None or any(len(target.without_fold) != max(numbers) + 1 for target in result.targets):
        return result
    folds = [[c for c, n in zip(conversations, numbers, strict=True) if n == fold] for fold in range(max(numbers) + 1)]
    rankings = _rankings_without_each(repository, model, conversations, folds)
    pool = calibration_id(conversations)
    judged: list[list[FoldScore]] = [[] for _ in result.targets]
    for fold, (held_out, ranking) in enumerate(zip(folds, rankings, strict=True)):
        chosen = [[space.architecture(choice) for choice in target.without_fold[fold]] for target in result.targets]
        wanted = [DENSE, *dict.fromkeys(architecture for found in chosen for architecture in found)]
        known = repository.find_samples(model.id, model.ranking_sha256, pool, wanted)
        calibration = record_calibration(repository, held_out, f"{name}, fold {fold + 1} of {len(folds)}")
        sha256 = repository.put_artifact(ranking, BINARY)
        recipe = EvaluatorRecipe.of(model, ranking, held_out)
        with open_engine(recipe, engine) as evaluate:
            memo = MemoisedEvaluator(repository, model.id, sha256, calibration.id, evaluate, SOURCE)
            measured = dict(zip(wanted, memo(wanted), strict=True))
        for scores, found in zip(judged, chosen, strict=True):
            scores.append(_score(found, measured, known, fold))
    targets = [
        replace(target, cross_validation=CrossValidation(target.metrics.kl, tuple(scores)))
        for target, scores in zip(result.targets, judged, strict=True)
    ]
    return replace(result, targets=tuple(targets))


def _score(
    chosen: Sequence[Architecture],
    measured: Mapping[Architecture, Metrics],
    known: Mapping[Architecture, Metrics],
    fold: int,
) -> FoldScore:
    """Of `chosen` [M] on `fold`, from what was `measured` there and is `known` of all conversations together."""
    found = [measured[architecture] for architecture in chosen]
    tokens = found[0].num_tokens
    parts = [(known[a].kl_parts or ())[fold] * known[a].num_tokens / tokens for a in chosen]
    return FoldScore(
        num_tokens=tokens,
        num_answers=found[0].num_answers,
        kl=_mean([metrics.kl for metrics in found]),
        kl_ranked=_mean(parts),
        accuracy=_mean([metrics.accuracy for metrics in found]),
        agreement=_mean([metrics.agreement or 0.0 for metrics in found]),
        dense_accuracy=measured[DENSE].accuracy,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rankings_without_each(
    repository: Repository,
    model: ModelRecord,
    conversations: Sequence[Conversation],
    folds: Sequence[Sequence[Conversation]],
) -> list[bytes]:
    """A ranking file a fold. What a ranking of before was learnt on is not known: as if it were these."""
    from pruning.checkpoints.loading import load_processor
    from pruning.data.batches import BatchStream
    from pruning.measuring.fold_rankings import rankings_without_each

    origin = model.ranking_origin
    if origin is not None and (
        origin.kind != StatisticsKind.ACTIVATIONS or origin.calibration_id != calibration_id(conversations)
    ):
        return [repository.get_artifact(model.ranking_sha256).content] * len(folds)
    folder = Path(model.path)
    processor = load_processor(folder)
    statistics = [measure_activations(folder, fold) for fold in folds]
    tokens = [
        sum(int(batch.inputs["attention_mask"].sum()) for batch in BatchStream(fold, processor, max_tokens=2**12))
        for fold in folds
    ]
    return [ranking.to_bytes() for ranking in rankings_without_each(statistics, tokens, model.anatomy)]
