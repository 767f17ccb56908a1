"""The second-order benchmark: its rows on a tiny model, and its figures worked by hand."""

from pathlib import Path

import pytest

from benchmarks import second_order
from benchmarks import steps as steps_module
from benchmarks.real_data import CALIBRATION, VALIDATION
from benchmarks.second_order import VARIANTS, Model, figures, measured
from benchmarks.second_order_densities import SEARCHED, searched_figures, searched_rows
from benchmarks.second_order_ecoflap import CASES, Case, SparseModel, ecoflap_figures, ecoflap_rows
from benchmarks.second_order_joint import joint_figures
from benchmarks.second_order_picture import draw_second_order
from benchmarks.steps import Steps
from lop.workflows.sparsifying import Ratios
from pruning.cutting.rewriting.sparsifier import LocalStep
from tests.tiny_models import save_tiny_checkpoint, write_conversations


def test_every_variant_is_a_row_that_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "measured_code", lambda *_: {})  # digests take longer than the rows
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    data = {
        CALIBRATION: write_conversations(tmp_path / "calibration", 6),
        VALIDATION: write_conversations(tmp_path / "validation", 3, seed=1),
    }
    model = Model("reference", checkpoint, data, tmp_path / "found", None)
    rows = measured(model, [0.5], Steps(tmp_path / "found" / "steps"))
    assert [row["variant"] for row in rows] == [variant.name for variant in VARIANTS]
    kl = {row["variant"]: row["kl"] for row in rows}
    assert len(set(kl.values())) == len(VARIANTS)
    assert all(x > 0 for x in kl.values())
    solved = [row for row in rows if "calibration_tokens" in row]
    assert [row["variant"] for row in solved] == ["reconstructed", "elimination_reconstructed", "dense_inputs"]
    assert all(len(row["dampings"]) == 4 for row in solved)
    assert figures(rows)["reconstruction_kl_ratio"] == {"reference": pytest.approx(kl["reconstructed"] / kl["plain"])}
    draw_second_order(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000

    def again(*_: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(second_order.Model, "score", again)
    monkeypatch.setattr(second_order.Model, "rank", again)
    assert measured(model, [0.5], Steps(tmp_path / "found" / "steps")) == rows


def test_figures_worked_by_hand() -> None:
    """Ratios .5 and .8 have the geometric mean .632, 1.2 and .3 have .6: the mean holds, but one sparsity is worse."""
    kl = {
        "plain": (1.0, 2.0),
        "reconstructed": (1.2, 0.6),
        "elimination_reconstructed": (0.5, 1.6),
        "elimination": (1.0, 2.0),
        "dense_inputs": (1.0, 2.0),
    }
    rows = [
        {"model": "smollm2", "variant": name, "sparsity": sparsity, "kl": value, "calibration_tokens": 40_000}
        for name, values in kl.items()
        for sparsity, value in zip((0.1, 0.5), values, strict=True)
    ]
    found = figures(rows)
    assert found["reconstruction_kl_ratio"]["smollm2"] == pytest.approx(0.6)
    assert found["reconstruction_kl_ratio_worst"]["smollm2"] == pytest.approx(1.2)
    assert found["obs_order_kl_ratio"]["smollm2"] == pytest.approx(0.4**0.5)
    assert found["holds"] == {"smollm2": {"reconstruction": False, "obs_order": True}}
    assert found["calibration_tokens"] == {"smollm2": 40_000}


def test_sparse_rows_are_measured_once_at_equal_numbers_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "measured_code", lambda *_: {})
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    data = {
        CALIBRATION: write_conversations(tmp_path / "calibration", 6),
        VALIDATION: write_conversations(tmp_path / "validation", 3, seed=1),
    }
    model = Model("reference", checkpoint, data, tmp_path / "found", None).sparse
    steps = Steps(tmp_path / "found" / "steps")
    cases = [Case(LocalStep.SPARSEGPT, ratios, 0.5) for ratios in (Ratios.UNIFORM, Ratios.ECOFLAP)]
    rows = ecoflap_rows(model, ["tiny"], steps, cases)
    searched = searched_rows(model, ["tiny"], steps, [0.5], 2)
    assert [(x["ratios"], x["modules"]) for x in searched] == [(SEARCHED, "language"), ("ecoflap", "language")]
    assert [x["zeroed"] for x in searched] == pytest.approx([0.5, 0.5], abs=0.01)
    assert searched_figures([*rows, *searched])["searched_vs_ecoflap"] == {
        "reference": pytest.approx(searched[0]["kl"] / searched[1]["kl"])
    }
    assert [row["zeroed"] for row in rows] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert [len(set(row["densities"])) for row in rows] == [1, 6]
    assert rows[0]["kl"] != rows[1]["kl"]
    assert not (tmp_path / "found" / "sparse").exists()

    def again(*_: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(SparseModel, "score", again)
    monkeypatch.setattr(SparseModel, "scores", again)
    monkeypatch.setattr(SparseModel, "measured", again)
    monkeypatch.setattr("benchmarks.second_order_densities.search_model", again)
    assert ecoflap_rows(model, ["tiny"], steps, cases) == rows
    assert searched_rows(model, ["tiny"], steps, [0.5], 2) == searched


def test_sparse_figures_worked_by_hand() -> None:
    """ECoFLaP's ratios make Wanda .5, 1 and 2 times as bad: their mean is 1, the worst is 2, so it does not hold."""
    factors = {0.5: 0.5, 0.6: 1.0, 0.7: 2.0}
    rows = [
        {
            "model": "reference",
            "step": case.step.value,
            "ratios": case.ratios.value,
            "sparsity": case.sparsity,
            "pattern": case.pattern,
            "kl": (0.8 if case.step is LocalStep.WANDA else 0.4)
            * (factors[case.sparsity] if (case.ratios, case.step) == (Ratios.ECOFLAP, LocalStep.WANDA) else 1.0),
        }
        for case in CASES
    ]
    found = ecoflap_figures(rows)
    assert found["ecoflap"]["reference"] == {
        "ecoflap_wanda_vs_uniform": pytest.approx(1.0),
        "ecoflap_wanda_vs_uniform_worst": 2.0,
        "ecoflap_sparsegpt_vs_uniform": 1.0,
        "ecoflap_sparsegpt_vs_uniform_worst": 1.0,
        "sparsegpt_vs_wanda": pytest.approx(0.5),
        "sparsegpt_vs_wanda_2_4": 0.5,
    }
    assert found["ecoflap_holds"] == {"reference": False}


def test_searched_figures_worked_by_hand() -> None:
    """Half and three times ECoFLaP's KL on the decoder are 1.22 of it; rows of the vision tower, too, do not count."""

    def row(ratios: str, sparsity: float, kl: float, modules: str = "language") -> dict[str, object]:
        said = {"model": "smollm2", "step": "wanda", "pattern": None}
        return {**said, "ratios": ratios, "sparsity": sparsity, "kl": kl, "modules": modules}

    rows = [row("ecoflap", 0.5, 2.0), row("ecoflap", 0.7, 2.0), row("searched", 0.5, 1.0), row("searched", 0.7, 6.0)]
    found = searched_figures([*rows, row("ecoflap", 0.5, 9.0, "all"), row("uniform", 0.5, 9.0)])
    assert found == {
        "searched_vs_ecoflap": {"smollm2": pytest.approx(1.5**0.5)},
        "searched_vs_ecoflap_worst": {"smollm2": pytest.approx(3.0)},
        "searched_holds": {"smollm2": False},
    }


def test_joint_plans_are_compared_where_both_kinds_have_one() -> None:
    def row(kind: str, share: float, kl: float) -> dict[str, object]:
        return {"part": "joint", "model": "reference", "kind": kind, "share": share, "kl": kl}

    rows = [row("joint", 0.6, 0.1), row("bits_only", 0.6, 0.1), row("prune_then_quantise", 0.6, 0.4)]
    rows += [row("joint", 0.2, 0.9), row("prune_then_quantise", 0.2, 0.9)]  # bits alone do not get that small
    rows.append({"part": "reload", "model": "reference", "kl_scored": 0.9, "kl_reloaded": 0.99})
    found = joint_figures(rows)
    assert found["joint_vs_bits_only"] == {"reference": 1.0}
    assert found["joint_vs_prune_then_quantise"]["reference"] == pytest.approx(0.5)
    assert found["joint_vs_units_only"] == {}
    assert found["joint_shares"] == {"reference": {"bits_only": [0.6], "prune_then_quantise": [0.6, 0.2]}}
    assert found["reload_kl_difference"]["reference"] == pytest.approx(0.1)
    assert found["joint_holds"] == {"reference": {"bits_only": True, "prune_then_quantise": True}}
