"""What the service relies on: budgets are kept, answers are equal, files are checked."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_model.calibration import Calibration
from policy_model.encoding import encode
from policy_model.model import ModelConfig, PlanModel
from policy_model.predictor import CONFIG_FILE, WEIGHTS_FILE, Predictor, PredictorInfo
from pruning.anatomy import ModelAnatomy
from pruning.errors import CheckpointError, FingerprintMismatchError, InfeasibleTargetError, InputError
from pruning.levels import LevelGrid
from tests.policy_model.landscape import anatomy_of


def untrained(anatomy: ModelAnatomy, grid: LevelGrid) -> Predictor:
    encoding = encode(anatomy, grid, [])
    config = ModelConfig(
        grid.num_layers, grid.num_levels, encoding.features.shape[1], policy_width=16, policy_blocks=1, num_members=2
    )
    torch.manual_seed(0)
    info = PredictorInfo(anatomy.fingerprint, 0, "", "c", "r", seed=0)
    return Predictor(
        PlanModel(config, encoding), encoding, Calibration(low=-1.0, high=1.0, noise=0.1, num_scores=40), info
    )


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.data())
def test_the_budget_is_kept_and_used_up(data: st.DataObject) -> None:
    """For any mix of layers and any budget, below and above the grid: less than one rounding step is left over."""
    layers = data.draw(
        st.lists(st.tuples(st.sampled_from([32, 40, 64, 100]), st.integers(1, 30)), min_size=1, max_size=6)
    )
    anatomy = anatomy_of([w for w, _ in layers], [c for _, c in layers])
    grid = LevelGrid.build(anatomy, num_levels=4, round_to=8)
    round_to = data.draw(st.sampled_from([1, 4, 8, 16]))
    floor = sum(round_to * c for _, c in layers)
    budget = data.draw(st.integers(floor, anatomy.ffn_parameters + 10))
    prediction = untrained(anatomy, grid).plan_widths(anatomy, budget, round_to=round_to)
    left = budget - sum(w * c for w, (_, c) in zip(prediction.widths, layers, strict=True))
    assert left >= 0
    for width, (dense, price) in zip(prediction.widths, layers, strict=True):
        assert width == dense or (width % round_to == 0 and round_to <= width < dense)
        assert width == dense or left < min(round_to, dense - width) * price
    assert 0.0 <= prediction.interval[0] <= prediction.kl <= prediction.interval[1]
    assert math.isfinite(prediction.interval[1])


def test_a_dense_budget_gives_the_dense_model(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    for budget in (anatomy.ffn_parameters, anatomy.ffn_parameters + 1):
        prediction = predictor.plan_widths(anatomy, budget, round_to=8)
        assert prediction.widths == (64,) * 6
        assert (prediction.kl, prediction.interval) == (0.0, (0.0, 0.0))


def test_budgets_outside_the_searched_range_get_plans(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    lowest = predictor.plan_widths(anatomy, 8 * 12 * 6, round_to=8)
    assert lowest.widths == (8,) * 6
    nearly_dense = predictor.plan_widths(anatomy, anatomy.ffn_parameters - 1, round_to=8)
    assert sum(nearly_dense.widths) == 64 * 6 - 8
    assert nearly_dense.kl < lowest.kl


def test_impossible_requests_are_errors(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    with pytest.raises(InfeasibleTargetError, match="below 8 channels") as caught:
        predictor.plan_widths(anatomy, 8 * 12 * 6 - 1, round_to=8)
    assert caught.value.nearest == 8 * 12 * 6
    with pytest.raises(InputError, match="round_to must be at least 1"):
        predictor.plan_widths(anatomy, 2000, round_to=0)


def test_another_model_is_refused(predictor: Predictor) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"model 0000.*predictor for ffff.*lop train"):
        predictor.plan_widths(anatomy_of([64] * 6, fingerprint="0" * 64), 2000, round_to=8)


def test_save_and_load_predict_the_same_bits(predictor: Predictor, anatomy: ModelAnatomy, tmp_path: Path) -> None:
    predictor.save(tmp_path / "new" / "folder")
    loaded = Predictor.load(tmp_path / "new" / "folder")
    copied = Predictor.from_bytes(*predictor.to_bytes())
    for budget in range(600, 4600, 400):
        expected = predictor.plan_widths(anatomy, budget, round_to=8)
        assert loaded.plan_widths(anatomy, budget, round_to=8) == expected
        assert copied.plan_widths(anatomy, budget, round_to=8) == expected
    assert loaded.info == predictor.info
    assert loaded.to_bytes() == predictor.to_bytes()
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]


def test_the_configuration_says_where_the_predictor_comes_from(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    _, config = predictor.to_bytes()
    assert config == json.loads(json.dumps(config))
    assert config["info"]["fingerprint"] == predictor.fingerprint == anatomy.fingerprint
    assert (config["info"]["num_samples"], config["info"]["calibration_id"]) == (108, "c" * 64)
    assert (config["info"]["ranking_sha256"], config["info"]["seed"]) == ("r" * 64, 3)
    assert config["encoding"]["grid"]["widths"][0] == [16, 32, 48, 64]


def test_loading_leaves_the_random_generator_alone(predictor: Predictor) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Predictor.from_bytes(*predictor.to_bytes())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(predictor: Predictor, tmp_path: Path, name: str, part: float) -> None:
    predictor.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError):
        Predictor.load(tmp_path)


def test_missing_files_foreign_weights_and_other_versions_are_refused(
    predictor: Predictor, anatomy: ModelAnatomy, grid: LevelGrid, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"holds model.safetensors and predictor.json"):
        Predictor.load(tmp_path)
    weights, config = predictor.to_bytes()
    with pytest.raises(CheckpointError, match="belong together"):
        Predictor.from_bytes(untrained(anatomy, grid).to_bytes()[0], config)
    with pytest.raises(CheckpointError, match="format version 1"):
        Predictor.from_bytes(weights, {**config, "format_version": 2})
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
    expected = [predictor.plan_widths(anatomy, budget, round_to=8) for budget in budgets]
    fresh = Predictor.from_bytes(*predictor.to_bytes())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda budget: fresh.plan_widths(anatomy, budget, round_to=8), budgets))
    assert found == expected


def test_predictions_and_info_cannot_be_changed(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    prediction = predictor.plan_widths(anatomy, 2000, round_to=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.kl = 0.0  # type: ignore[misc]
    predictor.metrics["policy_error_nats"] = -1.0
    assert predictor.metrics["policy_error_nats"] > 0.0
