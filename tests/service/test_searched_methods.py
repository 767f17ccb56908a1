"""Methods that finished searches answer, over HTTP and in the rule that picks one."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.metrics import Metrics
from pruning.plan import PruningPlan
from service.finished_searches import FoundConfiguration
from service.methods.names import Method
from service.methods.searched import best_configuration
from storage.contract import Repository
from storage.records import Sample
from tests.service.made_up import add_calibration, add_search, register_model

# "tiny" has 320 channels of 48 parameters; a sixteenth of its FFN parameters are 20 channels.
HALF = (8, 40, 64, 48)


def ask(client: TestClient, sparsity: float = 0.5, **more: Any) -> PruningPlan:
    request = {"model": "tiny", "sparsity": sparsity, "method": "evolution", **more}
    answer = client.post("/v1/plans", json=request)
    assert answer.status_code == 201, answer.text
    return PruningPlan.from_json(answer.content)


def refusal(client: TestClient, sparsity: float, **more: Any) -> dict[str, Any]:
    request = {"model": "tiny", "sparsity": sparsity, "method": "evolution", **more}
    answer = client.post("/v1/plans", json=request)
    assert answer.status_code == 422, answer.text
    problem: dict[str, Any] = answer.json()
    return problem


@pytest.mark.parametrize("queued", [False, True])
def test_the_searched_widths_with_what_was_measured(client: TestClient, repository: Repository, queued: bool) -> None:
    calibration = add_calibration(repository)
    search = add_search(repository, HALF, 0.02, queued=queued)
    model = repository.get_model("tiny")
    metrics = Metrics(0.02, 1.02, 0.8, 1000, 100)
    repository.add_samples([Sample("tiny", model.ranking_sha256, calibration, HALF, metrics, 0.1, "evolution")])
    plan = ask(client)
    assert plan.method == "evolution"
    assert plan.ffn_widths == list(HALF)
    assert plan.predicted is not None
    assert (plan.predicted.quality, plan.predicted.interval) == (0.02, None)
    assert (plan.provenance.calibration, plan.provenance.seed, plan.provenance.samples) == (calibration, 7, 40)
    assert plan.provenance.note == (
        f"FFN widths are multiples of 8; evolution: search {search.id}, sparsity 0.5 (ffn), 40 evaluations"
    )
    assert plan.ranking.sha256 == model.ranking_sha256
    assert ask(client) == plan


def test_what_is_left_of_the_budget_is_filled_up(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02)
    plan = ask(client, 0.45)
    # 176 channels may stay, 16 more: two steps, each to the layer that is narrowest then.
    assert plan.ffn_widths == [24, 40, 64, 48]
    assert plan.predicted is not None
    assert plan.predicted.quality == 0.02
    assert str(plan.provenance.note).endswith("; channels were added to what was measured, up to the target")


def test_other_roundings_take_channels_and_predict_nothing(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02)
    plan = ask(client, round_to=24)
    assert all(w % 24 == 0 or w == dense for w, dense in zip(plan.ffn_widths, (64, 64, 128, 64), strict=True))
    assert plan.predicted is None
    assert "rounding to multiples of 24 took channels" in str(plan.provenance.note)


def test_a_search_without_a_method_is_a_tree_search(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02, method=None)
    assert ask(client, method="mcts").ffn_widths == list(HALF)
    assert "searched by it for nothing" in refusal(client, 0.5)["values"]


def test_too_far_from_a_search_names_what_was_searched_and_the_command(
    client: TestClient, repository: Repository
) -> None:
    add_search(repository, HALF, 0.02)
    ask(client, 0.4375)
    problem = refusal(client, 0.4374)
    assert problem["type"] == "urn:lop:invalid-input"
    assert problem["values"] == "model 'tiny' was searched by it for sparsity 0.5 (ffn)"
    assert "`lop search --model tiny --data FILE --method evolution -s 0.4374`" in problem["remedy"]
    # The widths do not fit a smaller budget.
    assert "-s 0.51`" in refusal(client, 0.51)["remedy"]
    assert "-s 0.1 --scope model`" in refusal(client, 0.1, scope="model")["remedy"]


def test_a_new_search_makes_a_new_plan(client: TestClient, repository: Repository) -> None:
    assert "nothing" in refusal(client, 0.5)["values"]
    add_search(repository, HALF, 0.02)
    before = ask(client)
    add_search(repository, (16, 32, 64, 48), 0.03)
    assert ask(client) == before
    add_search(repository, (32, 32, 32, 64), 0.01)
    assert ask(client).ffn_widths == [32, 32, 32, 64]


def test_searches_of_other_models_and_unfinished_ones_do_not_count(client: TestClient, repository: Repository) -> None:
    register_model(repository, "twin")
    add_search(repository, HALF, 0.02, model_id="twin")
    repository.add_search("tiny", {"search": {"method": "evolution"}})
    assert "nothing" in refusal(client, 0.5)["values"]


@pytest.mark.parametrize(
    ("document", "result"),
    [
        ({}, {}),
        ({"search": {"method": "magic"}}, {"targets": [], "scan_evaluations": 0}),
        ({"search": {"method": "evolution"}}, {"targets": [{"widths": 3}], "scan_evaluations": 0}),
        ({"search": []}, {"search": "done"}),
    ],
)
def test_documents_of_another_form_are_left_out(
    client: TestClient, repository: Repository, caplog: pytest.LogCaptureFixture, document: Any, result: Any
) -> None:
    broken = repository.record_search("tiny", document, result)
    add_search(repository, HALF, 0.02)
    assert ask(client).ffn_widths == list(HALF)
    assert broken.id in caplog.text


@pytest.mark.parametrize("widths", [(8, 40, 64), (8, 40, 64, 72), (0, 40, 64, 56)])
def test_widths_that_the_model_does_not_have_are_left_out(
    client: TestClient, repository: Repository, widths: tuple[int, ...]
) -> None:
    add_search(repository, widths, 0.001)
    add_search(repository, HALF, 0.02)
    assert ask(client).ffn_widths == list(HALF)


def found(parameters: int, kl: float, num_answers: int = 100) -> FoundConfiguration:
    metrics = Metrics(kl, 1.0, 0.5, 1000, num_answers)
    return FoundConfiguration("s", Method.RANDOM, "x", (1,), parameters, metrics, 10, 0, None)


def test_the_rule_that_picks_a_configuration() -> None:
    def best(*entries: FoundConfiguration) -> FoundConfiguration | None:
        return best_configuration(list(entries), 1000, 1600)  # a sixteenth: 100

    assert best() is None
    assert best(found(1001, 0.1), found(899, 0.1)) is None
    assert best(found(1000, 0.2), found(900, 0.1), found(899, 0.0), found(1001, 0.0)) == found(900, 0.1)
    # Equal KL: the one that keeps more, then the later.
    assert best(found(950, 0.1), found(990, 0.1), found(980, 0.1)) == found(990, 0.1)
    first, second = found(950, 0.1), found(950, 0.1)
    assert best(first, second) is second
    # Measured on fewer answers: not comparable, even if it looks better.
    assert best(found(1000, 0.3, 500), found(1000, 0.1, 100)) == found(1000, 0.3, 500)
