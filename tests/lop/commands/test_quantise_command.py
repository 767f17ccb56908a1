"""`lop quantise` as a user types it."""

import json
from pathlib import Path

import pytest

from pruning.checkpoints.loading import load_pruned
from pruning.cutting.rewriting.quantise_checkpoint import REPORT_NAME
from tests.lop.commands.typed import typed
from tests.pruning.cut_models import logits_of, text_inputs
from tests.pruning.packed_models import save_cut_checkpoint, save_wide_checkpoint
from tests.tiny_models import save_tiny_checkpoint


def lop(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    return typed(monkeypatch, "quantise", *words)


def test_bits_of_each_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    """GPTQ where there are data, rounding to nearest where there are none."""
    pytest.importorskip("compressed_tensors")
    folder = save_tiny_checkpoint(tmp_path / "model", ffn_width=64)
    words = (folder, "--out", tmp_path / "out", "--bits", "8,4,4,8")
    assert lop(monkeypatch, *words, "-d", data, "--conversations", 4, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["bits"]) == ("gptq", [8, 4, 4, 8])
    assert json.loads((tmp_path / "out" / REPORT_NAME).read_text())["calibration"] == found["calibration"]
    assert lop(monkeypatch, folder, "--out", tmp_path / "nearest", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["bits"], found["calibration"]) == ("rtn", [4] * 4, None)


def test_what_was_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    """Sub-layers of other sizes, and skipped ones: sparsified, and quantised in either way."""
    pytest.importorskip("compressed_tensors")
    cut, sparse = save_cut_checkpoint(tmp_path / "cut", save_wide_checkpoint(tmp_path)), tmp_path / "sparse"
    words = (cut, "--out", sparse, "-d", data, "--conversations", 4)
    for ratios in ("owl", "ecoflap"):
        assert typed(monkeypatch, "sparsify", *words, "-s", 0.5, "--ratios", ratios) == 2
        assert f"--ratios {ratios}, {cut} is cut" in capsys.readouterr().err
    assert typed(monkeypatch, "sparsify", *words, "--pattern", "2:4") == 0
    assert "files, memory and speed are those of " in capsys.readouterr().out
    text = logits_of(load_pruned(cut), text_inputs()).float()
    assert load_pruned(sparse).config.lop_sparsity["pattern"] == "2:4"
    for source, out, options in ((cut, "nearest", ()), (cut, "gptq", ("-d", data)), (sparse, "both", ("-d", data))):
        assert lop(monkeypatch, source, "--out", tmp_path / out, "--bits", 8, *options) == 0
        assert "warning: 2 projections stay as they are" in capsys.readouterr().err
        found = logits_of(load_pruned(tmp_path / out), text_inputs()).float()
        close = float((found - text).norm() / text.norm()) < 0.05
        assert close is (source is cut)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bits", "four"), "--bits is one number"),
        (("--conversations", 3), "--conversations is of --data"),
        (("--method", "awq"), "Known are rtn, gptq"),
    ],
)
def test_what_contradicts_itself(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[object, ...],
    message: str,
) -> None:
    assert lop(monkeypatch, tmp_path / "no", "--out", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
