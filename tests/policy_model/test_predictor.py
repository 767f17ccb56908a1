"""What the service relies on: budgets are kept, answers are equal, files are checked."""

import dataclasses
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_model.policy import Policy
from policy_model.policy_config import PolicyConfig
from policy_model.predictor import CONFIG_FILE, WEIGHTS_FILE, Predictor, PredictorInfo
from policy_model.training import calibrate, residual_scale
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import CheckpointError, FingerprintMismatchError, InfeasibleBudgetError, InputError
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Space
from pruning.planning.target import ffn_parameter_limits
from tests.values.landscape import anatomy_of, sample
from values.dataset import training_data
from values.encoding import encode
from values.expectation import Judged, expected_kl
from values.residual_scale import ResidualScale
from values.value_training import fit_values

GRID_PREDICTOR = Path(__file__).parent / "assets" / "grid_predictor"


def limits_of(anatomy: ModelAnatomy, budget: int, round_to: int = 8) -> Limits:
    return ffn_parameter_limits(anatomy, ffn_widths(anatomy, round_to=round_to), budget)


def planned_widths(predictor: Predictor, anatomy: ModelAnatomy, limits: Limits) -> tuple[int, ...]:
    return anatomy.ffn_widths(predictor.plan(anatomy, limits).architecture)


def untrained(anatomy: ModelAnatomy, space: Space) -> Predictor:
    """A policy that knows nothing over values of a few random samples."""
    rng = np.random.default_rng(0)
    dense = space.units_of(space.top)
    rows = {tuple(int(rng.choice(row)) for row in space.units) for _ in range(12)} - {dense}
    samples = [sample(anatomy, widths, 0.1 + 0.01 * i) for i, widths in enumerate(sorted(rows))]
    encoding = encode(anatomy, space, samples)
    data = training_data(encoding, samples)
    data = dataclasses.replace(data, searched=np.ones(len(samples), dtype=np.bool_))
    fit = fit_values(encoding, data)
    config = PolicyConfig(width=16, num_blocks=1)
    torch.manual_seed(0)
    policy = {name: p.numpy() for name, p in Policy(config).state_dict().items()}
    info = PredictorInfo(anatomy.fingerprint, 0, "", "c", "r", seed=0)
    return Predictor(policy, config, fit.values, encoding, calibrate(data, fit), residual_scale(data, fit), info)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.data())
def test_the_budget_is_kept_and_used_up(data: st.DataObject) -> None:
    """For any mix of layers and any budget, below and above the space: less than one rounding step is left over."""
    layers = data.draw(
        st.lists(st.tuples(st.sampled_from([32, 40, 64, 100]), st.integers(1, 30)), min_size=1, max_size=6)
    )
    anatomy = anatomy_of([w for w, _ in layers], [c for _, c in layers])
    space = ffn_levels(anatomy, num_levels=4, round_to=8)
    round_to = data.draw(st.sampled_from([1, 4, 8, 16]))
    floor = sum(round_to * c for _, c in layers)
    budget = data.draw(st.integers(floor, anatomy.ffn_parameters + 10))
    prediction = untrained(anatomy, space).plan(anatomy, limits_of(anatomy, budget, round_to))
    widths = anatomy.ffn_widths(prediction.architecture)
    left = budget - sum(w * c for w, (_, c) in zip(widths, layers, strict=True))
    assert left >= 0
    for width, (dense, price) in zip(widths, layers, strict=True):
        assert width == dense or (width % round_to == 0 and round_to <= width < dense)
        assert width == dense or left < min(round_to, dense - width) * price
    assert 0.0 <= prediction.interval[0] <= prediction.kl <= prediction.interval[1]
    assert math.isfinite(prediction.interval[1])


def test_a_dense_budget_gives_the_dense_model(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    for budget in (anatomy.ffn_parameters, anatomy.ffn_parameters + 1):
        prediction = predictor.plan(anatomy, limits_of(anatomy, budget))
        assert prediction.architecture == Architecture()
        assert (prediction.kl, prediction.interval) == (0.0, (0.0, 0.0))


def test_budgets_outside_the_searched_range_get_plans(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    lowest = predictor.plan(anatomy, limits_of(anatomy, 8 * 12 * 6))
    assert anatomy.ffn_widths(lowest.architecture) == (8,) * 6
    assert lowest.below_space
    nearly_dense = predictor.plan(anatomy, limits_of(anatomy, anatomy.ffn_parameters - 1))
    assert sum(anatomy.ffn_widths(nearly_dense.architecture)) == 64 * 6 - 8
    assert nearly_dense.kl < lowest.kl
    assert not nearly_dense.below_space


def test_other_widths_are_judged_with_the_intervals_of_any_configuration(
    predictor: Predictor, anatomy: ModelAnatomy
) -> None:
    own = predictor.plan(anatomy, limits_of(anatomy, 2500))
    judged = predictor.judge(own.architecture)
    assert (judged.architecture, judged.kl, judged.accuracy) == (own.architecture, own.kl, own.accuracy)
    fractions = predictor.encoding.kept_fractions([anatomy.ffn_widths(own.architecture)])
    mean, deviation = predictor.values.judge(fractions)
    expected = expected_kl(predictor.calibration, Judged(float(mean[0]), float(deviation[0]), False), None)[1]
    assert judged.interval == expected != own.interval
    assert predictor.judge(Architecture()).interval == (0.0, 0.0)


@pytest.mark.parametrize(
    "option", [(Site(2, Sublayer.ATTENTION), Option(1)), (Site(2, Sublayer.FFN), Option(32, bits=4))]
)
def test_what_no_sample_differs_in_is_not_judged(predictor: Predictor, option: tuple[Site, Option]) -> None:
    """KV groups, and bits: the quality of whole ones would be a wrong answer."""
    with pytest.raises(InputError, match=r"judges nothing but what its samples differ in.*'index': 2"):
        predictor.judge(Architecture.of([(Site(0, Sublayer.FFN), Option(32)), option]))


def test_an_impossible_budget_is_an_error(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    with pytest.raises(InfeasibleBudgetError, match="ffn_parameters = 576") as caught:
        predictor.plan(anatomy, limits_of(anatomy, 8 * 12 * 6 - 1))
    assert caught.value.nearest == 8 * 12 * 6


def test_several_limits_are_kept_and_one_of_them_used_up(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    """Parameters, and a latency in stairs of 24 channels."""
    fine = ffn_widths(anatomy, round_to=8)
    stairs = tuple(1000 * -(-row // 24) for row in fine.units)
    for budget, most in ((3000, 9000), (2000, 16000), (4000, 12000), (1200, 6000)):
        latency = Limit(LimitKind.LATENCY_MS, most, 0, stairs)
        limits = Limits(fine, (ffn_parameters(anatomy).limit(fine, budget), latency))
        choice = fine.choice_of(predictor.plan(anatomy, limits).architecture)
        assert choice is not None
        slack = limits.slack(choice)
        assert limits.is_tight(choice)
        assert (slack >= 0).all()
        assert slack[0] < 8 * 12 or slack[1] < 1000


def test_proposals_and_the_prior_are_what_a_search_takes(
    predictor: Predictor, anatomy: ModelAnatomy, space: Space
) -> None:
    least = ffn_parameters(anatomy).limit(space, 0).least
    for budget in (least, 2000, 3500):
        choice = predictor.propose(budget - least)
        limits = ffn_parameter_limits(anatomy, space, budget)
        assert (limits.slack(choice) >= 0).all()
        slack = limits.spare
        for layer, option in enumerate(choice):
            p = predictor.prior(choice[:layer], int(slack[0]))
            assert p.sum() == pytest.approx(1.0, abs=1e-5)
            allowed = limits.feasible(layer, slack)
            assert not p[~allowed].any()
            if not allowed[option]:
                break
            slack = slack - limits.table.excess[:, layer, option]


def test_what_was_measured_is_surer_than_what_was_not(predictor: Predictor) -> None:
    assert predictor.uncertainty((3, 3, 3, 3, 3, 1)) < predictor.uncertainty((0, 3, 0, 3, 0, 3))


def test_it_is_unsure_where_it_was_wrong_before(predictor: Predictor) -> None:
    """What the values expect of themselves counts for more where residuals were larger than expected."""
    mild, strong = (3, 3, 3, 3, 3, 1), (0, 0, 0, 0, 0, 0)
    weights, config = predictor.to_bytes()

    def with_errors(at_most_pruned: float) -> Predictor:
        errors = ResidualScale(((0.0, at_most_pruned), (0.5, at_most_pruned), (0.6, 1.0), (1.0, 1.0)))
        return Predictor.from_bytes(weights, config | {"past_errors": errors.to_dict()})

    even, wrong = with_errors(1.0), with_errors(5.0)
    assert wrong.uncertainty(strong) == pytest.approx(5.0 * even.uncertainty(strong))
    assert wrong.uncertainty(mild) == pytest.approx(even.uncertainty(mild))


def test_what_was_never_searched_is_said_to_be_extrapolated(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    """Of a plan, and of widths that are judged; the dense model is known."""
    weights, config = predictor.to_bytes()
    config = config | {"info": config["info"] | {"searched": [0.45, 0.8]}}
    narrow = Predictor.from_bytes(weights, config)
    for kept, outside in ((0.3, True), (0.46, False), (0.6, False), (0.79, False), (0.95, True)):
        prediction = narrow.plan(anatomy, limits_of(anatomy, int(kept * anatomy.ffn_parameters)))
        assert prediction.extrapolated == outside, kept
        assert narrow.judge(prediction.architecture).extrapolated == outside
    assert not narrow.judge(Architecture()).extrapolated
    del config["info"]["searched"]  # as of predictors from before
    assert not Predictor.from_bytes(weights, config).judge(anatomy.architecture([8] * 6)).extrapolated


def test_another_model_is_refused(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"model 0000.*predictor for ffff.*lop train"):
        predictor.plan(anatomy_of([64] * 6, fingerprint="0" * 64), limits_of(anatomy, 2000))


def test_save_and_load_predict_the_same_bits(predictor: Predictor, anatomy: ModelAnatomy, tmp_path: Path) -> None:
    predictor.save(tmp_path / "new" / "folder")
    loaded = Predictor.load(tmp_path / "new" / "folder")
    copied = Predictor.from_bytes(*predictor.to_bytes())
    for budget in range(600, 4600, 400):
        expected = predictor.plan(anatomy, limits_of(anatomy, budget))
        assert loaded.plan(anatomy, limits_of(anatomy, budget)) == expected
        assert copied.plan(anatomy, limits_of(anatomy, budget)) == expected
    assert loaded.info == predictor.info
    assert loaded.to_bytes() == predictor.to_bytes()
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]


def test_the_configuration_says_where_the_predictor_comes_from(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    _, config = predictor.to_bytes()
    assert config == json.loads(json.dumps(config))
    assert config["info"]["fingerprint"] == predictor.fingerprint == anatomy.fingerprint
    assert (config["info"]["num_samples"], config["info"]["calibration_id"]) == (108, "c" * 64)
    assert (config["info"]["ranking_sha256"], config["info"]["seed"]) == ("r" * 64, 3)
    assert [site["units"] for site in config["encoding"]["space"]["decisions"][0]] == [[16, 32, 48, 64]]


def test_a_predictor_of_before_is_served_without_its_policy() -> None:
    """Of a version that knew a grid of levels, with the plans that it made; widths finer and coarser than its levels,
    and below them. Without its policy plans may be others, which the values expect to be as good or nearly."""
    predictor = Predictor.load(GRID_PREDICTOR)
    document = json.loads((GRID_PREDICTOR / CONFIG_FILE).read_bytes())
    assert "grid" in document["encoding"]
    assert predictor.lacks_policy
    anatomy = anatomy_of([64, 32, 96, 64, 32], [3, 7, 2, 5, 4])
    plans = json.loads((GRID_PREDICTOR / "plans.json").read_bytes())
    assert {plan["round_to"] for plan in plans} == {1, 8, 16}
    assert {plan["below_grid"] for plan in plans} == {True, False}
    again = Predictor.from_bytes(*predictor.to_bytes())
    assert again.lacks_policy
    same = 0
    for plan in plans:
        limits = limits_of(anatomy, plan["ffn_parameters"], plan["round_to"])
        found = predictor.plan(anatomy, limits)
        assert found.below_space == plan["below_grid"]
        judged = predictor.judge(anatomy.architecture(plan["widths"]))
        assert (judged.kl, judged.agreement) == pytest.approx((plan["kl"], plan["agreement"]), rel=1e-6)
        assert found.kl <= 1.15 * plan["kl"]
        same += anatomy.ffn_widths(found.architecture) == tuple(plan["widths"])
        assert again.plan(anatomy, limits) == found
    assert same >= 0.7 * len(plans)


def test_without_a_policy_a_search_gets_an_even_prior(predictor: Predictor) -> None:
    weights, config = predictor.to_bytes()
    without = Predictor.from_bytes(weights, config | {"policy": None})
    assert without.prior((0, 3), 1200).tolist() == [0.25] * 4
    assert without.prior((3, 3, 3, 3), 0).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_serving_needs_no_torch() -> None:
    code = "import sys; import policy_model.predictor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(predictor: Predictor, tmp_path: Path, name: str, part: float) -> None:
    predictor.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError):
        Predictor.load(tmp_path)


def test_missing_files_foreign_weights_and_other_versions_are_refused(
    predictor: Predictor, anatomy: ModelAnatomy, space: Space, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"holds model.safetensors and predictor.json"):
        Predictor.load(tmp_path)
    weights, config = predictor.to_bytes()
    with pytest.raises(CheckpointError, match="belong together"):
        Predictor.from_bytes(untrained(anatomy, space).to_bytes()[0], config)
    with pytest.raises(CheckpointError, match=r"format version 2 or 3 or 4 or 5 \(got 1\)"):
        Predictor.from_bytes(weights, {**config, "format_version": 1})
    with pytest.raises(CheckpointError, match="belong together"):
        Predictor.from_bytes(weights, {k: v for k, v in config.items() if k != "encoding"})
    (tmp_path / CONFIG_FILE).write_text("[]")
    (tmp_path / WEIGHTS_FILE).write_bytes(weights)
    with pytest.raises(CheckpointError, match="JSON object"):
        Predictor.load(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="must be writable"):
        predictor.save(tmp_path / "file")


def test_threads_get_the_answers_of_one(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    budgets = list(range(800, 4600, 100)) * 2
    expected = [predictor.plan(anatomy, limits_of(anatomy, budget)) for budget in budgets]
    fresh = Predictor.from_bytes(*predictor.to_bytes())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda budget: fresh.plan(anatomy, limits_of(anatomy, budget)), budgets))
    assert found == expected


def test_predictions_and_info_cannot_be_changed(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    prediction = predictor.plan(anatomy, limits_of(anatomy, 2000))
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.kl = 0.0  # type: ignore[misc]
    predictor.metrics["policy_error_nats"] = -1.0
    assert predictor.metrics["policy_error_nats"] > 0.0
