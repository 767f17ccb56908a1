"""The trained predictor: LOP itself."""

import logging

from pruning.errors import InputError
from pruning.levels import DEFAULT_ROUND_TO
from pruning.limits import WidthSteps, parameter_limits
from pruning.plan import Predicted, Provenance
from service.lru_cache import LruCache
from service.methods.family import Answer, Candidate, Question, Unavailable
from service.methods.names import Method
from service.predictor_cache import PredictorCache
from storage.contract import Repository
from storage.records import PredictorRecord

_logger = logging.getLogger("service.methods")


class PredictorMethod:
    """The MethodFamily of `lop`."""

    def __init__(self, repository: Repository, predictors: PredictorCache) -> None:
        self._repository = repository
        self._predictors = predictors
        self._records: LruCache[str, PredictorRecord] = LruCache(predictors.capacity)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The model's latest predictor."""
        found = self._repository.latest_predictor_id(question.model.id)
        if found is not None:
            # A record never changes, and its document is long.
            record = self._records.get(found, lambda: self._repository.get_predictor(found))
            return Candidate(record.id, lambda: self._answer(record, question))
        error = InputError(
            f"method '{method}' needs a trained predictor",
            values=f"model {question.model.id!r} has none",
            remedy="Train one with `lop train`, or leave `method` out",
        )
        return Unavailable("no predictor is trained for this model", error)

    def preload(self) -> None:
        """Load the newest predictor of each model, as far as the cache holds them, and let each predict once.

        What a prediction works out once for a model is time that no request should pay.
        """
        newest = {p.model_id: p for p in self._repository.list_predictors()}
        for record in sorted(newest.values(), key=lambda p: p.created_at)[-self._predictors.capacity :]:
            try:
                anatomy = self._repository.get_model(record.model_id).anatomy
                steps = WidthSteps.build(anatomy, round_to=DEFAULT_ROUND_TO)
                self._predictors.predict(record, anatomy, parameter_limits(anatomy, steps, anatomy.ffn_parameters // 2))
            except InputError as error:
                _logger.warning("predictor %s of model %s cannot be used: %s", record.id, record.model_id, error)

    def _answer(self, record: PredictorRecord, question: Question) -> Answer:
        prediction = self._predictors.predict(record, question.model.anatomy, question.limits)
        info = self._predictors.get(record).info
        return Answer(
            prediction.widths,
            predicted=Predicted(
                quality=prediction.kl,
                interval=prediction.interval,
                accuracy=prediction.accuracy,
                accuracy_interval=prediction.accuracy_interval,
            ),
            provenance=Provenance(
                predictor=record.id, samples=info.num_samples, calibration=info.calibration_id, seed=info.seed
            ),
        )
