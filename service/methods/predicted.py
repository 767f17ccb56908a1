"""The trained predictor: LOP itself."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import CheckpointError, InputError
from pruning.planning.axis_spaces import SpaceName, fine_space, name_of
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO
from pruning.planning.limits import Limits
from pruning.planning.plan import Predicted
from pruning.planning.plan_parts import Provenance
from pruning.planning.space import Space
from pruning.planning.target import decoder_parameter_limits, ffn_parameter_limits, least_decoder_parameters
from service.lru_cache import LruCache
from service.methods.family import Answer, Candidate, Question, Unavailable, in_space, of_other_spaces
from service.predictor_cache import PredictorCache
from storage.contract import Catalogue
from storage.records import PredictorRecord

if TYPE_CHECKING:
    from policy_model.predictor import Prediction

BELOW_SPACE = (
    "the target is below the lowest widths that were searched: every layer keeps the same fraction, and the predicted "
    "quality is an extrapolation"
)
"""In the note of a plan that the predictor has nothing to choose for."""
EXTRAPOLATED = "outside what was searched: the predicted quality is an extrapolation, its interval may not hold"
"""In the note of a plan that keeps more or less than any searched configuration."""
OF_CALIBRATION = (
    "the predicted quality is of the calibration conversations, and so optimistic: the predictor was trained without "
    "cross-validation"
)
"""In the note of a plan by a predictor from before there was any, or of too few conversations for folds."""
WITHOUT_POLICY = "chosen without a policy: the predictor's is of an older version, `lop train` makes a new one"
"""In the note of a plan of a predictor that was stored before policies knew any number of layers and levels."""

OF_UNSEEN = "the predicted quality is of as many unseen conversations as were searched on"
"""In the note of every other plan of a predictor."""

_MAX_CACHED_MODELS = 32

_logger = logging.getLogger("service.methods")


class PredictorMethod:
    """The MethodFamily of `lop`."""

    def __init__(self, repository: Catalogue, predictors: PredictorCache) -> None:
        self._repository = repository
        self._predictors = predictors
        self._records: LruCache[str, PredictorRecord] = LruCache(predictors.capacity)
        self._by_space: LruCache[tuple[str, str], dict[SpaceName, str]] = LruCache(_MAX_CACHED_MODELS)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The model's latest predictor."""
        record = self.newest(question)
        if record is not None:
            return Candidate(record.id, lambda: self._answer(record, question))
        space = question.request.space
        if space not in method.spaces:
            return of_other_spaces(method, space)
        of_space, option = in_space(space)
        error = InputError(
            f"method '{method}' needs a trained predictor",
            values=f"model {question.model.id!r} has none{of_space}",
            remedy=f"Train one with `lop train{option}`, or leave `method` out",
        )
        return Unavailable(f"no predictor is trained for this model{of_space and ' and space'}", error)

    def newest(self, question: Question) -> PredictorRecord | None:
        """The model's latest predictor for what may be changed, if it has one."""
        model_id = question.model.id
        latest = self._repository.latest_predictor_id(model_id)
        if latest is None:
            return None
        # Which is the latest of each space changes with the latest of all.
        by_space = self._by_space.get((model_id, latest), lambda: self._look(model_id))
        found = by_space.get(question.request.space)
        # A record never changes, and its document is long.
        return None if found is None else self._records.get(found, lambda: self._repository.get_predictor(found))

    def _look(self, model_id: str) -> dict[SpaceName, str]:
        return {_name_of(space): key for key, space in self._repository.list_predictor_spaces(model_id)}

    def judge(self, record: PredictorRecord, answer: Answer, ranking_sha256: str) -> Answer:
        """`answer`, of another method, with the quality that `record` expects of it; as it is where one was measured.

        No interval: those of the predictor are made for what resembles its samples, and of the plans of other methods
        they held too few (docs/predictor.md).
        A predictor knows the ranking of its samples: nothing is predicted of channels that are kept in another order,
        or whose loss is compensated. The note says so, and what an unreadable predictor leaves unsaid.
        """
        if answer.predicted is not None:
            return answer
        try:
            info = self._predictors.get(record).info
            if ranking_sha256 != info.ranking_sha256:
                note = "no quality is predicted: the predictor knows the model's own ranking, without compensation"
                return replace(answer, notes=(*answer.notes, note))
            prediction = self._predictors.judge(record, answer.architecture)
        except CheckpointError as error:
            _logger.warning("predictor %s cannot be used: %s", record.id, error)
            note = f"no quality is predicted: this version cannot read predictor {record.id}"
            return replace(answer, notes=(*answer.notes, note))
        note = (
            f"quality as predictor {record.id} expects it of any configuration, on the calibration conversations: an "
            "estimate without an interval"
        )
        notes = (*answer.notes, note, *((EXTRAPOLATED,) if prediction.extrapolated else ()))
        return replace(answer, predicted=without_intervals(predicted(prediction)), notes=notes)

    def preload(self) -> None:
        """Load the newest predictor of each model, as far as the cache holds them, and let each predict once.

        What a prediction works out once for a model is time that no request should pay.
        """
        newest = {(p.model_id, _name_of(p.space)): p for p in self._repository.list_predictors()}
        for record in sorted(newest.values(), key=lambda p: p.created_at)[-self._predictors.capacity :]:
            try:
                anatomy = self._repository.get_model(record.model_id).anatomy
                space = fine_space(anatomy, name := _name_of(record.space), round_to=DEFAULT_ROUND_TO)
                self._predictors.predict(record, anatomy, _halfway(anatomy, space, name))
            except InputError as error:
                _logger.warning("predictor %s of model %s cannot be used: %s", record.id, record.model_id, error)

    def _answer(self, record: PredictorRecord, question: Question) -> Answer:
        prediction = self._predictors.predict(record, question.model.anatomy, question.limits)
        predictor = self._predictors.get(record)
        info = predictor.info
        return Answer(
            prediction.architecture,
            predicted=predicted(prediction),
            provenance=Provenance(
                predictor=record.id, samples=info.num_samples, calibration=info.calibration_id, seed=info.seed
            ),
            notes=(*_warnings(prediction), *((WITHOUT_POLICY,) if predictor.lacks_policy else ())),
        )


def _warnings(prediction: "Prediction") -> tuple[str, ...]:
    is_dense = not prediction.architecture.items  # which no data chose
    notes = [BELOW_SPACE] if prediction.below_space else [EXTRAPOLATED] if prediction.extrapolated else []
    if not is_dense:
        notes.append(OF_UNSEEN if prediction.is_unseen else OF_CALIBRATION)
    if prediction.dense_accuracy is not None:
        notes.append(f"exact match where the dense model has {prediction.dense_accuracy:.1%}")
    return tuple(notes)


def _halfway(anatomy: ModelAnatomy, space: Space, name: SpaceName) -> Limits:
    """Half of what can go has to."""
    if name is SpaceName.FFN:
        return ffn_parameter_limits(anatomy, space, anatomy.ffn_parameters // 2)
    least = least_decoder_parameters(anatomy, space)
    return decoder_parameter_limits(anatomy, space, (least + anatomy.decoder_parameters) // 2)


def _name_of(space: dict[str, Any] | None) -> SpaceName:
    """Of a predictor's: FFN widths, if it is from before a space was stored, or if what is stored cannot be read."""
    if space is None:
        return SpaceName.FFN
    try:
        return name_of(Space.from_document(space))
    except (InputError, KeyError, TypeError, ValueError):
        return SpaceName.FFN  # which is tried, and refused as a whole


def predicted(prediction: "Prediction") -> Predicted:
    """`prediction` as a plan says it."""
    return Predicted(
        quality=prediction.kl,
        of="unseen" if prediction.is_unseen else "calibration",
        interval=prediction.interval,
        accuracy=prediction.accuracy,
        accuracy_interval=prediction.accuracy_interval,
        agreement=prediction.agreement,
        agreement_interval=prediction.agreement_interval,
    )


def without_intervals(of: Predicted) -> Predicted:
    """The estimates alone."""
    return of.model_copy(update={"interval": None, "accuracy_interval": None, "agreement_interval": None})
