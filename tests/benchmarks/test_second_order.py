"""The second-order benchmark: its rows on a tiny model, and its figures worked by hand."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import typer

from benchmarks import second_order, second_order_cuts, second_order_densities, second_order_joint, second_order_models
from benchmarks import steps as steps_module
from benchmarks.carried import pack, take_up
from benchmarks.real_data import CALIBRATION, VALIDATION
from benchmarks.second_order import _without_twins, figures
from benchmarks.second_order_cuts import BY_ELIMINATION, CUTS, cut_figures, cut_rows
from benchmarks.second_order_data import beginnings, by_length
from benchmarks.second_order_densities import SEARCHED, searched_rows
from benchmarks.second_order_ecoflap import CASES, Case, SparseModel, ecoflap_rows
from benchmarks.second_order_figures import LEAST, MOST, summary_of
from benchmarks.second_order_joint import (
    ADDITIVE,
    ALONE,
    BITS,
    JOINT,
    THEN,
    UNITS,
    JointModel,
    joint_figures,
    joint_rows,
    kept_smallest,
)
from benchmarks.second_order_models import ELIMINATION, MAGNITUDE, Model
from benchmarks.second_order_picture import draw_second_order
from benchmarks.second_order_sparse_figures import Pair, interval_table, searched_figures, with_intervals
from benchmarks.steps import Steps
from lop.workflows.sparsifying import Ratios
from pruning.anatomy.architecture import Architecture
from pruning.cutting.rewriting.sparsifier import LocalStep
from pruning.data.conversations import Conversation, Turn
from pruning.planning.prices import decoder_bytes
from tests.pruning.packed_models import save_wide_checkpoint
from tests.tiny_models import save_tiny_checkpoint, write_conversations


@pytest.fixture(autouse=True)
def no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of the code take longer than what is measured here."""
    monkeypatch.setattr(steps_module, "measured_code", lambda *_: {})
    monkeypatch.setattr(steps_module, "_code_of", lambda *_: {})


def tiny_data(folder: Path) -> dict[str, Path]:
    return {
        CALIBRATION: write_conversations(folder / "calibration", 6),
        VALIDATION: write_conversations(folder / "validation", 3, seed=1),
    }


def tiny_model(folder: Path) -> Model:
    return Model("reference", save_tiny_checkpoint(folder / "model"), tiny_data(folder), folder / "found", None)


def again(*_: object) -> None:
    raise AssertionError("it was measured")


def test_every_variant_is_a_row_that_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = tiny_model(tmp_path), Steps(tmp_path / "found" / "steps")
    cuts, by_elimination = (cut_rows(model, steps, variants, [0.5]) for variants in (CUTS, BY_ELIMINATION))
    assert [row["variant"] for row in cuts] == [variant.name for variant in CUTS]
    assert by_elimination[0] == cuts[0]
    rows = [*cuts, *by_elimination[1:]]
    kl = {row["variant"]: row["kl"] for row in rows}
    assert len(set(kl.values())) == len(rows) == 5
    assert all(x > 0 for x in kl.values())
    assert kl["dense_inputs"] == pytest.approx(kl["reconstructed"], rel=0.2)
    assert not (tmp_path / "found" / ".sums").exists()
    solved = [row for row in rows if "calibration_tokens" in row]
    assert [row["variant"] for row in solved] == ["reconstructed", "elimination_reconstructed"]
    assert all(len(row["dampings"]) == 4 for row in solved)
    ratio = cut_figures(rows)["reconstruction_kl_ratio"]
    assert ratio == {"reference": pytest.approx(kl["reconstructed"] / kl["plain"])}
    assert _without_twins({"cuts": cuts, "elimination": by_elimination}) == rows
    assert _without_twins({"elimination": by_elimination}) == by_elimination
    draw_second_order(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000

    monkeypatch.setattr(second_order_cuts, "score", again)
    monkeypatch.setattr(Model, "rank", again)
    assert cut_rows(model, Steps(tmp_path / "found" / "steps"), CUTS, [0.5]) == cuts


def test_measurements_go_on_elsewhere_without_raw_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while channels are ranked by elimination, a run leaves sums behind, the largest thing of all."""
    work = tmp_path / "here" / "second-order"
    model = Model("reference", save_tiny_checkpoint(tmp_path / "model"), tiny_data(tmp_path), work / "reference", None)
    steps = Steps(work / "reference" / "steps")
    rows = cut_rows(model, steps, CUTS[:1], [0.5])
    with monkeypatch.context() as patch:
        patch.setattr(second_order_models, "ranking_of", again)
        with pytest.raises(AssertionError, match="it was measured"):
            model.ranked(ELIMINATION, steps)
    assert list((work / "reference" / ".sums").glob("*.safetensors"))
    written = work / second_order._folder("reference", 4).name / "steps" / "trial.json"
    written.parent.mkdir(parents=True)
    written.write_text("{}")
    archive = pack(work, tmp_path / "archives")
    assert archive.stat().st_size < 20_000
    other = tmp_path / "there" / "second-order"
    assert take_up(other, tmp_path / "archives") == 3
    found = {path.relative_to(other).parts[:2] for path in other.rglob("*") if path.is_file()}
    assert found == {("carried.sha256",), ("reference", "activations.ranking.safetensors"), ("reference", "steps")}
    same = Model("reference", model.path, tiny_data(tmp_path), other / "reference", None)
    monkeypatch.setattr(second_order_cuts, "score", again)
    monkeypatch.setattr(Model, "rank", again)
    assert cut_rows(same, Steps(other / "reference" / "steps"), CUTS[:1], [0.5]) == rows
    assert same.ranking(MAGNITUDE).sha256 == model.ranking(MAGNITUDE).sha256


def test_the_worse_model_is_the_one_further_towards_its_own_bar() -> None:
    """.88 of .90 is nearer to its bar than .80 of .85; .80 of .85 is worse than .74 of .90."""
    found = summary_of(
        {"reconstruction_kl_ratio": {"reference": 0.88, "smollm2": 0.80}, "llama_positions": {"a": 5000}}
    )
    assert found["reconstruction_kl_ratio"] == 0.88
    assert found["smollm2"] == {"reconstruction_kl_ratio": 0.80}
    assert found["holds"] == {
        "reconstruction_kl_ratio_at_most_0.9_on_reference": True,
        "reconstruction_kl_ratio_at_most_0.85_on_smollm2": True,
        "llama_positions_at_least_2000": True,
    }
    found = summary_of({"reconstruction_kl_ratio": {"reference": 0.84, "smollm2": 0.83}})
    assert found["reconstruction_kl_ratio"] == 0.83
    found = summary_of({"reconstruction_kl_ratio": {"reference": 0.91, "smollm2": 0.5}})
    assert (found["reconstruction_kl_ratio"], list(found["holds"].values())) == (0.91, [False, True])


def test_fewer_are_worse_of_agreement_and_counts_and_what_is_not_there_does_not_hold() -> None:
    found = summary_of(
        {
            "llama_agreement_8_bits": {"reference": 0.99, "smollm2": 0.97},
            "joint_shares_vs_bits_only": {"reference": 5, "smollm2": 3},
            "joint_vs_units_only": {"reference": 0.5, "smollm2": 0.7},
            "joint_vs_bits_only": {"reference": 0.5, "smollm2": None},
        }
    )
    assert found["llama_agreement_8_bits"] == 0.97
    assert found["joint_shares_vs_bits_only"] == 3
    assert found["joint_vs_units_only"] == 0.7
    assert found["joint_vs_bits_only"] is None
    assert found["holds"] == {"llama_agreement_8_bits_at_least_0.98": False, "joint_vs_bits_only_at_most_1": False}


def test_the_docs_name_every_bar() -> None:
    docs = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in docs.splitlines() if line.startswith("| `")]
    told = {name: row[2] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert MOST.keys() | LEAST.keys() <= told.keys()
    for how, bars in (("at most", MOST), ("at least", LEAST)):
        for name, bar in bars.items():
            of = {"smollm2": bar["smollm2"], "reference": bar["reference"]} if isinstance(bar, Mapping) else {"": bar}
            said = [f"{value:.10f}".strip("0").rstrip(".") for value in of.values()]
            assert told[name].startswith(how)
            assert re.findall(r"(?:(?<=\s)|^)[.\d]+\b", told[name]) == said, name


def test_figures_of_cuts_worked_by_hand() -> None:
    """Ratios 1.2 and .3 have the geometric mean .6, .5 and .8 have .632: the mean holds, but one sparsity is worse."""
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
    found = summary_of(cut_figures(rows))
    assert found["reconstruction_kl_ratio"] == pytest.approx(0.6)
    assert found["reconstruction_kl_ratio_worst"] == pytest.approx(1.2)
    assert found["obs_order_kl_ratio"] == pytest.approx(0.4**0.5)
    assert found["calibration_tokens"] == 40_000
    assert found["holds"] == {
        "reconstruction_kl_ratio_at_most_0.85_on_smollm2": True,
        "reconstruction_kl_ratio_worst_at_most_1": False,
        "obs_order_kl_ratio_at_most_0.75_on_smollm2": True,
        "calibration_tokens_at_least_30000": True,
    }
    alone = cut_figures([row for row in rows if row["variant"] in ("plain", "elimination")])
    assert {name for name in alone if name.endswith("ratio")} == {"elimination_alone_kl_ratio"}


def test_sparse_rows_are_measured_once_at_equal_numbers_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_order_densities, "_SEARCH", ())
    model = SparseModel.of(tiny_model(tmp_path))
    steps = Steps(tmp_path / "found" / "steps")
    cases = [Case(LocalStep.SPARSEGPT, ratios, 0.5) for ratios in (Ratios.UNIFORM, Ratios.ECOFLAP)]
    rows = ecoflap_rows(model, ["tiny"], steps, cases)
    searched = searched_rows(model, ["tiny"], steps, [0.5], 2)
    assert [(x["step"], x["ratios"], x["modules"]) for x in searched] == [
        (step, ratios, "language") for ratios in (SEARCHED, "ecoflap") for step in ("wanda", "sparsegpt")
    ]
    assert [x["zeroed"] for x in searched] == pytest.approx([0.5] * 4, abs=0.01)
    figures = searched_figures([*rows, *searched])
    for n, name in enumerate(("searched_vs_ecoflap", "searched_sparsegpt_vs_ecoflap")):
        assert figures[name] == {"reference": pytest.approx(searched[n]["kl"] / searched[n + 2]["kl"])}
    for row in (*rows, *searched):
        assert len(row["conversation_nats"]) == 3
        assert sum(row["conversation_nats"]) == pytest.approx(row["kl"] * row["answer_tokens"])
    assert [row["zeroed"] for row in rows] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert [len(set(row["densities"])) for row in rows] == [1, 6]
    assert rows[0]["kl"] != rows[1]["kl"]
    assert not (tmp_path / "found" / "sparse").exists()

    monkeypatch.setattr(SparseModel, "score", again)
    monkeypatch.setattr("lop.workflows.ecoflap_scores.measure_block_scores", again)
    monkeypatch.setattr(SparseModel, "measured", again)
    monkeypatch.setattr("benchmarks.second_order_densities.search_model", again)
    assert ecoflap_rows(model, ["tiny"], steps, cases) == rows
    assert searched_rows(model, ["tiny"], steps, [0.5], 2) == searched


def test_beginnings_of_answers_in_order_of_length() -> None:
    one = Conversation("a", None, (Turn("what is it?", "seven\nred and three blue"), Turn("and?", "no")))
    two = Conversation("b", None, (Turn("what?", "red"),))
    assert by_length([one, two]) == [two, one]
    (short,) = beginnings([one], 2)
    assert [turn.answer for turn in short.turns] == ["seven\nred and", "no"]
    assert [turn.question for turn in short.turns] == ["what is it?", "and?"]


def test_sparse_figures_worked_by_hand() -> None:
    """ECoFLaP's ratios make Wanda .5, 1 and 2 times as bad: their mean is 1, the worst is 2, so it does not hold. Of
    SparseGPT they change nothing: it has half of Wanda's KL with uniform ratios and, with ECoFLaP's, 1, .5 and .25."""
    factors = {0.5: 0.5, 0.6: 1.0, 0.7: 2.0}
    rows = [
        {
            "model": "reference",
            "step": case.step.value,
            "ratios": case.ratios.value,
            "sparsity": case.sparsity,
            "pattern": case.pattern,
            "modules": "language",
            "kl": (0.8 if case.step is LocalStep.WANDA else 0.4)
            * (factors[case.sparsity] if (case.ratios, case.step) == (Ratios.ECOFLAP, LocalStep.WANDA) else 1.0),
        }
        for case in CASES
    ]
    found = summary_of(figures({"ecoflap": rows}))
    assert "ecoflap" not in found  # nothing was searched
    searched = [{**rows[0], "ratios": SEARCHED, "sparsity": s, "kl": 0.8} for s in factors]
    found = summary_of(figures({"ecoflap": rows, "densities": searched}))
    own = {
        "ecoflap_wanda_vs_uniform": 2.0,
        "ecoflap_wanda_vs_uniform_mean": pytest.approx(1.0),
        "ecoflap_sparsegpt_vs_uniform": 1.0,
        "ecoflap_sparsegpt_vs_uniform_mean": pytest.approx(1.0),
        "sparsegpt_vs_wanda": pytest.approx(1.0),
        "sparsegpt_vs_wanda_mean": pytest.approx(0.5),
        "sparsegpt_vs_wanda_2_4": 0.5,
        "searched_vs_ecoflap": pytest.approx(2.0),
        "searched_vs_ecoflap_mean": pytest.approx(1.0),
        "searched_sparsegpt_vs_ecoflap": None,
        "searched_sparsegpt_vs_ecoflap_mean": None,
    }
    assert found["reference"] == own
    assert {name: found[name] for name in own} == own
    assert found["ecoflap"] == pytest.approx(2.0)
    assert {name for name, holds in found["holds"].items() if not holds} == {
        "ecoflap_wanda_vs_uniform_at_most_1",
        "searched_vs_ecoflap_at_most_1",
        "ecoflap_at_most_1",
    }


def searched_row(step: str, ratios: str, sparsity: float, kl: float, modules: str = "language") -> dict[str, object]:
    said = {"model": "smollm2", "step": step, "ratios": ratios, "pattern": None, "modules": modules}
    return {**said, "sparsity": sparsity, "kl": kl}


def test_searched_figures_worked_by_hand() -> None:
    """Half and three times ECoFLaP's KL on the decoder are 1.22 of it; rows of the vision tower, too, do not count.
    With SparseGPT there is one pair."""
    row = partial(searched_row, "wanda")
    rows = [row("ecoflap", 0.5, 2.0), row("ecoflap", 0.7, 2.0), row("searched", 0.5, 1.0), row("searched", 0.7, 6.0)]
    rows += [searched_row("sparsegpt", ratios, 0.5, kl) for ratios, kl in (("ecoflap", 1.0), ("searched", 0.9))]
    found = searched_figures([*rows, row("ecoflap", 0.5, 9.0, "all"), row("uniform", 0.5, 9.0)])
    assert found == {
        "searched_vs_ecoflap": {"smollm2": pytest.approx(3.0)},
        "searched_vs_ecoflap_mean": {"smollm2": pytest.approx(1.5**0.5)},
        "searched_sparsegpt_vs_ecoflap": {"smollm2": pytest.approx(0.9)},
        "searched_sparsegpt_vs_ecoflap_mean": {"smollm2": pytest.approx(0.9)},
    }


def test_a_tie_is_told_from_a_loss() -> None:
    """Of forty conversations one model loses 1.1 times as much in each: so in every draw. Another loses 2 times as much
    in one half of them and .4 in the other, 1.2 in the mean, which may be chance: with k of 40 drawn from the first
    half the ratio is .4 + .04 k, and k is between 15 and 25 in nine draws of ten (binomial: .04 each side at 14 and
    26)."""

    def row(ratios: str, nats: list[float]) -> dict[str, object]:
        return {**searched_row("wanda", ratios, 0.5, sum(nats) / 400), "conversation_nats": nats}

    uniform = row("uniform", [1.0] * 40)
    loss, tie = (row("ecoflap", nats) for nats in ([1.1] * 40, [2.0] * 20 + [0.4] * 20))
    assert Pair("", loss, uniform).interval == pytest.approx((1.1, 1.1))
    assert Pair("", tie, uniform).interval == pytest.approx((0.4 + 0.04 * 15, 0.4 + 0.04 * 25), abs=0.045)
    rows, searched = with_intervals([uniform, tie], [row("searched", [1.2] * 40)])
    assert [list(x["against"]) for x in (*rows, *searched)] == [
        [],
        ["ecoflap_wanda_vs_uniform"],
        ["searched_vs_ecoflap"],
    ]
    table = interval_table([*rows, *searched])["smollm2"]
    assert table["ecoflap_wanda_vs_uniform"]["0.5"] == pytest.approx([1.2, *Pair("", tie, uniform).interval])
    low, high = table["searched_vs_ecoflap"]["0.5"][1:]
    assert low < 1.0 < high


def test_joint_plans_of_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 four bits with their scales are 28% of the bytes: alone they reach three tenths, not a quarter."""
    monkeypatch.setattr(second_order_joint, "_SEARCH", ())
    model = Model("reference", save_wide_checkpoint(tmp_path / "m"), tiny_data(tmp_path), tmp_path / "found", None)
    steps = Steps(tmp_path / "found" / "steps")
    joint = JointModel.of(model)
    rows = joint_rows(joint, ["tiny"], steps, [0.3, 0.25], 4)
    kinds = {(row["share"], row["kind"]) for row in rows}
    every = {JOINT, ALONE, ADDITIVE, THEN, UNITS}
    assert kinds == {(s, k) for s in (0.3, 0.25) for k in (every if s < 0.3 else every | {BITS})}
    price = decoder_bytes(joint.anatomy)
    sites = sum(price.of_dense.values())
    of = {(row["kind"], row["share"]): Architecture.from_document(row["architecture"]) for row in rows}
    for (kind, share), architecture in of.items():
        assert price.cost(architecture) - (price.total - sites) <= share * sites
        in_bits = {option.bits for _, option in architecture.items if option.units}
        assert kind != UNITS or in_bits <= {None}
        assert kind != THEN or len(in_bits) == 1
        assert kind != BITS or all(o.units == price.dense[s] for s, o in architecture.items)
    # Six conversations have no folds, so nothing is sure to be better than bits alone, the plan in both spaces.
    assert of[JOINT, 0.3] == of[BITS, 0.3]
    assert all(o.units == price.dense[s] for s, o in of[ALONE, 0.3].items)
    assert joint_figures(rows)["joint_shares_vs_bits_only"] == {"reference": 1}
    assert joint_figures(rows)["joint_vs_bits_only_worst"] == {"reference": 1.0}
    (smallest,) = (row for row in rows if (row["share"], row["kind"]) == (0.25, JOINT))
    assert kept_smallest(joint, ["tiny"], steps, 0.25, 4) == smallest["architecture"]
    assert kept_smallest(joint, ["tiny"], steps, 0.2, 4) is None

    monkeypatch.setattr(JointModel, "rows", again)
    assert joint_rows(joint, ["tiny"], steps, [0.3, 0.25], 4) == rows


def test_bits_alone_have_as_many_evaluations_as_both(tmp_path: Path) -> None:
    """Two options of each of eight sub-layers are scanned for bits alone. Of units and bits, with widths of 16, 32, 48
    and 64: FFNs have 2 + 2 + 2 of 32 and 64 with and without fewer bits, 16 and 48, dense apart."""
    model = Model("reference", save_wide_checkpoint(tmp_path / "m"), tiny_data(tmp_path), tmp_path / "found", None)
    joint = JointModel.of(model)
    both = int((joint.space.counts - 1).sum())
    assert joint.more_of_bits == (both - 2 * 8) // 5


def test_joint_plans_are_compared_where_both_kinds_have_one() -> None:
    """Where both are nearly dense a ratio counts in no mean; the worst is of all."""

    def row(kind: str, share: float, kl: float) -> dict[str, object]:
        return {"part": "joint", "model": "reference", "kind": kind, "share": share, "kl": kl}

    rows = [row("joint", 0.6, 0.0003), row("bits_only", 0.6, 0.0002), row("prune_then_quantise", 0.6, 0.002)]
    rows += [row("joint", 0.3, 0.1), row("bits_only", 0.3, 0.1), row("prune_then_quantise", 0.3, 0.5)]
    rows += [row("joint_additive", 0.3, 0.2), row("joint_alone", 0.3, 0.09)]
    rows += [row("joint", 0.2, 0.9), row("prune_then_quantise", 0.2, 0.9)]  # bits alone do not get that small
    found = summary_of(joint_figures(rows))
    assert found["reference"] == {
        "joint_vs_bits_only": 1.0,
        "joint_vs_bits_only_all": pytest.approx(1.5**0.5),
        "joint_vs_bits_only_worst": pytest.approx(1.5),
        "joint_shares_vs_bits_only": 1,
        "joint_trivial_vs_bits_only": 1,
        "joint_vs_prune_then_quantise": pytest.approx((0.15 * 0.2 * 1.0) ** (1 / 3)),
        "joint_vs_prune_then_quantise_all": pytest.approx((0.15 * 0.2 * 1.0) ** (1 / 3)),
        "joint_vs_prune_then_quantise_worst": 1.0,
        "joint_shares_vs_prune_then_quantise": 3,
        "joint_trivial_vs_prune_then_quantise": 0,
        "joint_vs_units_only": None,
        "joint_vs_units_only_all": None,
        "joint_vs_units_only_worst": None,
        "joint_shares_vs_units_only": 0,
        "joint_trivial_vs_units_only": 0,
        "joint_alone_vs_bits_only": pytest.approx(0.9),
        "joint_alone_vs_bits_only_all": pytest.approx(0.9),
        "joint_alone_vs_bits_only_worst": pytest.approx(0.9),
        "joint_alone_vs_prune_then_quantise": pytest.approx(0.18),
        "joint_alone_vs_prune_then_quantise_all": pytest.approx(0.18),
        "joint_alone_vs_prune_then_quantise_worst": pytest.approx(0.18),
        "joint_alone_vs_units_only": None,
        "joint_alone_vs_units_only_all": None,
        "joint_alone_vs_units_only_worst": None,
        "joint_additive_vs_bits_only": pytest.approx(2.0),
        "joint_additive_vs_bits_only_all": pytest.approx(2.0),
        "joint_additive_vs_bits_only_worst": pytest.approx(2.0),
    }
    trivial = [{**x, "model": "smollm2", "kl": 1e-4} for x in rows]
    both = summary_of(joint_figures([*rows, *trivial]))
    # A model on which nothing counts is not left out of the bar unseen: its mean over all is there.
    assert both["joint_vs_bits_only"] is None
    assert both["holds"]["joint_vs_bits_only_at_most_1"] is False
    assert (both["joint_shares_vs_bits_only"], both["joint_trivial_vs_bits_only"]) == (0, 2)
    assert (both["smollm2"]["joint_vs_bits_only"], both["smollm2"]["joint_vs_bits_only_all"]) == (None, 1.0)
    assert found["joint_vs_units_only"] is None
    assert [name for name, holds in found["holds"].items() if not holds] == ["joint_vs_bits_only_worst_at_most_1"]
    assert len(found["holds"]) == 3


def test_an_unknown_part_is_refused_by_name() -> None:
    with pytest.raises(typer.BadParameter, match=r"a part is one of cuts, .*: speed"):
        second_order._chosen("part", ["speed", "cuts"], second_order.PARTS)
    assert second_order._chosen("part", ["joint", "cuts"], second_order.PARTS) == ["cuts", "joint"]
