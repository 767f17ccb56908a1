"""Models, scans and predictors made of numbers alone."""

import itertools
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mcts.result import SearchResult, TargetResult
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, Part, TensorSpec
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.space import Space
from pruning.planning.target import ffn_parameter_limits
from storage.contract import Repository
from storage.records import BINARY, CalibrationRecord, ModelRecord, Sample, SearchRecord, StatisticsRecord

HIDDEN, VOCAB, HEADS, GROUPS, HEAD_DIM = 16, 100, 4, 2, 4
WIDTHS = (64, 64, 128, 64)
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def made_up_anatomy(
    widths: tuple[int, ...] = WIDTHS, *, hidden: int = HIDDEN, fingerprint: str = "a" * 64
) -> ModelAnatomy:
    """A gated, GQA decoder with the tensors that it would have; FFNs of 3 x `hidden` parameters a channel."""
    tensors = [TensorSpec("embed.weight", (VOCAB, hidden), "F32"), TensorSpec("head.weight", (VOCAB, hidden), "F32")]
    layers = []
    for index, width in enumerate(widths):
        site, channels = Site(index, Sublayer.FFN), Part(Sublayer.FFN, 1, width)
        own = [
            TensorSpec(f"layers.{index}.mlp.down_proj.weight", (hidden, width), "F32", site, 1, (channels,)),
            TensorSpec(f"layers.{index}.mlp.gate_proj.weight", (width, hidden), "F32", site, 0, (channels,)),
            TensorSpec(f"layers.{index}.mlp.up_proj.weight", (width, hidden), "F32", site, 0, (channels,)),
            TensorSpec(f"layers.{index}.q.weight", (HEADS * HEAD_DIM, hidden), "F32"),
            TensorSpec(f"layers.{index}.k.weight", (GROUPS * HEAD_DIM, hidden), "F32"),
            TensorSpec(f"layers.{index}.v.weight", (GROUPS * HEAD_DIM, hidden), "F32"),
            TensorSpec(f"layers.{index}.o.weight", (hidden, HEADS * HEAD_DIM), "F32"),
            TensorSpec(f"layers.{index}.norm1.weight", (hidden,), "F32"),
            TensorSpec(f"layers.{index}.norm2.weight", (hidden,), "F32"),
        ]
        tensors += own
        layers.append(
            DecoderLayer(
                index=index,
                ffn_width=width,
                num_heads=HEADS,
                num_kv_groups=GROUPS,
                head_dim=HEAD_DIM,
                ffn_parameters_per_channel=3 * hidden,
                parameters=sum(int(np.prod(t.shape)) for t in own),
            )
        )
    return ModelAnatomy(
        model_type="llava",
        text_model_type="llama",
        hidden_size=hidden,
        vocab_size=VOCAB,
        layers=tuple(layers),
        total_parameters=sum(int(np.prod(t.shape)) for t in tensors),
        dtype="F32",
        fingerprint=fingerprint,
        tensors=tuple(sorted(tensors, key=lambda t: t.name)),
    )


def ranking_file(anatomy: ModelAnatomy) -> bytes:
    """A ranking that keeps channels in their own order."""
    orders = tuple(np.arange(x.ffn_width, dtype=np.int32) for x in anatomy.layers)
    return Ranking(orders, anatomy.fingerprint).to_bytes()


def register_model(repository: Repository, model_id: str = "tiny", anatomy: ModelAnatomy | None = None) -> ModelRecord:
    """Register a made-up model and its ranking."""
    anatomy = anatomy or made_up_anatomy()
    sha256 = repository.put_artifact(ranking_file(anatomy), "application/octet-stream")
    return repository.add_model(
        ModelRecord(
            id=model_id,
            anatomy=anatomy,
            weights_sha256="b" * 64,
            ranking_sha256=sha256,
            path="/models/tiny",
            created_at=NOW,
        )
    )


def sample(model: ModelRecord, calibration_id: str, widths: tuple[int, ...], kl: float) -> Sample:
    """A scored configuration."""
    metrics = Metrics(kl=kl, nll=1.0 + kl, accuracy=0.8, num_tokens=1000, num_answers=100)
    architecture = model.anatomy.architecture(widths)
    return Sample(model.id, model.ranking_sha256, calibration_id, architecture, metrics, 0.05, "sensitivity")


def scan_samples(
    model: ModelRecord, calibration_id: str, weights: tuple[float, ...], *, num_levels: int = 4
) -> list[Sample]:
    """A complete scan in which removing a share r of layer l costs weights[l] * r."""
    dense = tuple(x.ffn_width for x in model.anatomy.layers)
    return [
        sample(
            model,
            calibration_id,
            (*dense[:index], width, *dense[index + 1 :]),
            weights[index] * (1 - width / dense[index]),
        )
        for index, row in enumerate(ffn_levels(model.anatomy, num_levels=num_levels).units)
        for width in row[:-1].tolist()
    ]


def add_calibration(repository: Repository, calibration_id: str = "c" * 64) -> str:
    """Register a calibration set."""
    repository.add_calibration(
        CalibrationRecord(id=calibration_id, name="made up", num_conversations=8, num_answers=1000, created_at=NOW)
    )
    return calibration_id


_PER_CHANNEL = {
    StatisticsKind.ACTIVATIONS: ("ffn_mean", "ffn_second_moment", "ffn_variance", "down_mean_abs", "down_norm"),
    StatisticsKind.GRADIENTS: ("ffn_taylor",),
    StatisticsKind.ZEROTH_ORDER: (),
    StatisticsKind.SECOND_ORDER: ("ffn_elimination",),
}
_PER_LAYER = {
    StatisticsKind.ACTIVATIONS: ("outlier_ratio", "block_influence"),
    StatisticsKind.GRADIENTS: (),
    StatisticsKind.ZEROTH_ORDER: ("ffn_zeroth_order",),
    StatisticsKind.SECOND_ORDER: (),
}


def made_up_statistics(anatomy: ModelAnatomy, kind: StatisticsKind, *, seed: int = 0) -> ModelStatistics:
    """Positive random numbers of the right names and shapes."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.uniform(0.01, 0.1, anatomy.num_layers) for name in _PER_LAYER[kind]}
    for layer in anatomy.layers:
        arrays |= {f"layers.{layer.index}.{name}": rng.uniform(0.1, 2, layer.ffn_width) for name in _PER_CHANNEL[kind]}
        if kind is StatisticsKind.SECOND_ORDER:
            arrays[f"layers.{layer.index}.group_elimination"] = rng.uniform(0.1, 1, layer.num_kv_groups)
    return ModelStatistics(kind, anatomy.fingerprint, arrays)


def add_statistics(
    repository: Repository,
    model: ModelRecord,
    kind: StatisticsKind,
    *,
    calibration_id: str = "c" * 64,
    created_at: datetime = NOW,
    seed: int = 0,
) -> StatisticsRecord:
    """Store made-up statistics on a calibration set that is registered."""
    content = made_up_statistics(model.anatomy, kind, seed=seed).to_bytes()
    sha256 = repository.put_artifact(content, BINARY)
    return repository.add_statistics(StatisticsRecord(model.id, kind.value, calibration_id, sha256, created_at))


def add_search(
    repository: Repository,
    widths: tuple[int, ...],
    kl: float,
    *,
    method: str | None = "evolution",
    model_id: str = "tiny",
    label: str = "sparsity 0.5 (ffn)",
    num_answers: int = 100,
    budget: int | None = None,
    num_levels: int = 8,
    round_to: int = 8,
    calibration_id: str | None = None,
    validated_kl: float | None = None,
    queued: bool = False,
    agreement: float | None = None,
    validated_dense: Metrics | None = None,
    space: Space | None = None,
) -> SearchRecord:
    """A finished search of one target that found `widths`, by default all that its budget allows.

    `validated_kl` is on a set of 50 answers, "v" * 64, and `validated_dense` what is stored of the dense model there.
    """
    metrics = Metrics(kl, 1.0 + kl, accuracy=0.8, num_tokens=1000, num_answers=num_answers, agreement=agreement)
    budget = budget or sum(widths) * 3 * HIDDEN
    target = TargetResult(label, 0.5, budget, (1,) * len(widths), widths, metrics, 40, (kl,))
    result: dict[str, Any] = {"search": SearchResult((target,), 12).to_dict()}
    if calibration_id is not None:
        result["calibration_id"] = calibration_id
    if queued:
        result["predictor"] = "p"
    search: dict[str, Any] = {"seed": 7, "num_levels": num_levels, "round_to": round_to}
    if method is not None:
        search["method"] = method
    validation: dict[str, Any] | None = None
    if validated_kl is not None:
        validation = {
            "data": "other.json",
            "id": "v" * 64,
            "metrics": [asdict(Metrics(validated_kl, 1.5, 0.7, num_tokens=500, num_answers=50, agreement=agreement))],
        }
        if validated_dense is not None:
            validation["dense"] = asdict(validated_dense)
    document = {"data": "x", "conversations": 8, "search": search}
    return repository.record_search(model_id, document, result, space=space, validation=validation)


def add_all_but_a_predictor(repository: Repository, model: ModelRecord) -> None:
    """What every other method needs: all statistics, a one-layer scan, and searches of many budgets by each method."""
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.1, 0.2, 0.3, 0.4)))
    for kind in StatisticsKind:
        add_statistics(repository, model, kind)
    space = ffn_widths(model.anatomy, round_to=8)
    for method, channels in itertools.product(("mcts", "evolution", "random"), range(32, 320, 16)):
        choice = uniform_choice(ffn_parameter_limits(model.anatomy, space, channels * 3 * HIDDEN))
        widths, label = space.units_of(choice), f"budget {channels}"
        add_search(repository, widths, 0.1, method=method, model_id=model.id, label=label)


def widths_of(plan: PruningPlan, anatomy: ModelAnatomy | None = None) -> list[int]:
    """FFN widths [L] of a plan for `anatomy`, by default the made-up model of these tests."""
    return list(plan.ffn_widths(anatomy or made_up_anatomy()))
