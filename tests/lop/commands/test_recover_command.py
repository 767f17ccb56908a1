"""`lop recover` as a user types it."""

import json
from pathlib import Path

import pytest

from tests.lop.commands.typed import typed
from tests.recovery.conftest import Cut
from tests.recovery.conftest import cut as cut


def lop_recover(monkeypatch: pytest.MonkeyPatch, cut: Cut, out: Path, *options: object) -> int:
    words = ("recover", cut.pruned, "--teacher", cut.dense, "--data", cut.data, "--out", out)
    return typed(monkeypatch, *words, *options)


def test_a_recovery_and_its_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: Cut, tmp_path: Path
) -> None:
    out, plot = tmp_path / "out", tmp_path / "curves.png"
    assert lop_recover(monkeypatch, cut, out, "--mode", "full", "--fraction", "0.5", "--plot", plot, "--json") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["data"]["conversations"] == 7
    assert report["recipe"]["losses"] == {"sft": 1.0, "kd-hidden": 1.0}
    assert report == {"out": str(out), **json.loads((out / "lop_recovery.json").read_text())}
    assert "2 of the 16 conversations" in printed.err
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert lop_recover(monkeypatch, cut, out, "--mode", "full") == 2
    assert "the output folder must not exist yet" in capsys.readouterr().err


def test_options_that_break_a_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: Cut, tmp_path: Path
) -> None:
    for options, message in (
        (("--loss", "mse"), "a loss is a sum of sft"),
        (("--mode", "adapter"), "a recipe's mode must be valid"),
        (("--fraction", "0"), "a recipe's fraction must be valid"),
        (("--loss", "kd-logits", "--temperature", "0"), "a recipe's temperature must be valid"),
        (("--mode", "full", "--validation", cut.data), "must be different conversations"),
    ):
        assert lop_recover(monkeypatch, cut, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err


def test_the_dense_models_own_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: Cut, tmp_path: Path
) -> None:
    """Questions without answers are refused with the command that answers them; what it writes is then trained on."""
    items = json.loads(cut.data.read_text())
    for index, item in enumerate(items):
        item["conversations"] = [{"from": "human", "value": f"what is it {index}?"}]
        item.pop("image", None)
        item["kinds" if index % 2 else "category"] = ["odd"] if index % 2 else "even"
    prompts, answered = tmp_path / "prompts.json", tmp_path / "answered.json"
    prompts.write_text(json.dumps(items))
    words = ("recover", cut.pruned, "--teacher", cut.dense, "--out", tmp_path / "out", "--mode", "full", "--steps", "1")
    assert typed(monkeypatch, *words, "--data", prompts) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "a conversation ends with an answer" in said
    assert "lop data answer --model DENSE --prompts FILE" in said
    ask = ("data", "answer", "--model", cut.dense, "--prompts", prompts, "--out", answered, "--max-new-tokens", "4")
    assert typed(monkeypatch, *ask) == 0
    found = json.loads(answered.read_text())
    assert [item.get("kinds", item.get("category")) for item in found][:2] == ["even", ["odd"]]
    capsys.readouterr()
    own = ("--loss", "kd-logits", "--temperature", "1")
    assert typed(monkeypatch, *words, "--data", answered, *own, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["recipe"]["losses"], report["recipe"]["temperature"]) == ({"kd-logits": 1.0}, 1.0)
    assert report["data"]["conversations"] + report["data"]["selection_conversations"] == len(found)
    assert report["selection"]["by_kind"].keys() <= {"odd", "even"}
