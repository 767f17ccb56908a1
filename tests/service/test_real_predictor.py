"""Plans by the real predictor. Its policy is random: its plans are poor, and must keep every promise all the same."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from policy_model.policy import Policy
from policy_model.policy_config import PolicyConfig
from policy_model.predictor import Predictor, PredictorInfo
from policy_model.training import calibrate, residual_scale
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import PruningPlan
from pruning.planning.scope import Scope
from pruning.planning.target import limits_for_sparsity
from service.app import create_app
from service.methods.predicted import BELOW_SPACE
from service.settings import Settings
from storage.contract import Repository
from storage.records import ModelRecord, PredictorRecord
from tests.service.made_up import (
    NOW,
    WIDTHS,
    add_calibration,
    add_search,
    add_statistics,
    made_up_anatomy,
    sample,
    scan_samples,
    widths_of,
)
from values.dataset import training_data
from values.encoding import encode
from values.value_training import fit_values


def random_predictor(model: ModelRecord, calibration: str, seed: int) -> Predictor:
    """A policy of random weights over values of a scan and a few random samples."""
    space = ffn_levels(model.anatomy, num_levels=4)
    rng = np.random.default_rng(seed)
    rows = {tuple(int(rng.choice(row)) for row in space.units) for _ in range(12)} - {WIDTHS}
    samples = scan_samples(model, calibration, (0.01, 0.25, 0.4, 3.0))
    samples += [sample(model, calibration, row, 0.1 + 0.01 * i) for i, row in enumerate(sorted(rows))]
    encoding = encode(model.anatomy, space, samples)
    data = training_data(encoding, samples)
    data = replace(data, searched=np.ones_like(data.searched))
    fit = fit_values(encoding, data)
    config = PolicyConfig(width=16, num_blocks=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = {name: p.numpy() for name, p in Policy(config).state_dict().items()}
    info = PredictorInfo(model.anatomy.fingerprint, 50, "5" * 64, calibration, model.ranking_sha256, seed)
    return Predictor(policy, config, fit.values, encoding, calibrate(data, fit), residual_scale(data, fit), info)


def store(repository: Repository, predictor: Predictor, name: str, *, day: int = 0) -> None:
    weights, config = predictor.to_bytes()
    sha256 = repository.put_artifact(weights, "application/octet-stream")
    repository.add_predictor(PredictorRecord(name, "tiny", sha256, config, NOW + timedelta(days=day)))


@pytest.fixture
def predictor(repository: Repository) -> Predictor:
    """The predictor "first" of "tiny", stored."""
    made = random_predictor(repository.get_model("tiny"), add_calibration(repository), seed=0)
    store(repository, made, "first")
    return made


def test_the_stored_predictor_plans_as_the_one_in_memory(
    predictor: Predictor, client: TestClient, repository: Repository
) -> None:
    anatomy = repository.get_model("tiny").anatomy
    for sparsity, round_to in [(0.0, 8), (0.3, 8), (0.5, 1), (0.62, 16), (0.88, 8)]:
        answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": sparsity, "round_to": round_to})
        assert answer.status_code == 201
        plan = PruningPlan.from_json(answer.content)
        assert plan.method == "lop"
        assert plan.achieved.removed[plan.target.scope] >= sparsity - 1e-9
        assert all(w % round_to == 0 or w == d for w, d in zip(widths_of(plan), WIDTHS, strict=True))
        space = ffn_widths(anatomy, round_to=round_to)
        expected = predictor.plan(anatomy, limits_for_sparsity(anatomy, space, sparsity, Scope.FFN))
        assert plan.architecture(anatomy) == expected.architecture
        assert plan.predicted is not None
        assert (plan.predicted.quality, plan.predicted.interval) == (expected.kl, expected.interval)
        assert plan.predicted.accuracy == expected.accuracy
        assert plan.predicted.accuracy_interval == expected.accuracy_interval
        assert (plan.provenance.samples, plan.provenance.seed) == (50, 0)


def test_other_methods_say_what_the_predictor_expects_of_their_plans(
    predictor: Predictor, client: TestClient, repository: Repository
) -> None:
    repository.add_samples(
        scan_samples(repository.get_model("tiny"), add_calibration(repository), (0.1, 0.2, 0.4, 3.0))
    )
    for method in ("uniform", "additive-dp"):
        answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.4, "method": method})
        assert answer.status_code == 201, answer.text
        plan = PruningPlan.from_json(answer.content)
        expected = predictor.judge(plan.architecture(made_up_anatomy()))
        assert plan.method == method
        assert plan.predicted is not None
        assert (plan.predicted.quality, plan.predicted.interval) == (expected.kl, None)
        assert (plan.predicted.accuracy, plan.predicted.accuracy_interval) == (expected.accuracy, None)
        assert plan.predicted.agreement_interval is None
        assert "quality as predictor first expects it of any configuration" in str(plan.provenance.note)
        assert plan.provenance.predictor is None


def test_nothing_is_predicted_of_channels_in_another_order_or_compensated(
    predictor: Predictor, client: TestClient, repository: Repository
) -> None:
    add_statistics(repository, repository.get_model("tiny"), StatisticsKind.ACTIVATIONS)
    for method in ("flap", "wanda-sp"):
        plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.4, "method": method}).json()
        assert plan["method"] == method
        assert plan["ranking"]["sha256"] != repository.get_model("tiny").ranking_sha256
        assert plan["predicted"] is None
        assert "no quality is predicted: the predictor knows the model's own ranking" in plan["provenance"]["note"]


def test_what_was_measured_is_not_predicted_over(
    predictor: Predictor, client: TestClient, repository: Repository
) -> None:
    add_search(repository, (32, 32, 64, 32), 0.02)
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "evolution"}).json()
    assert plan["predicted"] == {"quality": 0.02, "interval": None, "metric": "kl", "accuracy": 0.8}


def test_a_new_predictor_makes_new_predictions_for_every_method(
    predictor: Predictor, client: TestClient, repository: Repository
) -> None:
    asked = {"model": "tiny", "sparsity": 0.4, "method": "uniform"}
    first = client.post("/v1/plans", json=asked)
    assert client.post("/v1/plans", json=asked).content == first.content
    store(repository, random_predictor(repository.get_model("tiny"), "c" * 64, seed=5), "second", day=1)
    second = client.post("/v1/plans", json=asked).json()
    assert second["layers"] == first.json()["layers"]
    assert second["predicted"] != first.json()["predicted"]


def test_below_the_grid_the_note_says_that_widths_are_uniform(predictor: Predictor, client: TestClient) -> None:
    deep = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.85, "method": "lop"}).json()
    assert deep["method"] == "lop"
    assert BELOW_SPACE in deep["provenance"]["note"]
    retention = {x["ffn_width"] / dense for x, dense in zip(deep["layers"], WIDTHS, strict=True)}
    assert max(retention) - min(retention) <= 8 / 64
    usual = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "lop"}).json()
    assert BELOW_SPACE not in usual["provenance"]["note"]


def test_budgets_of_every_kind(predictor: Predictor, client: TestClient) -> None:
    dense = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.0, "device": "l4"}).json()["achieved"]
    narrow = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.9, "device": "l4"}).json()["achieved"]
    names = ("memory_bytes", "latency_ms", "flops", "disk_bytes")
    for name, share in itertools.product(names, (0.05, 0.4, 0.8)):
        most = narrow[name] + share * (dense[name] - narrow[name])
        budget = {name: most if name == "latency_ms" else int(most)}
        for asked in (budget, {**budget, "flops": int(0.7 * dense["flops"] + 0.3 * narrow["flops"])} | budget):
            answer = client.post("/v1/plans", json={"model": "tiny", "budget": asked, "device": "l4", "tp_size": 2})
            assert answer.status_code == 201, answer.text
            plan = PruningPlan.from_json(answer.content)
            assert plan.method == "lop"
            assert exceeded_limits(plan.target, plan.achieved) == []


def test_racing_requests_for_many_targets(predictor: Predictor, client: TestClient) -> None:
    sparsities = [n / 40 for n in range(32)] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda s: client.post("/v1/plans", json={"model": "tiny", "sparsity": s}), sparsities))
    assert [a.content for a in answers[:32]] == [a.content for a in answers[32:]]
    assert {a.status_code for a in answers} == {201}


def test_a_server_with_a_predictor_needs_no_torch(predictor: Predictor, settings: Settings) -> None:
    assert predictor.info.num_samples > 0
    code = (
        "import sys; from fastapi.testclient import TestClient; from service.app import create_app; "
        "from service.settings import load_settings\n"
        f"with TestClient(create_app(load_settings(database_url={settings.database_url!r}))) as client:\n"
        "    plan = client.post('/v1/plans', json={'model': 'tiny', 'sparsity': 0.4}).json()\n"
        "assert plan['method'] == 'lop', plan\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_predictor_of_another_space_than_it_is_stored_with_gives_way(
    predictor: Predictor, repository: Repository, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    weights, config = predictor.to_bytes()
    sha256 = repository.put_artifact(weights, "application/octet-stream")
    space = predictor.encoding.space.document()
    for day, (name, said, method) in enumerate([("own", space, "lop"), ("other", {"graph": []}, "uniform")], start=1):
        repository.add_predictor(PredictorRecord(name, "tiny", sha256, config, NOW + timedelta(days=day), said))
        with TestClient(create_app(settings)) as client:
            plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).json()
        assert plan["method"] == method
    assert "lop: this version cannot read predictor other" in plan["provenance"]["note"]
    assert "a predictor is stored with the space that it chooses from" in caplog.text


def test_a_predictor_that_cannot_be_read_gives_way_and_says_so(
    predictor: Predictor, repository: Repository, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    weights, config = predictor.to_bytes()
    truncated = repository.put_artifact(weights[: len(weights) // 2], "application/octet-stream")
    repository.add_predictor(PredictorRecord("broken", "tiny", truncated, config, NOW + timedelta(days=1)))
    with TestClient(create_app(settings)) as client:
        plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).json()
        assert plan["method"] == "uniform"
        assert "lop: this version cannot read predictor broken" in plan["provenance"]["note"]
        asked = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "uniform"}).json()
        assert asked["predicted"] is None
        assert "no quality is predicted: this version cannot read predictor broken" in asked["provenance"]["note"]
        problem = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "lop"})
        assert problem.status_code == 503
        assert problem.json()["type"] == "urn:lop:unusable-predictor"
        assert "lop train" in problem.json()["remedy"]
    assert "predictor broken of model tiny cannot be used" in caplog.text
