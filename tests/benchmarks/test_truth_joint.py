"""Random budgets over both halves of every layer, on a tiny model: what is found, and that lies are."""

import random
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from benchmarks.truth_checks import check_plan
from benchmarks.truth_joint import AXES, JointMaker, measure_joint, random_space
from benchmarks.truth_subjects import TruthSubject
from lop.workflows.registration import register_model
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.data.conversations import load_conversations
from pruning.devices.device import profiled_device
from pruning.planning.plan import Axis, Kept, PlanLayer
from storage.records import DeviceRecord
from storage.sql_repository import open_repository
from tests.pruning.made_up_devices import made_up_profile
from tests.tiny_models import save_tiny_checkpoint, write_conversations


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("joint") / "model")


@pytest.fixture(scope="module")
def anatomy(checkpoint: Path) -> ModelAnatomy:
    return read_anatomy(checkpoint)


def test_plans_of_random_spaces_keep_their_budgets(checkpoint: Path, tmp_path: Path, quick_processes: None) -> None:
    url = f"sqlite:///{tmp_path / 'truth.db'}"
    with open_repository(url, create=True) as repository:
        register_model(repository, "tiny", checkpoint, load_conversations(write_conversations(tmp_path / "data")))
        profile = made_up_profile(anatomy=repository.get_model("tiny").anatomy, attention=True)
        repository.add_device(DeviceRecord(profile, datetime.now(UTC)))
    subject = TruthSubject("tiny", checkpoint, 1.0, is_whole=True)
    rows, summary = measure_joint(url, [subject], num_budgets=40, num_saved=3, processes=1)
    assert summary["joint_budgets"] == sum(row["requests"] for row in rows) == 40
    assert (summary["joint_violations"], summary["joint_cost_errors"], summary["joint_broken"]) == (0, 0, [])
    assert summary["joint_disk_bytes_error"] == 0
    assert 10 < summary["joint_skipping"] < 40
    assert 0 < summary["joint_latencies_by_tables"] < 40
    assert 0 < summary["joint_most_memory_used"] <= 1
    assert {row["space"] for row in rows} == {"+".join(axes) for axes in AXES}


def test_what_axes_allow(anatomy: ModelAnatomy) -> None:
    draw = random.Random(0)
    everything = random_space(anatomy, (Axis.FFN, Axis.ATTENTION, Axis.SKIP), 16, draw)
    by_site = {
        decision.sites[0]: row.tolist() for decision, row in zip(everything.decisions, everything.units, strict=True)
    }
    assert {tuple(row) for site, row in by_site.items() if site.sublayer is Sublayer.FFN} == {(0, 16, 32, 48)}
    groups = sorted(tuple(row) for site, row in by_site.items() if site.sublayer is Sublayer.ATTENTION)
    assert groups == [(0, 1, 2)] * 3 + [(1, 2)]  # one layer keeps its attention
    widths = random_space(anatomy, (Axis.FFN,), 16, draw)
    assert {tuple(row.tolist()) for row in widths.units} == {(16, 32, 48)}
    shapes = {
        len(decision.sites) for _ in range(20) for decision in random_space(anatomy, (Axis.SKIP,), 16, draw).decisions
    }
    assert shapes == {1, 2}


def test_a_plan_that_lies_about_groups_or_skips_is_found_out(
    checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path
) -> None:
    bench = profiled_device(made_up_profile(anatomy=anatomy, attention=True))
    check = partial(check_plan, anatomy=anatomy, source=checkpoint, folder=tmp_path, devices={bench.id: bench})
    maker = JointMaker(anatomy, "tiny", 5, devices=(bench,))
    made = next(
        x
        for x in (maker.make(compensates=False) for _ in range(50))
        if Axis.ATTENTION in x.axes
        and Option(0) in x.plan.architecture(anatomy).options.values()
        and x.plan.achieved.latency_source == "measured"
    )
    checked = check(made.request, made.plan)
    assert (checked.exceeded, checked.differing) == ((), ())
    said = made.plan.achieved.latency_ms
    assert said is not None
    quicker = made.plan.achieved.model_copy(update={"latency_ms": said * (1 - 1e-5)})
    assert check(made.request, made.plan.model_copy(update={"achieved": quicker})).differing == ("latency_ms",)
    other = JointMaker(anatomy, "tiny", 5)
    assert [other.make().plan.plan_id for _ in range(3)] == [
        x.make().plan.plan_id for x in [JointMaker(anatomy, "tiny", 5)] for _ in range(3)
    ]
    kv_bytes = made.plan.achieved.model_copy(update={"kv_cache_bytes": made.plan.achieved.kv_cache_bytes + 4})
    liar = made.plan.model_copy(update={"achieved": kv_bytes})
    assert check(made.request, liar).differing == ("kv_cache_bytes",)
    # Costs of another plan, which keeps a group or a channel of what this one skips.
    layers = {layer.index: layer for layer in made.plan.layers}
    index, layer = next((i, x) for i, x in layers.items() if Kept(units=0) in (x.ffn, x.attention))
    fuller = PlanLayer(
        index=index,
        ffn=Kept(units=8) if layer.ffn == Kept(units=0) else layer.ffn,
        attention=Kept(units=1) if layer.attention == Kept(units=0) else layer.attention,
    )
    more = made.plan.model_copy(update={"layers": tuple((layers | {index: fuller}).values())})
    found = check(made.request, more)
    assert {"memory_bytes", "latency_ms", "flops", "disk_bytes", "parameters"} <= set(found.differing)
