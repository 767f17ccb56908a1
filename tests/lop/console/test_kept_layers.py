"""What tables and pictures say of each layer: bars, words, and pictures that tell skipped from removed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lop.console import layer_pictures
from lop.console.kept_layers import ATTENTION, FFN, KeptLayers, gauge, skips_in_words
from lop.console.layer_pictures import draw_panels, draw_plans
from lop.console.plan_report import draw_plan, kept_layers, show_plan
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site
from pruning.errors import InputError
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import Axis, PlanRanking, PlanTarget, PruningPlan
from pruning.planning.scope import Scope
from tests.service.made_up import made_up_anatomy

ANATOMY = made_up_anatomy()  # FFNs of 64, 64, 128 and 64 channels, two KV groups
DENSE_UNITS = {FFN: (64, 64, 128, 64), ATTENTION: (2, 2, 2, 2)}
JOINT = Architecture.of(
    {
        Site(0, ATTENTION): Option(1),
        Site(1, ATTENTION): Option(0),
        Site(1, FFN): Option(0),
        Site(2, FFN): Option(32),
        Site(3, ATTENTION): Option(0),
    }
)


@pytest.fixture
def figure() -> Iterator[Any]:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = pyplot.figure(layout="constrained")
    yield figure
    pyplot.close(figure)


def plan_of(architecture: Architecture) -> PruningPlan:
    return make_plan(
        ANATOMY,
        architecture,
        model_id="tiny",
        target=PlanTarget(sparsity=0.1, scope=Scope.DECODER),
        method="uniform",
        ranking=PlanRanking(sha256="0" * 64),
    )


@pytest.mark.parametrize(
    ("fraction", "bar"),
    [(0.0, "░" * 8), (1.0, "█" * 8), (0.5, "████░░░░"), (0.001, "█" + "░" * 7), (0.999, "█" * 7 + "░")],
)
def test_a_bar_is_full_or_empty_only_where_everything_or_nothing_is_kept(fraction: float, bar: str) -> None:
    assert gauge(fraction) == bar
    assert gauge(fraction, plain=True) == bar.replace("█", "#").replace("░", ".")


def test_what_is_skipped_in_words() -> None:
    kept = KeptLayers.of(JOINT, DENSE_UNITS)
    assert (kept.gone, kept.skipped(ATTENTION), kept.skipped(FFN)) == ([1], [3], [])
    assert skips_in_words(kept) == "whole layers 1; attention of layers 3"
    assert kept.fractions(FFN) == [1.0, 0.0, 0.25, 1.0]
    assert skips_in_words(KeptLayers.of(DENSE, DENSE_UNITS)) == ""


def test_a_plan_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan_of(JOINT), DENSE_UNITS)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[1]: line for line in lines if line.startswith(("│", "|")) and line.split()[1].isdigit()}
    assert set(rows) == {"0", "1", "2", "3"}
    assert "████████ dense" in rows["0"]
    assert "████░░░░ 1 " in rows["0"]
    assert rows["1"].count("whole layer skipped") == 2
    assert "██░░░░░░ 32 " in rows["2"]
    assert "skipped" in rows["3"]
    assert "whole" not in rows["3"]
    assert "skipped: whole layers 1; attention of layers 3" in lines


def test_without_the_dense_model_a_table_has_numbers_and_there_is_no_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show_plan(plan_of(JOINT), None)
    assert "█" not in (out := capsys.readouterr().out)
    assert "whole layer skipped" in out
    with pytest.raises(InputError, match="needs to know the dense model's KV groups"):
        draw_plan(plan_of(JOINT), None, tmp_path / "plan.png")


def test_a_picture_has_a_bar_for_each_half_of_each_layer(figure: Any) -> None:
    draw_panels(figure, [("joint", kept_layers(plan_of(JOINT), DENSE_UNITS))])
    (axis,) = figure.axes
    heights = {
        bars.get_label(): {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
        for bars in axis.containers
        if bars.get_label() != "removed"
    }
    assert heights == {
        "FFN channels kept": {0: 1.0, 2: 0.25, 3: 1.0},
        "KV groups kept": {0: -0.5, 2: -1.0, 3: 0.0},
        "skipped": {3: -1.0},
        "whole layer skipped": {1: 2.0},
    }
    hatches = {bars.get_label(): bars[0].get_hatch() for bars in axis.containers}
    assert hatches["skipped"] != hatches["whole layer skipped"] is not None
    assert hatches["removed"] is hatches["KV groups kept"] is None
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["FFN channels kept", "KV groups kept", "removed", "skipped", "whole layer skipped"]


def test_where_attention_stays_whole_only_ffns_are_drawn(figure: Any) -> None:
    widths = Architecture.of({Site(2, FFN): Option(32)})
    draw_panels(figure, [("ffn", KeptLayers.of(widths, DENSE_UNITS))])
    (axis,) = figure.axes
    assert axis.get_ylim()[0] == 0.0
    assert {bars.get_label() for bars in axis.containers} == {"removed", "FFN channels kept"}


@pytest.mark.parametrize(
    ("space", "bottom"), [((Axis.FFN,), 0.0), ((Axis.FFN, Axis.ATTENTION, Axis.SKIP), -1.04), ((Axis.SKIP,), -1.04)]
)
def test_attention_that_stayed_whole_is_drawn_where_it_might_have_changed(
    figure: Any, space: tuple[Axis, ...], bottom: float
) -> None:
    plan = plan_of(Architecture.of({Site(2, FFN): Option(32)}))
    plan = plan.model_copy(update={"target": plan.target.model_copy(update={"space": space})})
    draw_panels(figure, [("plan", kept_layers(plan, DENSE_UNITS))])
    (axis,) = figure.axes
    assert axis.get_ylim()[0] == pytest.approx(bottom)


@pytest.mark.parametrize("num_layers", [12, 80])
def test_layer_numbers_do_not_crowd(num_layers: int, figure: Any) -> None:
    kept = KeptLayers.of(JOINT, {FFN: [128] * num_layers, ATTENTION: [2] * num_layers})
    draw_panels(figure, [("deep", kept)])
    (axis,) = figure.axes
    assert len(axis.get_xticks()) <= layer_pictures._FEW_LAYERS
    assert len(axis.get_xticks(minor=True)) + len(axis.get_xticks()) >= num_layers


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_plan(plan_of(JOINT), DENSE_UNITS, tmp_path / "plan.png")
    draw_plans([(name, KeptLayers.of(JOINT, DENSE_UNITS)) for name in ("a", "b")], tmp_path / "plans.svg")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert b"</svg>" in (tmp_path / "plans.svg").read_bytes()
