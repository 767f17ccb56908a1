"""`lop sparsify` as a user types it, and where the densities of layers come from."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lop.cli import main
from lop.workflows.sparsifying import ecoflap_densities, owl_densities
from pruning.cutting.rewriting.blocks import Block, Part, Projection
from pruning.cutting.rewriting.source import SPARSITY_REPORT
from pruning.errors import InputError
from tests.tiny_models import write_conversations


def lop(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lop", "sparsify", *map(str, words)])
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def blocks(*sizes: int, part: Part = Part.LANGUAGE) -> list[Block]:
    return [Block(part, i, (Projection(f"{part}.{i}", "up", (size, 1), "F32", "up"),)) for i, size in enumerate(sizes)]


def test_ecoflap_takes_back_what_it_gave_too_much() -> None:
    """600 of 1,000 weights stay. At least .5 of each layer, 500, and 100 by score, 3 : 1, are 75 and 25; with scores
    that are all of one layer it becomes full at 300 more, of which only 100 are there. Never a weight too many."""
    asked = [*blocks(300, part=Part.VISION), *blocks(700)]
    scores = {Part.VISION: np.array([3.0]), Part.LANGUAGE: np.array([1.0])}
    assert ecoflap_densities(asked, scores, 0.6) == [pytest.approx(225 / 300), pytest.approx(375 / 700)]
    # Shares of a third are rounded up, three times: 101 + 101 + 101 of 301, and two go back.
    own = ecoflap_densities(blocks(1000, 1000, 1000), {Part.LANGUAGE: np.ones(3)}, 0.5 + 1 / 3000)
    assert sum(round(x * 1000) for x in own) == 1501


def test_owl_keeps_more_of_layers_with_outliers() -> None:
    """Shares 0, .01 and .02 become 0, .08 and .16; their mean is .08. Vision layers keep the whole's density."""
    own = owl_densities([*blocks(9, part=Part.VISION), *blocks(100, 100, 100)], np.array([0.0, 0.01, 0.02]), 0.5)
    assert own == [0.5, pytest.approx(0.42), pytest.approx(0.5), pytest.approx(0.58)]
    with pytest.raises(InputError, match="must stay between 0 and 1"):
        owl_densities(blocks(100, 100), np.array([0.0, 0.02]), 0.95)


def test_the_whole_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    """Ratios of both parts together, and what is warned of: 32 to 48 inputs, and fewer tokens than that."""
    data, out = write_conversations(tmp_path / "data", 2), tmp_path / "out"
    words = (checkpoint, "--out", out, "-d", data, "-s", 0.5, "--ratios", "ecoflap", "--modules", "all")
    assert lop(monkeypatch, *words, "--score-tokens", 3, "--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["density"] == pytest.approx(0.5, abs=1e-3)
    settings = {"seed": 0, "conversations": 32, "answer_tokens": 3, "extra_sparsity": 0.1}
    assert found["ratios"] == {"name": "ecoflap", **settings}
    assert json.loads((out / "config.json").read_text())["lop_sparsity"]["ratios"] == found["ratios"]
    densities = {x["density"] for x in json.loads((out / SPARSITY_REPORT).read_text())["layers"]}
    assert len(densities) == 6
    assert min(densities) > 0.39
    assert "Use more conversations" in printed.err


def test_a_damping_that_could_not_be_chosen_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    """Two conversations are one batch, so nothing of the vision tower is held out; of the decoder the second one is."""
    data = write_conversations(tmp_path / "data", 2)
    words = (checkpoint, "-d", data, "-s", 0.5, "--method", "sparsegpt")
    told = {}
    for modules, options in {"language": (), "all": (), "one": ("--conversations", 1)}.items():
        place = ("--out", tmp_path / modules, "--modules", modules.replace("one", "language"))
        assert lop(monkeypatch, *words, *place, *options) == 0
        told[modules] = [line for line in capsys.readouterr().err.splitlines() if "their damping" in line]
    assert told["language"] == []
    assert "of 12 of 40 projections nothing was held out to choose their damping by: it is 0.1" in told["all"][0]
    assert "of 28 of 28 projections" in told["one"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "neither a sparsity nor a pattern"),
        (("-s", 0.5, "--pattern", "2:4"), "a sparsity and a pattern"),
        (("--pattern", "2:4", "--ratios", "owl"), "with a pattern all layers have the same density"),
        (("-s", 0.5, "--ratios", "owl", "--modules", "vision"), "OWL says nothing of vision layers"),
        (("-s", 0.5, "--score-tokens", 8), "--score-tokens 8 --ratios uniform"),
        (("-s", 1.0), "a sparsity is at least 0 and below 1"),
        (("-s", 0.5, "--method", "magic"), "Known are wanda, sparsegpt"),
    ],
)
def test_what_contradicts_itself(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[object, ...],
    message: str,
) -> None:
    """Before anything is read."""
    assert lop(monkeypatch, tmp_path / "no", "--out", tmp_path / "out", "-d", tmp_path / "none.json", *words) == 2
    assert message in capsys.readouterr().err
