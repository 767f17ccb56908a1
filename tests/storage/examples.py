"""Small records to store: one model of two layers, and whatever refers to it."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mcts.settings import SearchSettings
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.plan import Achieved, Kept, PlanLayer, PlanRanking, PlanTarget, Predicted, PruningPlan
from pruning.planning.plan_parts import PlanModel, Provenance
from pruning.planning.scope import Scope
from storage.contract import Repository
from storage.documents import canonical_protocol
from storage.records import (
    CalibrationRecord,
    DatasetRecord,
    DeviceRecord,
    KeyRecord,
    KeyScope,
    ModelRecord,
    NewJob,
    PredictorRecord,
    RankingOrigin,
    Sample,
    StatisticsRecord,
)
from tests.pruning.made_up_devices import made_up_profile

RANKING = b"ranking bytes \x00\xff"
WEIGHTS = b"predictor weights"
SAFETENSORS = "application/vnd.safetensors"
RANKING_SHA256 = hashlib.sha256(RANKING).hexdigest()
WEIGHTS_SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
MORNING = datetime(2025, 3, 1, 8, 30, 15, 123456, tzinfo=UTC)

ANATOMY = ModelAnatomy(
    model_type="llava",
    text_model_type="llama",
    hidden_size=16,
    vocab_size=32,
    layers=tuple(
        DecoderLayer(
            index=index,
            ffn_width=64,
            num_heads=4,
            num_kv_groups=2,
            head_dim=4,
            ffn_parameters_per_channel=48,
            parameters=4000,
        )
        for index in range(2)
    ),
    total_parameters=10_000,
    dtype="F32",
    fingerprint="f" * 64,
)


SPACE = ffn_space([[8, 32, 64], [16, 64]])
ORIGIN = RankingOrigin("activations", "c")
PROTOCOL = canonical_protocol([{"step": "bias"}])


def model(model_id: str = "m", created_at: datetime = MORNING, *, has_origin: bool = True) -> ModelRecord:
    """Before revision 0005 it was not noted what a ranking was made by."""
    origin = ORIGIN if has_origin else None
    return ModelRecord(model_id, ANATOMY, "a" * 64, RANKING_SHA256, "/models/m", created_at, origin)


def calibration(calibration_id: str = "c", created_at: datetime = MORNING) -> CalibrationRecord:
    return CalibrationRecord(calibration_id, "thirty-two", 32, 5_000_000_000, created_at)


def sample(
    number: int,
    *,
    model_id: str = "m",
    calibration_id: str = "c",
    source: str = "mcts",
    has_agreement: bool = True,
    has_folds: bool = True,
) -> Sample:
    """Sample `number`, up to 4,000: what is in it follows from that.

    Before revision 0004 they had no agreement, before 0006 no folds.
    """
    agreement = 1 - number / 2**20 if has_agreement else None
    folds = tuple(FoldMetrics(number / n, 0.8, 0.9, 320, 16) for n in (4, 12)) if has_folds else None
    widths = (8 * number, 64) if number <= 8 else (number % 64 + 1, 63 - number // 64)
    return Sample(
        model_id=model_id,
        ranking_sha256=RANKING_SHA256,
        calibration_id=calibration_id,
        architecture=ANATOMY.architecture(widths),
        metrics=Metrics(
            number / 3, 1.5 + number / 7, 0.8, num_tokens=640, num_answers=32, agreement=agreement, folds=folds
        ),
        seconds=0.1,
        source=source,
    )


def samples_of_other_things(*, has_folds: bool = True) -> list[Sample]:
    """Of more than FFN widths, and of more than a cut: there are some since revision 0005."""
    grouped = replace(sample(6, has_folds=has_folds), architecture=ANATOMY.architecture((8, 64), (1, 2)))
    return [grouped, replace(sample(1, has_folds=has_folds), protocol=PROTOCOL)]


def statistics(
    kind: str = "activations", *, model_id: str = "m", calibration_id: str = "c", created_at: datetime = MORNING
) -> StatisticsRecord:
    return StatisticsRecord(model_id, kind, calibration_id, WEIGHTS_SHA256, created_at)


def predictor(
    predictor_id: str = "p", created_at: datetime = MORNING, model_id: str = "m", *, has_space: bool = True
) -> PredictorRecord:
    """Before revision 0005 predictors said no space."""
    space = SPACE.document() if has_space else None
    return PredictorRecord(predictor_id, model_id, WEIGHTS_SHA256, {"num_layers": 2, "rate": 1e-7}, created_at, space)


def device() -> DeviceRecord:
    """A profile of the model's own layer shape."""
    return DeviceRecord(made_up_profile("bench", anatomy=ANATOMY), MORNING)


def plan(plan_id: str = "plan-1", *, method: str = "predictor", created_at: datetime = MORNING) -> PruningPlan:
    return PruningPlan(
        plan_id=plan_id,
        method=method,
        created_at=created_at,
        model=PlanModel(id="m", fingerprint="f" * 64),
        target=PlanTarget(sparsity=0.1, scope=Scope.DECODER),
        layers=tuple(PlanLayer(index=i, ffn=Kept(units=32 + 8 * i), attention=Kept(units=2)) for i in range(2)),
        ranking=PlanRanking(sha256=RANKING_SHA256, url="/v1/artifacts/x"),
        achieved=Achieved(
            removed={Scope.FFN: 1 / 3, Scope.DECODER: 0.1, Scope.MODEL: 1e-7},
            parameters=9000,
            disk_bytes=36_100,
            memory_bytes=40_000,
            kv_cache_bytes=4_000,
            flops=10**15,
        ),
        predicted=Predicted(quality=0.1 + 0.2, interval=(0.25, 0.5), of="calibration"),
        provenance=Provenance(predictor="p", samples=300, calibration="c", seed=0, note="größer"),
    )


def search_document() -> dict[str, Any]:
    """Settings that a finished search is stored with; simulations were on by default up to revision 0005."""
    settings = SearchSettings(sparsities=(0.3,), num_evaluations=60, seed=7, num_simulations=8)
    return {"data": "/data/calibration.json", "conversations": 32, "search": settings.to_dict()}


def job(number: int = 0, *, kind: str = "search", model_id: str = "m", key: str | None = None) -> NewJob:
    """A job that somebody asks for."""
    return NewJob(kind, model_id, {"kind": kind, "number": number}, "somebody", key)


def dataset(dataset_id: str = "d" * 64) -> DatasetRecord:
    return DatasetRecord(dataset_id, "thirty-two", 32, 64, 30, 5_000_000_000, "somebody", MORNING)


def key(key_id: str = "0123456789ab", **values: Any) -> KeyRecord:
    return KeyRecord(key_id, "notebook", KeyScope.RUN, "salt", "e" * 64, MORNING, **values)


def store_basics(repository: Repository) -> None:
    """Store what statistics, samples, predictors, plans and searches refer to."""
    repository.put_artifact(RANKING, SAFETENSORS)
    repository.put_artifact(WEIGHTS, SAFETENSORS)
    repository.add_model(model())
    repository.add_calibration(calibration())
