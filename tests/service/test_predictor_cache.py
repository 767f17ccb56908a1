"""The cache, and how plans follow the newest predictor, with predictors that are made up but for their interface."""

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.errors import InfeasibleTargetError
from pruning.planning.limits import Limits
from service import predictor_cache
from service.app import create_app
from service.methods.predicted import OF_CALIBRATION, OF_UNSEEN
from service.predictor_cache import PredictorCache, usable_cores
from service.settings import Settings
from storage.contract import Repository
from storage.records import PredictorRecord
from tests.service.made_up import NOW, add_calibration, register_model, scan_samples


@dataclass
class MadeUpPrediction:
    architecture: Architecture
    kl: float = 0.25
    interval: tuple[float, float] = (0.125, 0.5)
    accuracy: float = 0.75
    accuracy_interval: tuple[float, float] | None = (0.5, 1.0)
    agreement: float | None = 0.875
    agreement_interval: tuple[float, float] | None = (0.75, 1.0)
    is_unseen: bool = True
    dense_accuracy: float | None = 0.984
    below_space: bool = False
    extrapolated: bool = False


@dataclass
class MadeUpInfo:
    num_samples: int = 100
    calibration_id: str = "c" * 64
    seed: int = 7
    ranking_sha256: str = "0" * 64  # of no model: it judges no other method's plans


class MadeUpPredictor:
    """Keeps layer 0 dense if it can."""

    info = MadeUpInfo()
    lacks_policy = False

    def plan(self, anatomy: ModelAnatomy, limits: Limits) -> MadeUpPrediction:
        if limits.limits[0].most < 4 * 16 * 48:
            raise InfeasibleTargetError("below the lowest level", remedy="Ask for at most 0.8", nearest=0.8)
        widths = limits.space.units_of(uniform_choice(limits))
        move = min(64 - widths[0], widths[2] - int(limits.space.units[2][0]))
        return MadeUpPrediction(anatomy.architecture([widths[0] + move, widths[1], widths[2] - move, widths[3]]))


class GreedyPredictor(MadeUpPredictor):
    """Ignores its budget."""

    def plan(self, anatomy: ModelAnatomy, limits: Limits) -> MadeUpPrediction:  # noqa: ARG002
        return MadeUpPrediction(Architecture())


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the predictors that were loaded, in order."""
    ids: list[str] = []

    def load(_: PredictorCache, record: PredictorRecord) -> Any:
        ids.append(record.id)
        time.sleep(0.01)
        return GreedyPredictor() if record.config.get("greedy") else MadeUpPredictor()

    monkeypatch.setattr(PredictorCache, "_load", load)
    return ids


def add_predictor(
    repository: Repository, name: str, *, model: str = "tiny", day: int = 0, greedy: bool = False
) -> PredictorRecord:
    weights = repository.put_artifact(b"weights", "application/octet-stream")
    config = {"greedy": greedy}
    return repository.add_predictor(PredictorRecord(name, model, weights, config, NOW + timedelta(days=day)))


@pytest.fixture
def predicting(settings: Settings, repository: Repository, loaded: list[str]) -> Iterator[TestClient]:
    """A client of a service whose model "tiny" has the predictor "first"."""
    add_predictor(repository, "first")
    with TestClient(create_app(settings)) as client:
        yield client


REQUEST = {"model": "tiny", "sparsity": 0.5}


def test_a_predictor_makes_the_plan(predicting: TestClient) -> None:
    plan = predicting.post("/v1/plans", json=REQUEST).json()
    assert plan["method"] == "lop"
    assert [layer["ffn_width"] for layer in plan["layers"]] == [64, 32, 32, 32]
    assert plan["predicted"] == {
        "quality": 0.25,
        "interval": [0.125, 0.5],
        "metric": "kl",
        "accuracy": 0.75,
        "accuracy_interval": [0.5, 1.0],
        "agreement": 0.875,
        "agreement_interval": [0.75, 1.0],
    }
    assert plan["provenance"] == {
        "predictor": "first",
        "samples": 100,
        "calibration": "c" * 64,
        "seed": 7,
        "note": f"FFN widths are multiples of 8; {OF_UNSEEN}; exact match where the dense model has 98.4%",
    }


def test_plans_say_of_which_conversations_their_expectations_are(
    predicting: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Accept": "application/vnd.lop.plan.v2+json"}
    plan = predicting.post("/v1/plans", json=REQUEST, headers=headers).json()
    assert plan["predicted"]["of"] == "unseen"
    assert plan["provenance"]["note"].endswith(f"; {OF_UNSEEN}; exact match where the dense model has 98.4%")
    made = MadeUpPredictor.plan  # and now as a predictor from before cross-validation
    monkeypatch.setattr(MadeUpPredictor, "plan", lambda *args: dataclasses.replace(made(*args), is_unseen=False))
    old = predicting.post("/v1/plans", json=REQUEST | {"sparsity": 0.4}, headers=headers).json()
    assert old["predicted"]["of"] == "calibration"
    assert OF_CALIBRATION in old["provenance"]["note"]


def test_asking_for_lop_by_name_is_the_same_request(predicting: TestClient) -> None:
    first = predicting.post("/v1/plans", json=REQUEST)
    named = predicting.post("/v1/plans", json=REQUEST | {"method": "lop"})
    assert (named.status_code, named.content) == (201, first.content)


def test_a_new_predictor_serves_new_plans_and_old_ones_stay(predicting: TestClient, repository: Repository) -> None:
    old = predicting.post("/v1/plans", json=REQUEST)
    add_predictor(repository, "second", day=1)
    new = predicting.post("/v1/plans", json=REQUEST)
    assert new.status_code == 201
    assert new.json()["provenance"]["predictor"] == "second"
    assert new.json()["plan_id"] != old.json()["plan_id"]
    assert predicting.get(old.headers["location"]).content == old.content


def test_a_simpler_method_can_be_asked_for(predicting: TestClient, repository: Repository) -> None:
    assert predicting.post("/v1/plans", json=REQUEST | {"method": "uniform"}).json()["method"] == "uniform"
    model = repository.get_model("tiny")
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.01, 0.25, 0.4, 3.0)))
    assert predicting.post("/v1/plans", json=REQUEST | {"method": "additive-dp"}).json()["method"] == "additive-dp"
    assert predicting.post("/v1/plans", json=REQUEST).json()["method"] == "lop"


def test_beyond_the_predictors_levels_a_simpler_method_answers(predicting: TestClient) -> None:
    plan = predicting.post("/v1/plans", json=REQUEST | {"sparsity": 0.85}).json()
    assert plan["method"] == "uniform"
    assert "lop: this target is outside the widths it was made with" in plan["provenance"]["note"]
    problem = predicting.post("/v1/plans", json=REQUEST | {"sparsity": 0.85, "method": "lop"})
    # The lowest level keeps 64 of 320 channels.
    assert (problem.status_code, problem.json()["nearest"]) == (422, 0.8)


def test_a_predictor_that_breaks_its_budget_never_becomes_a_plan(
    settings: Settings, repository: Repository, loaded: list[str]
) -> None:
    add_predictor(repository, "greedy", greedy=True)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        answer = client.post("/v1/plans", json=REQUEST)
        assert answer.status_code == 500
        assert answer.json()["type"] == "about:blank"
        assert client.post("/v1/plans", json=REQUEST | {"method": "uniform"}).status_code == 201


def test_racing_requests_load_once(predicting: TestClient, loaded: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: predicting.post("/v1/plans", json=REQUEST | {"sparsity": n / 20}), range(16)))
    assert loaded == ["first"]


def test_the_newest_predictors_are_loaded_ahead(settings: Settings, repository: Repository, loaded: list[str]) -> None:
    register_model(repository, "other")
    add_predictor(repository, "old", day=0)
    add_predictor(repository, "new", day=1)
    add_predictor(repository, "of other", model="other", day=2)
    with TestClient(create_app(settings)):
        pass
    assert loaded == ["new", "of other"]


def test_the_least_recently_used_predictor_leaves(repository: Repository, loaded: list[str]) -> None:
    a, b, c = (add_predictor(repository, name) for name in "abc")
    cache = PredictorCache(repository, capacity=2)
    for record in (a, b, a, c, a, b):
        cache.get(record)
    assert loaded == ["a", "b", "c", "b"]
    assert len(cache) == 2


def test_who_asks_for_a_loaded_predictor_does_not_wait_while_another_is_loaded(
    repository: Repository, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm, cold = add_predictor(repository, "warm"), add_predictor(repository, "cold")
    cache = PredictorCache(repository, capacity=2)
    found = cache.get(warm)
    begun, release, load = threading.Event(), threading.Event(), PredictorCache._load

    def slow(self: PredictorCache, record: PredictorRecord) -> Any:
        begun.set()
        assert release.wait(30)
        return load(self, record)

    monkeypatch.setattr(PredictorCache, "_load", slow)
    with ThreadPoolExecutor(2) as pool:
        racing = [pool.submit(cache.get, cold) for _ in range(2)]
        assert begun.wait(30)
        # In this thread, before the load may end: a wait would never end.
        assert cache.get(warm) is found
        assert not any(x.done() for x in racing)
        release.set()
        first, second = (x.result() for x in racing)
    assert first is second
    assert loaded == ["warm", "cold"]


def test_as_many_predictions_run_at_once_as_there_are_cores(
    repository: Repository, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_cache, "usable_cores", lambda: 3)
    record = add_predictor(repository, "first")
    cache = PredictorCache(repository, capacity=1)
    together, running, most = threading.Barrier(3), threading.Semaphore(3), []

    def judge(self: MadeUpPredictor, architecture: Architecture) -> MadeUpPrediction:
        most.append(running.acquire(blocking=False))
        together.wait(30)  # until three are in here
        running.release()
        return MadeUpPrediction(architecture)

    monkeypatch.setattr(MadeUpPredictor, "judge", judge, raising=False)
    with ThreadPoolExecutor(6) as pool:
        assert len(list(pool.map(lambda _: cache.judge(record, Architecture()), range(6)))) == 6
    assert most == [True] * 6
    assert loaded == ["first"]


def test_cores_are_those_that_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 1


def test_the_event_loop_stays_free_while_a_prediction_runs(
    predicting: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    plan = MadeUpPredictor.plan

    def slow(self: MadeUpPredictor, anatomy: ModelAnatomy, limits: Limits) -> MadeUpPrediction:
        entered.set()
        release.wait()
        return plan(self, anatomy, limits)

    monkeypatch.setattr(MadeUpPredictor, "plan", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(predicting.post, "/v1/plans", json=REQUEST)
        entered.wait()
        assert predicting.get("/healthz").status_code == 200
        assert predicting.get("/v1/models").status_code == 200
        release.set()
        assert answer.result().status_code == 201
