"""Statistics as a document: whole, of the right model, and the same bytes for the same numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError, FingerprintMismatchError, InputError
from pruning.measuring.statistics import ModelStatistics, StatisticsKind, measure_statistics
from tests.pruning.made_up import made_up_anatomy, made_up_statistics


@pytest.mark.parametrize("kind", StatisticsKind)
def test_measured_statistics_are_whole_and_repeatable(
    kind: StatisticsKind, checkpoint: Path, anatomy: ModelAnatomy, conversations: list[Conversation]
) -> None:
    model, batches = load_model(checkpoint), make_batches(conversations, load_processor(checkpoint), batch_size=4)
    progress: list[tuple[int, int]] = []
    first = measure_statistics(kind, model, batches, seed=3, on_batch=lambda *x: progress.append(x))
    first.check(anatomy, kind)
    done, totals = [x for x, _ in progress], {total for _, total in progress}
    assert done == sorted(set(done))
    assert totals == {done[-1]}
    assert progress
    again = measure_statistics(kind, model, batches, seed=3)
    assert again.to_bytes() == first.to_bytes()
    other_seed = measure_statistics(kind, model, batches, seed=4)
    assert (other_seed.to_bytes() == first.to_bytes()) is (kind is not StatisticsKind.ZEROTH_ORDER)


@pytest.mark.parametrize("kind", StatisticsKind)
def test_bytes_round_trip_and_do_not_depend_on_the_order(kind: StatisticsKind) -> None:
    anatomy = made_up_anatomy([16, 24])
    statistics = made_up_statistics(anatomy, kind)
    content = statistics.to_bytes()
    again = ModelStatistics.from_bytes(content)
    again.check(anatomy, kind)
    assert (again.kind, again.fingerprint) == (kind, anatomy.fingerprint)
    assert all(np.array_equal(again.arrays[name], array) for name, array in statistics.arrays.items())
    backwards = replace(statistics, arrays=dict(sorted(statistics.arrays.items(), reverse=True)))
    assert {backwards.to_bytes() for _ in range(5)} == {content}


def test_arrays_of_all_layers_in_order() -> None:
    statistics = made_up_statistics(made_up_anatomy([8] * 12), StatisticsKind.GRADIENTS)
    found = statistics.per_layer("ffn_taylor")
    assert len(found) == 12
    assert all(np.array_equal(found[i], statistics.arrays[f"layers.{i}.ffn_taylor"]) for i in range(12))
    with pytest.raises(KeyError, match="ffn_mean"):
        statistics.per_layer("ffn_mean")


def test_another_model_or_another_kind_is_refused() -> None:
    anatomy = made_up_anatomy([16, 24])
    statistics = made_up_statistics(anatomy, StatisticsKind.GRADIENTS)
    with pytest.raises(FingerprintMismatchError, match="measured on"):
        replace(statistics, fingerprint="1" * 64).check(anatomy)
    with pytest.raises(InputError, match=r"kind 'activations'.*StatisticsKind\.ACTIVATIONS"):
        statistics.check(anatomy, StatisticsKind.ACTIVATIONS)


def test_statistics_that_are_not_whole_are_refused_by_name() -> None:
    anatomy = made_up_anatomy([16, 24])
    statistics = made_up_statistics(anatomy, StatisticsKind.ACTIVATIONS)
    name = "layers.1.ffn_mean"
    missing = {k: v for k, v in statistics.arrays.items() if k != name}
    narrow = {**statistics.arrays, name: np.zeros(16)}
    endless = {**statistics.arrays, name: np.full(24, np.nan)}
    too_many = {**statistics.arrays, "layers.2.ffn_mean": np.zeros(24)}
    for arrays in (missing, narrow):
        with pytest.raises(CheckpointError, match=rf"1 arrays .*{name}"):
            replace(statistics, arrays=arrays).check(anatomy)
    with pytest.raises(CheckpointError, match=rf"1 of .* NaN .*{name}.*float32") as caught:
        replace(statistics, arrays=endless).check(anatomy)
    assert "again" not in str(caught.value)  # the same numbers would come out
    with pytest.raises(CheckpointError, match=r"layers\.2\.ffn_mean"):
        replace(statistics, arrays=too_many).check(anatomy)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        save({"a": np.zeros(2)}),
        save({"a": np.zeros(2)}, metadata={"statistics": "{}"}),
        save({"a": np.zeros(2)}, metadata={"statistics": "[]"}),
        save({"a": np.zeros(2)}, metadata={"statistics": '{"kind": "guesses", "fingerprint": "0"}'}),
        save({"a": np.zeros(2, np.int32)}, metadata={"statistics": '{"kind": "gradients", "fingerprint": "0"}'}),
    ],
)
def test_something_else_is_no_statistics(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="statistics are"):
        ModelStatistics.from_bytes(content)


def test_no_data_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="calibration data"):
        measure_statistics(StatisticsKind.ACTIVATIONS, load_model(checkpoint), [])


def test_attention_is_measured_in_every_layer_or_not_at_all() -> None:
    anatomy = made_up_anatomy([8, 16])
    old = made_up_statistics(anatomy, StatisticsKind.ACTIVATIONS)
    assert not old.has_attention
    names = [f"layers.{i}.{name}" for i in range(2) for name in ("attention_second_moment", "out_norm")]
    added = dict.fromkeys(names, np.ones(32))
    whole = replace(old, arrays={**old.arrays, **added})
    whole.check(anatomy)
    assert whole.has_attention
    assert ModelStatistics.from_bytes(whole.to_bytes()).has_attention
    for changed in ({**added, names[0]: np.ones(31)}, {name: added[name] for name in names[1:]}):
        with pytest.raises(CheckpointError, match=r"1 arrays .* layers\.0\.attention_second_moment"):
            replace(old, arrays={**old.arrays, **changed}).check(anatomy)
