"""Methods that finished searches answer, over HTTP and in the rule that picks one."""

from dataclasses import replace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from pruning.allocators.methods import Method
from pruning.anatomy.architecture import DENSE, Sublayer
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import ffn_levels, ffn_space
from pruning.planning.plan import PruningPlan
from pruning.planning.space import Space
from service.finished_searches import FoundConfiguration, Validation
from service.methods.searched import best_configuration
from storage.contract import Repository
from storage.sql_samples import SampleStore
from tests.service.made_up import WIDTHS, add_calibration, add_search, register_model, sample, scan_samples, widths_of

# "tiny" has 320 channels of 48 parameters; a sixteenth of its FFN parameters are 20 channels.
HALF = (8, 40, 64, 48)

NOTHING = {"targets": [], "scan_evaluations": 0}
OTHER = {"data": "other.json", "id": "v"}


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
    calibration = "c" * 64
    search = add_search(repository, HALF, 0.02, queued=queued, calibration_id=calibration)
    plan = ask(client)
    assert plan.method == "evolution"
    assert widths_of(plan) == list(HALF)
    assert plan.predicted is not None
    assert (plan.predicted.quality, plan.predicted.interval) == (0.02, None)
    assert (plan.provenance.calibration, plan.provenance.seed, plan.provenance.samples) == (calibration, 7, 40)
    assert plan.provenance.note == (
        f"FFN widths are multiples of 8; evolution: search {search.id}, sparsity 0.5 (ffn), 40 evaluations; "
        "the predicted KL is the calibration KL of the best of 40, and so optimistic"
    )
    assert plan.ranking.sha256 == repository.get_model("tiny").ranking_sha256
    assert ask(client) == plan


def dense_sample(repository: Repository, calibration: str, accuracy: float) -> None:
    """What a scan stores of the dense model."""
    model = repository.get_model("tiny")
    metrics = Metrics(0.0, 1.0, accuracy, 1000, 100, agreement=1.0)
    repository.add_samples([replace(sample(model, calibration, WIDTHS, 0.0), metrics=metrics)])


def predicted(client: TestClient, **more: Any) -> dict[str, Any]:
    found = ask(client, **more).predicted
    assert found is not None
    return found.model_dump(mode="json", exclude={"interval", "metric", "quality"})


def test_what_was_measured_of_agreement_is_predicted(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02, calibration_id=add_calibration(repository), agreement=0.875)
    assert predicted(client) == {"of": "calibration", "accuracy": 0.8, "agreement": 0.875}


def test_exact_match_is_predicted_where_the_dense_model_has_any(client: TestClient, repository: Repository) -> None:
    """Of two sets of long and of short answers, the dense model's samples say which is which."""
    long, short = add_calibration(repository, "1" * 64), add_calibration(repository, "5" * 64)
    dense_sample(repository, long, 0.0)
    dense_sample(repository, short, 0.9)
    add_search(repository, HALF, 0.02, calibration_id=long, agreement=0.875)
    assert predicted(client) == {"of": "calibration", "agreement": 0.875}
    add_search(repository, HALF, 0.02, calibration_id=short, agreement=0.75, num_answers=101)
    assert predicted(client, round_to=4) == {"of": "calibration", "accuracy": 0.8, "agreement": 0.75}


@pytest.mark.parametrize(("exact", "expected"), [(None, {"accuracy": 0.7}), (0.5, {"accuracy": 0.7}), (0.0, {})])
def test_validation_says_of_its_own_data_whether_answers_are_exact(
    client: TestClient, repository: Repository, exact: float | None, expected: dict[str, float]
) -> None:
    """Documents from before the dense model was validated predict what they always did."""
    calibration = add_calibration(repository)
    dense_sample(repository, calibration, 0.0)  # says nothing of the validation set
    dense = None if exact is None else Metrics(0.0, 1.0, exact, 500, 50, agreement=1.0)
    add_search(
        repository, HALF, 0.02, calibration_id=calibration, validated_kl=0.05, validated_dense=dense, agreement=0.5
    )
    assert predicted(client) == expected | {"of": "unseen", "agreement": 0.5}


def test_a_validated_search_predicts_what_the_validation_set_says(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02, calibration_id="c" * 64)
    before = ask(client)
    search = add_search(repository, HALF, 0.02, calibration_id="c" * 64, validated_kl=0.05)
    plan = ask(client)
    assert plan.predicted is not None
    assert plan.predicted.quality == 0.05
    assert (widths_of(plan), plan.provenance.calibration) == (widths_of(before), "c" * 64)
    assert plan.provenance.note == (
        f"FFN widths are multiples of 8; evolution: search {search.id}, sparsity 0.5 (ffn), 40 evaluations; "
        "the predicted KL was measured on validation data, other.json (set vvvvvvvvvvvv), which the search never saw"
    )
    # Run again without the validation set: nothing is forgotten.
    assert add_search(repository, HALF, 0.02, calibration_id="c" * 64) == search
    assert ask(client) == plan


def test_a_search_of_an_earlier_version_says_nothing_of_its_calibration_set(
    client: TestClient, repository: Repository
) -> None:
    add_search(repository, HALF, 0.02, method=None, queued=True)
    plan = ask(client, method="mcts")
    assert (widths_of(plan), plan.provenance.calibration) == (list(HALF), None)


def test_samples_are_not_read_for_a_searched_method(
    client: TestClient, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_search(repository, HALF, 0.02, calibration_id="c" * 64)
    monkeypatch.delattr(SampleStore, "list_samples")
    assert widths_of(ask(client)) == list(HALF)


# The largest step of "tiny" is 16 channels with 8 levels, 8 with 16; 32 with 4, more than a sixteenth.
@pytest.mark.parametrize(("num_levels", "round_to", "reach"), [(8, 8, 16), (16, 4, 8), (4, 8, 20)])
def test_a_request_without_a_method_is_answered_within_one_level_step(
    client: TestClient, repository: Repository, num_levels: int, round_to: int, reach: int
) -> None:
    calibration = add_calibration(repository)
    repository.add_samples(scan_samples(repository.get_model("tiny"), calibration, (0.01, 0.25, 0.4, 3.0)))
    search = add_search(repository, HALF, 0.02, method="mcts", num_levels=num_levels, round_to=round_to)
    exact = ask(client, method=None)
    assert (exact.method, widths_of(exact)) == ("mcts", list(HALF))
    assert exact.provenance.note == (
        f"FFN widths are multiples of 8; lop: no predictor is trained for this model; mcts: search {search.id}, "
        "sparsity 0.5 (ffn), 40 evaluations; the predicted KL is the calibration KL of the best of 40, and so "
        "optimistic"
    )
    near, far = 1 - (160 + reach) / 320, 1 - (160 + reach + 1) / 320
    assert ask(client, near, method=None).method == "mcts"
    beyond = ask(client, far, method=None)
    assert beyond.method == "additive-dp"
    assert "mcts: no search is finished within one level step of this target" in str(beyond.provenance.note)
    # More is not removed by adding channels.
    assert ask(client, 0.501, method=None).method == "additive-dp"
    # Asked for by name, the search answers up to a sixteenth of the FFN parameters further up: 20 channels.
    assert ask(client, 1 - 180 / 320, method="mcts").method == "mcts"


def test_a_level_step_is_that_of_options_in_any_order(client: TestClient, repository: Repository) -> None:
    anatomy = repository.get_model("tiny").anatomy
    descending = [row[::-1] for row in ffn_levels(anatomy, num_levels=8).units]
    space = ffn_space(descending, anatomy.dense_units(Sublayer.FFN))
    add_search(repository, HALF, 0.02, method="mcts", space=space)
    assert ask(client, 1 - 176 / 320, method=None).method == "mcts"


def test_searches_of_other_methods_answer_no_request_without_one(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02, method="evolution")
    assert ask(client, method=None).method == "uniform"


def test_what_is_left_of_the_budget_is_filled_up(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02)
    plan = ask(client, 0.45)
    # 176 channels may stay, 16 more: two steps, each to the layer that is narrowest then.
    assert widths_of(plan) == [24, 40, 64, 48]
    assert plan.predicted is not None
    assert plan.predicted.quality == 0.02
    assert "; searched for another target and filled up to this one; the predicted KL is" in str(plan.provenance.note)
    assert plan.provenance.filled_up
    # Less than a step more than what was searched: nothing to add.
    near = ask(client, 0.49)
    assert "filled up" not in str(near.provenance.note)
    assert not near.provenance.filled_up


def test_what_a_search_left_of_its_own_budget_is_filled_up_too(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02, budget=168 * 48)
    plan = ask(client, 1 - 168 / 320)
    assert widths_of(plan) == [16, 40, 64, 48]
    assert "; channels were added to what was measured, up to the target; the predicted" in str(plan.provenance.note)
    assert "another target" not in str(plan.provenance.note)
    assert not plan.provenance.filled_up


def test_other_roundings_take_channels_and_predict_nothing(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02)
    plan = ask(client, round_to=24)
    assert all(w % 24 == 0 or w == dense for w, dense in zip(widths_of(plan), (64, 64, 128, 64), strict=True))
    assert plan.predicted is None
    assert "rounding to multiples of 24 took channels" in str(plan.provenance.note)
    assert "predicted KL" not in str(plan.provenance.note)


def test_a_search_without_a_method_is_a_tree_search(client: TestClient, repository: Repository) -> None:
    add_search(repository, HALF, 0.02, method=None)
    assert widths_of(ask(client, method="mcts")) == list(HALF)
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
    assert widths_of(ask(client)) == [32, 32, 32, 64]


def test_searches_of_other_models_do_not_count(client: TestClient, repository: Repository) -> None:
    register_model(repository, "twin")
    add_search(repository, HALF, 0.02, model_id="twin")
    assert "nothing" in refusal(client, 0.5)["values"]


@pytest.mark.parametrize(
    ("document", "result"),
    [
        ({}, {}),
        ({"search": {"method": "magic"}}, {"search": NOTHING}),
        ({"search": {"method": "evolution"}}, NOTHING),
        ({"search": {"method": "evolution"}}, {"search": {"targets": [{"widths": 3}], "scan_evaluations": 0}}),
        ({"search": {"method": "evolution", "num_levels": 200}}, {"search": NOTHING}),
        ({"search": {"method": "evolution"}}, {"search": NOTHING, "validation": {"metrics": []}}),
        ({"search": {"method": "evolution"}}, {"search": NOTHING, "validation": {**OTHER, "metrics": [{}]}}),
        ({"search": []}, {"search": "done"}),
    ],
)
def test_documents_of_another_form_are_left_out(
    client: TestClient, repository: Repository, caplog: pytest.LogCaptureFixture, document: Any, result: Any
) -> None:
    broken = repository.record_search("tiny", document, result)
    add_search(repository, HALF, 0.02)
    assert widths_of(ask(client)) == list(HALF)
    assert broken.id in caplog.text


@pytest.mark.parametrize(
    "space",
    [
        {"graph": []},
        {"decisions": [[{"layer": 0, "sublayer": "experts", "dense": 8, "units": [1, 8]}]]},
        {"decisions": [[{"layer": 0, "sublayer": "attention", "dense": 4, "units": [0, 4]}]]},
        {"decisions": [[{"layer": 9, "sublayer": "ffn", "dense": 64, "units": [8, 64]}]]},
    ],
)
def test_a_search_of_a_space_that_is_not_known_is_left_out(
    client: TestClient, repository: Repository, caplog: pytest.LogCaptureFixture, space: dict[str, Any]
) -> None:
    class Unknown:
        def document(self) -> dict[str, Any]:
            return space

    unknown = add_search(repository, HALF, 0.01, space=cast("Space", Unknown()))
    assert "nothing" in refusal(client, 0.5)["values"]
    assert f"search {unknown.id} of model tiny cannot be used: a s" in " ".join(caplog.messages)
    add_search(repository, HALF, 0.02)
    assert widths_of(ask(client)) == list(HALF)


@pytest.mark.parametrize("widths", [(8, 40, 64), (8, 40, 64, 72), (0, 40, 64, 56)])
def test_widths_that_the_model_does_not_have_are_left_out(
    client: TestClient, repository: Repository, widths: tuple[int, ...]
) -> None:
    add_search(repository, widths, 0.001)
    add_search(repository, HALF, 0.02)
    assert widths_of(ask(client)) == list(HALF)


def found(
    parameters: int,
    kl: float,
    num_answers: int = 100,
    *,
    calibration_id: str | None = None,
    level_step: int = 1600,
    validated: bool = False,
    **more: Any,
) -> FoundConfiguration:
    metrics = Metrics(kl, 1.0, 0.5, 1000, num_answers)
    validation = Validation("other.json", "v", metrics) if validated else None
    return FoundConfiguration(
        "s", Method.RANDOM, "x", DENSE, 1000, parameters, level_step, metrics, 10, 0, calibration_id, validation, **more
    )


def test_the_rule_that_picks_a_configuration() -> None:
    def best(*entries: FoundConfiguration) -> FoundConfiguration | None:
        return best_configuration(list(entries), lambda x: 1000 - x.parameters, 1600)  # a sixteenth: 100

    assert best() is None
    assert best(found(1001, 0.1), found(899, 0.1)) is None
    assert best(found(1000, 0.2), found(900, 0.1), found(899, 0.0), found(1001, 0.0)) == found(900, 0.1)
    # Equal KL: the one that keeps more, then the later.
    assert best(found(950, 0.1), found(990, 0.1), found(980, 0.1)) == found(990, 0.1)
    first, second = found(950, 0.1), found(950, 0.1)
    assert best(first, second) is second
    # Measured on fewer answers: not comparable, even if it looks better.
    assert best(found(1000, 0.3, 500), found(1000, 0.1, 100)) == found(1000, 0.3, 500)


def test_kls_of_two_calibration_sets_are_not_compared() -> None:
    def best(*entries: FoundConfiguration) -> FoundConfiguration | None:
        return best_configuration(list(entries), lambda x: 1000 - x.parameters, 1600)

    first, second = found(1000, 0.1, calibration_id="a"), found(1000, 0.3, calibration_id="b")
    # Equally many answers: the set that came last, whatever its numbers look like.
    assert best(first, second) is second
    assert best(second, first) is first
    assert best(first, second, better := found(1000, 0.2, calibration_id="b")) is better
    # A set that is not known is not that of as many answers either.
    assert best(first, unknown := found(1000, 0.4)) is unknown
    assert best(unknown, found(1000, 0.5), found(1000, 0.0, 99, calibration_id="c")) is unknown
    # More answers are less noise.
    assert best(wide := found(1000, 0.9, 101, calibration_id="c"), first, second) is wide


def test_of_equal_configurations_the_validated_one_answers() -> None:
    validated = found(1000, 0.1, calibration_id="a", validated=True)
    entries = [validated, found(1000, 0.1, calibration_id="a")]
    assert best_configuration(entries, lambda x: 1000 - x.parameters, 1600) is validated


def test_within_one_step_of_the_levels() -> None:
    fine, coarse = found(960, 0.1, level_step=40), found(900, 0.05, level_step=200)

    def best(*entries: FoundConfiguration) -> FoundConfiguration | None:
        return best_configuration(list(entries), lambda x: 1000 - x.parameters, 1600, within_one_step=True)

    assert best(fine) is fine
    assert best(found(959, 0.1, level_step=40)) is None
    assert best(fine, coarse) is coarse
    # A coarse grid reaches no further than a request by name does.
    assert best(found(899, 0.05, level_step=200)) is None


def test_bits_alone_answer_unless_the_best_is_sure_to_be_better() -> None:
    """Of one calibration set; by a standard error over the folds, .1 less in each of two is sure."""

    def folds(*kl: float) -> tuple[FoldMetrics, ...]:
        return tuple(FoldMetrics(x, 0.0, 0.0, 10, 1) for x in kl)

    def joint(kl: float, *of_folds: float, calibration_id: str = "a") -> FoundConfiguration:
        space = SpaceName.ALL_BITS
        return found(1000, kl, calibration_id=calibration_id, space=space, held_out=folds(*of_folds))

    def best(*entries: FoundConfiguration) -> FoundConfiguration | None:
        return best_configuration(list(entries), lambda x: 1000 - x.parameters, 1600)

    alone = replace(joint(1.0, 1.0, 1.1), space=SpaceName.BITS, changes_bits_alone=True)
    assert best(alone, sure := joint(0.9, 0.9, 1.0)) is sure
    assert best(alone, joint(0.5, 0.5, 1.5)) is alone
    assert best(alone, joint(0.5)) is alone
    assert best(alone, joint(1.1, 0.9, 1.0), better := replace(alone, metrics=sure.metrics)) is better
    assert best(alone, other := joint(2.0, 9.0, 9.0, calibration_id="b")) is other


def test_what_bits_leave_of_their_own_target_is_not_lacking() -> None:
    """Of a target of 1,000 it keeps 900, to which nothing could be added: it answers up to 1,100."""
    alone = found(900, 0.1, level_step=40, space=SpaceName.BITS)

    def best(asked: int) -> FoundConfiguration | None:
        return best_configuration([alone], lambda x: asked - x.parameters, 1600, within_one_step=True)

    assert best(1000) is best(1040) is alone
    assert best(1041) is None
    assert best_configuration([alone], lambda x: 1100 - x.parameters, 1600) is alone
    assert best_configuration([alone], lambda x: 1101 - x.parameters, 1600) is None
    assert best_configuration([replace(alone, space=SpaceName.ALL)], lambda _: 100, 1600, within_one_step=True) is None
