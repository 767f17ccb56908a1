"""A disk that fills up while weights are made anew or written: told, nothing half-written, gone on with."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.anatomy.architecture import Architecture, Option, Site
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.rewriting import block_files
from pruning.cutting.streaming import shard_writer, solved
from pruning.cutting.streaming.solved import solved_folder
from tests.lop.commands.typed import typed
from tests.pruning.cut_models import random_ranking
from tests.pruning.packed_models import ATTENTION, FFN, plan_of, save_wide_checkpoint

UNITS = Architecture.of({Site(0, FFN): Option(32), Site(1, ATTENTION): Option(1), Site(3, FFN): Option(32)})
PACKED = Architecture.of({Site(0, FFN): Option(32, 4), Site(1, FFN): Option(64, 4), Site(3, FFN): Option(64, 8)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and plans for it with their ranking beside them. Read-only."""
    folder = tmp_path_factory.mktemp("place")
    model = save_wide_checkpoint(folder)
    for name, architecture in (("units", UNITS), ("bits", PACKED)):
        (folder / f"{name}.json").write_text(plan_of(model, architecture).to_json())
        (folder / f"{name}.ranking.safetensors").write_bytes(random_ranking(read_anatomy(model)).to_bytes())
    return folder


def full_at(original: Callable[..., Any], call: int) -> Callable[..., Any]:
    """`original`, but there is no room any more from that call on."""
    calls = 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    return full


SPARSIFY = ("sparsify", "m", "-s", "0.5", "-d", "DATA")
NEAREST = ("quantise", "m")
GPTQ = ("quantise", "m", "-d", "DATA")
RECONSTRUCT = ("apply", "--model", "m", "--plan", "units.json", "--reconstruct", "DATA")
BY_PLAN = ("apply", "--model", "m", "--plan", "bits.json", "--data", "DATA")


@pytest.mark.parametrize("writing", [False, True], ids=["solving", "writing"])
@pytest.mark.parametrize(
    ("words", "what", "kept", "before"),
    [
        pytest.param(SPARSIFY, "sparsified", block_files, 1, id="sparsify"),
        pytest.param(NEAREST, "quantised", block_files, 0, id="quantise"),
        pytest.param(GPTQ, "quantised", block_files, 0, id="gptq"),
        pytest.param(RECONSTRUCT, "pruned", solved, 1, id="reconstruct"),
        pytest.param(BY_PLAN, "pruned", block_files, 0, id="apply-gptq"),
    ],
)
def test_what_is_finished_is_gone_on_with(
    words: tuple[str, ...],
    what: str,
    kept: Any,
    before: int,
    writing: bool,
    place: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the second layer is kept, and in the midst of the weight file: layers that were finished are not made
    again, and the output is to the byte that of a run that nothing stopped.

    `kept` is the module that keeps layers, and `before` how many files it keeps before the first: ratios, or its state.
    """
    if "quantise" in words or "bits.json" in words:
        pytest.importorskip("compressed_tensors")
    monkeypatch.chdir(place)
    own = [str(data) if word == "DATA" else word for word in words]
    own += ["--conversations", "4"] if "DATA" in words else []
    with monkeypatch.context() as patch:
        if writing:
            patch.setattr(shard_writer, "_write", full_at(shard_writer._write, 3))
        else:
            patch.setattr(kept, "replace_file", full_at(kept.replace_file, before + 2))
        assert typed(patch, *own, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"error: the disk must have room for the {what} checkpoint" in message
    assert f"{os.strerror(errno.ENOSPC)})" in message
    assert f"What is finished is in {solved_folder(tmp_path / 'out')}: run the same command to go on" in message
    assert [path.name for path in tmp_path.iterdir()] == [solved_folder(tmp_path / "out").name]
    finished = set(solved_folder(tmp_path / "out").rglob("*.safetensors"))
    assert len(finished) > 1 if writing else len(finished) == 1
    put: list[Path] = []
    original = kept.replace_file

    def noted(path: Path, content: bytes) -> None:
        put.append(path)
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(kept, "replace_file", noted)
        assert typed(patch, *own, "--out", tmp_path / "out") == 0
    assert not set(put) & finished
    assert bool(put) is not writing
    assert typed(monkeypatch, *own, "--out", tmp_path / "whole") == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
