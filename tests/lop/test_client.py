"""The client against the real application."""

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

import lop
from lop.applying import load_ranking, ranking_path
from lop.client import fetch_ranking
from lop.workflows.planning import write_plan
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.errors import (
    CheckpointError,
    FingerprintMismatchError,
    InfeasibleBudgetError,
    InfeasibleTargetError,
    InputError,
    NotFoundError,
    SpaceReach,
)
from pruning.measuring.generation import generate_answers
from pruning.planning.plan import PlanRanking
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget
from service.app import create_app
from service.settings import Settings
from tests.lop.app_transport import AppTransport


@pytest.fixture
def client(database: str) -> Iterator[lop.Client]:
    with lop.Client("http://lop.test", transport=AppTransport(create_app(Settings(database_url=database)))) as client:
        yield client


def test_a_plan_is_fetched_applied_saved_and_loaded(client: lop.Client, checkpoint: Path, tmp_path: Path) -> None:
    plan = client.plan(model="tiny", sparsity=0.4)
    assert plan.method == "uniform"
    assert 0.4 <= plan.achieved.removed[Scope.FFN] < 0.4 + 8 / (4 * 48)
    assert plan.ranking.url == "http://lop.test/v1/models/tiny/ranking"
    model = lop.apply_plan(load_model(checkpoint), plan, client.ranking(plan))
    lop.save_pruned(model, plan, tmp_path / "pruned")
    loaded = lop.load_pruned(tmp_path / "pruned")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_compensated_plan_goes_the_whole_way(
    client: lop.Client, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    plan = client.plan(model="tiny", sparsity=0.4, method="flap")
    assert plan.method == "flap"
    assert plan.compensates
    assert plan.ranking.url == f"http://lop.test/v1/rankings/{plan.ranking.sha256}"
    assert client.get_plan(plan.plan_id) == plan
    dense = load_model(checkpoint)
    model = lop.apply_plan(load_model(checkpoint), plan, client.ranking(plan))
    biases = [decoder_view(model).out_projection(i).bias for i in range(4)]
    cut = [width < 48 for width in plan.ffn_widths(read_anatomy(checkpoint))]
    assert any(cut)
    assert [bias is not None and bool((bias != 0).any()) for bias in biases] == cut
    assert sum(p.numel() for p in model.parameters()) == plan.achieved.parameters
    lop.save_pruned(model, plan, tmp_path / "pruned", processor=load_processor(checkpoint))
    plan_path = tmp_path / "plan.json"
    write_plan(plan, client.ranking(plan), plan_path)
    prune_checkpoint(checkpoint, plan, load_ranking(plan, ranking_path(plan_path)), tmp_path / "from files")
    loaded = [lop.load_pruned(tmp_path / folder) for folder in ("pruned", "from files")]
    (batch,) = make_batches(load_conversations(data)[:4], load_processor(checkpoint))
    with torch.inference_mode():
        expected = model(**batch.inputs).logits
        assert all(torch.equal(x(**batch.inputs).logits, expected) for x in loaded)
        assert not torch.equal(dense(**batch.inputs).logits, expected)
    report = generate_answers(loaded[0], load_processor(tmp_path / "pruned"), load_conversations(data)[:4])
    assert report.num_answers == 8


def test_methods_of_their_own_data(client: lop.Client) -> None:
    assert client.plan(model="tiny", sparsity=0.4, method="owl").ranking.url == "http://lop.test/v1/models/tiny/ranking"
    with pytest.raises(InputError, match="lop model measure tiny --data FILE --kind gradients"):
        client.plan(model="tiny", sparsity=0.4, method="llm-pruner")
    with pytest.raises(InputError, match=r"lop search --model tiny --data FILE --method evolution -s 0\.4"):
        client.plan(model="tiny", sparsity=0.4, method="evolution")


def test_asking_again_gives_the_same_plan(client: lop.Client) -> None:
    plan = client.plan(model="tiny", sparsity=0.3, scope="decoder", device="l4", round_to=16)
    assert client.plan(model="tiny", sparsity=0.3, scope=Scope.DECODER, device="l4", round_to=16) == plan
    assert client.get_plan(plan.plan_id) == plan
    assert client.plan(model="tiny", sparsity=0.41).plan_id != plan.plan_id


def test_models_are_listed(client: lop.Client) -> None:
    assert [model["id"] for model in client.models()] == ["tiny"]


def test_mistakes_are_the_errors_of_the_tree(client: lop.Client) -> None:
    with pytest.raises(NotFoundError, match="nope"):
        client.plan(model="nope", sparsity=0.4)
    with pytest.raises(NotFoundError, match=r"abacus.*jetson"):
        client.plan(model="tiny", sparsity=0.4, device="abacus")
    with pytest.raises(NotFoundError):
        client.get_plan("0" * 24)
    for sparsity in (-0.1, 1.0, 7):
        with pytest.raises(InputError, match="sparsity"):
            client.plan(model="tiny", sparsity=sparsity)
    with pytest.raises(InputError):
        client.plan(model="tiny", sparsity=math.nan)
    with pytest.raises(InfeasibleTargetError) as caught:
        client.plan(model="tiny", sparsity=0.99)
    assert caught.value.nearest == pytest.approx(1 - 8 / 48, abs=1e-6)


def test_a_server_that_is_away_or_something_else(tmp_path: Path) -> None:
    with lop.Client("http://127.0.0.1:9") as client, pytest.raises(lop.LopServerError, match="lop serve"):
        client.plan(model="tiny", sparsity=0.4)
    other = httpx.MockTransport(lambda _: httpx.Response(404, html="<h1>It works!</h1>"))
    with lop.Client("http://x", transport=other) as client, pytest.raises(lop.LopServerError, match="own format"):
        client.models()
    with pytest.raises(InputError, match="http://"):
        lop.Client("localhost:8000")


def test_a_database_at_another_revision_is_a_server_error(tmp_path: Path) -> None:
    (tmp_path / "old.db").touch()
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path / 'old.db'}"))
    with (
        lop.Client("http://lop.test", transport=AppTransport(app)) as client,
        pytest.raises(lop.LopServerError, match="lop db upgrade"),
    ):
        client.plan(model="tiny", sparsity=0.4)


def test_rankings_are_checked(client: lop.Client, checkpoint: Path) -> None:
    plan = client.plan(model="tiny", sparsity=0.4)
    tampered = plan.model_copy(update={"ranking": PlanRanking(sha256="0" * 64, url=plan.ranking.url)})
    with pytest.raises(CheckpointError, match="the one that the plan names"):
        client.ranking(tampered)
    without = plan.model_copy(update={"ranking": PlanRanking(sha256=plan.ranking.sha256)})
    with pytest.raises(CheckpointError, match="--ranking FILE"):
        fetch_ranking(without)
    content = client.ranking(plan)
    for damaged in (b"", content[:-1], b"\xff" * 100):
        with pytest.raises(CheckpointError, match="ranking"):
            lop.apply_plan(load_model(checkpoint), plan, damaged)
    order = Ranking.from_bytes(content)
    other = Ranking(tuple(x[::-1] for x in order.ffn), order.fingerprint)
    with pytest.raises(FingerprintMismatchError):
        lop.apply_plan(load_model(checkpoint), plan, other)


def test_the_public_names_are_there() -> None:
    for name in lop.__all__:
        assert getattr(lop, name) is not None
    assert set(lop.__all__) <= set(dir(lop))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lop.nonsense


def test_a_budget_is_requested_and_kept(client: lop.Client) -> None:
    dense = client.plan(model="tiny", sparsity=0.0).achieved
    budget = Budget(disk_bytes=dense.disk_bytes - 20_000, batch=2, prompt_tokens=64, output_tokens=8)
    plan = client.plan(model="tiny", budget=budget, tp_size=2)
    assert plan.achieved.disk_bytes <= dense.disk_bytes - 20_000
    assert plan.target.budget == budget
    assert plan.target.tp_size == 2
    # As a mapping, and with a device.
    assert client.plan(model="tiny", budget=budget.model_dump(), tp_size=2) == plan
    timed = client.plan(model="tiny", budget={"latency_ms": 1e6}, device="raspberry-pi-5-8gb")
    assert timed.achieved.latency_source == "roofline"
    assert client.plan(model="tiny", device="l4").achieved.parameters == dense.parameters


def test_an_infeasible_budget_is_the_same_error_as_on_the_server(client: lop.Client) -> None:
    with pytest.raises(InfeasibleBudgetError) as caught:
        client.plan(model="tiny", budget={"memory_bytes": 1000, "flops": 10**15})
    error = caught.value
    assert error.binding == "memory_bytes"
    assert error.nearest_values.keys() == {"memory_bytes", "flops"}
    assert error.nearest == error.nearest_values["memory_bytes"]
    assert error.spaces["ffn"] == SpaceReach(False, error.nearest, error.binding, error.nearest_values)
    assert (error.spaces["all"].nearest or 0) < (error.nearest or 0)
    assert client.plan(model="tiny", budget={"memory_bytes": int(error.nearest or 0), "flops": 10**15})
    with pytest.raises(InputError, match="not for both"):
        client.plan(model="tiny", sparsity=0.5, budget=Budget(flops=10**9))
    with pytest.raises(InputError, match="latency_ms is a device's"):
        client.plan(model="tiny", budget=Budget(latency_ms=1.0))
