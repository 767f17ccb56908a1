"""Plans by the real predictor. Its weights are random: its plans are poor, and must keep every promise all the same."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from fastapi.testclient import TestClient

from policy_model.calibration import Calibration
from policy_model.encoding import encode
from policy_model.model import ModelConfig, PlanModel
from policy_model.predictor import Prediction, Predictor, PredictorInfo
from pruning.anatomy import ModelAnatomy
from pruning.levels import LevelGrid
from pruning.plan import PruningPlan
from service.app import create_app
from service.settings import Settings
from storage.contract import Repository
from storage.records import ModelRecord, PredictorRecord
from tests.service.made_up import NOW, WIDTHS, add_calibration, scan_samples


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_predictor(model: ModelRecord, calibration: str, seed: int) -> Predictor:
    grid = LevelGrid.build(model.anatomy, num_levels=4)
    encoding = encode(model.anatomy, grid, scan_samples(model, calibration, (0.01, 0.25, 0.4, 3.0)))
    config = ModelConfig(
        num_layers=grid.num_layers, num_levels=grid.num_levels, num_features=encoding.features.shape[1]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PlanModel(config, encoding)
    info = PredictorInfo(model.anatomy.fingerprint, 50, "5" * 64, calibration, model.ranking_sha256, seed)
    return Predictor(network, encoding, Calibration(-0.5, 0.5, 0.25, 20), info)


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
        assert plan.achieved.sparsity[plan.target.scope] >= sparsity - 1e-9
        assert all(w % round_to == 0 or w == d for w, d in zip(plan.ffn_widths, WIDTHS, strict=True))
        budget = anatomy.ffn_parameters - round(sparsity * anatomy.ffn_parameters)
        expected = predictor.plan_widths(anatomy, budget, round_to=round_to)
        assert plan.ffn_widths == list(expected.widths)
        assert plan.predicted is not None
        assert (plan.predicted.quality, plan.predicted.interval) == (expected.kl, expected.interval)
        assert (plan.provenance.samples, plan.provenance.seed) == (50, 0)


def test_racing_requests_for_many_targets(predictor: Predictor, client: TestClient) -> None:
    sparsities = [n / 40 for n in range(32)] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda s: client.post("/v1/plans", json={"model": "tiny", "sparsity": s}), sparsities))
    assert [a.content for a in answers[:32]] == [a.content for a in answers[32:]]
    assert {a.status_code for a in answers} == {201}


def test_every_thread_of_the_server_keeps_to_the_torch_limit(
    predictor: Predictor, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    plan_widths = Predictor.plan_widths

    def watched(self: Predictor, anatomy: ModelAnatomy, budget: int, *, round_to: int) -> Prediction:
        seen.add(torch.get_num_threads())
        return plan_widths(self, anatomy, budget, round_to=round_to)

    monkeypatch.setattr(Predictor, "plan_widths", watched)
    torch.set_num_threads(3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.post("/v1/plans", json={"model": "tiny", "sparsity": n / 40}), range(16)))
    assert seen == {1}


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
        problem = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "lop"})
        assert problem.status_code == 503
        assert problem.json()["type"] == "urn:lop:unusable-predictor"
        assert "lop train" in problem.json()["remedy"]
    assert "predictor broken of model tiny cannot be used" in caplog.text
