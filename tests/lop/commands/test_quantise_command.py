"""`lop quantise` as a user types it."""

import json
import sys
from pathlib import Path

import pytest

from lop.cli import main
from pruning.cutting.rewriting.quantise_checkpoint import REPORT_NAME
from tests.tiny_models import save_tiny_checkpoint


def lop(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lop", "quantise", *map(str, words)])
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


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
