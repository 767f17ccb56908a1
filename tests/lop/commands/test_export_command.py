"""`lop export gguf` as a user types it."""

import errno
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader

from lop.cli import main
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf import tensor_types
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.streaming import publish
from tests.lop.commands.typed import lop_apply
from tests.pruning.cut_models import random_ranking
from tests.pruning.packed_models import JOINT, plan_of, save_wide_checkpoint
from tests.pruning.tokenizer_files import with_merged_digits
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model")


Lop = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lop(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lop:
    """Run `lop export gguf ARGUMENTS`; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lop", "export", "gguf", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capfd.readouterr())

    return run


def test_both_files_and_what_is_said_of_them(lop: Lop, checkpoint: Path, tmp_path: Path) -> None:
    words = ("-m", checkpoint, "-o", tmp_path / "a.gguf", "--mmproj", tmp_path / "b.gguf", "--type", "q8_0", "--json")
    code, out, err = lop(*words)
    assert code == 0, err
    found = json.loads(out)
    assert found["ffn_widths"] == [48] * 4
    assert (found["architecture"], found["heads"], found["kv_heads"]) == ("llama", [4] * 4, [2] * 4)
    assert found["file_bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert found["mmproj_bytes"] == (tmp_path / "b.gguf").stat().st_size
    assert found["tokenizer_differences"] in (0, None)
    assert found["tensors"] == len(GGUFReader(tmp_path / "a.gguf").tensors)
    # The widths 48 of the decoder, and what has rows of 16 in the tower.
    assert found["f16_fallbacks"] > 4
    assert f"{found['f16_fallbacks']} matrices are f16" in err
    assert "#25814" in err
    assert found["card"] == str(tmp_path / "README.md")
    assert "llama-mtmd-cli -m a.gguf --mmproj b.gguf" in (tmp_path / "README.md").read_text()


def test_a_folder_in_few_bits_keeps_them(lop: Lop, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    wide = save_wide_checkpoint(tmp_path / "wide")
    plan, ranking = plan_of(wide, JOINT), random_ranking(read_anatomy(wide))
    folder = prune_checkpoint(wide, plan, ranking, tmp_path / "packed")
    code, out, err = lop("-m", folder, "-o", tmp_path / "a.gguf", "--json")
    assert code == 0, err
    types = json.loads(out)["types"]
    # Three projections of an FFN are in 8 bits; four of an attention and three of another FFN in 4.
    assert (types["Q8_0"], types["Q4_0"]) == (3, 7)
    assert types == dict(Counter(x.tensor_type.name for x in GGUFReader(tmp_path / "a.gguf").tensors))
    assert "matrices in f16, those in few bits in q8_0 and q4_0." in (tmp_path / "README.md").read_text()


def test_bits_of_a_plan_say_types_for_llama_quantize(lop: Lop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a plan with bits to a file of plain numbers and the types beside it, and to a quantised file."""
    wide, plan = save_wide_checkpoint(tmp_path / "wide"), tmp_path / "plan.json"
    plan.write_text(plan_of(wide, JOINT).to_json())
    plan.with_suffix(".ranking.safetensors").write_bytes(random_ranking(read_anatomy(wide)).to_bytes())
    assert lop_apply(monkeypatch, plan, wide, "--method", "none") == 0
    cut, types = tmp_path / "out", tmp_path / "types"
    words = ("-m", cut, "-p", plan)
    code, out, err = lop(*words, "-o", tmp_path / "a.gguf", "--types-out", types, "--bits-as", "4=q4_0", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["tensor_types"] == str(types)
    assert set(found["types"]) == {"F16", "F32"}
    named = [line.rpartition("=") for line in types.read_text().splitlines()]
    assert Counter(kind for _, _, kind in named) == {"q8_0": 3, "q4_0": 7, "f16": 14}
    for options, message in (
        (("--types-out", types), "must not exist yet"),
        (("--types-out", tmp_path / "b", "--type", "q8_0"), "Export as f16, bf16 or f32"),
        (("--types-out", tmp_path / "b", "--bits-as", "4=q9"), "BITS=TYPE"),
        ((), "Give --quantise or --types-out"),
        (("--types-out", tmp_path / "b", "--quantise", "Q4_K_M"), "Give one of them"),
    ):
        code, out, err = lop(*words, "-o", tmp_path / "b.gguf", *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
        assert not (tmp_path / "b.gguf").exists()
    for option in ("--types-out", "--bits-as"):
        code, _, err = lop("-m", cut, "-o", tmp_path / "b.gguf", option, "4=q4_0")
        assert (code, f"{option} is for --plan" in err) == (2, True)
    pytest.importorskip("llama_cpp")
    code, out, err = lop(*words, "-o", tmp_path / "k.gguf", "--quantise", "Q8_0", "--json")
    assert code == 0, err
    kinds = {x.name: x.tensor_type.name for x in GGUFReader(tmp_path / "k.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["blk.3.ffn_down.weight"] == "F16"
    # What a user names is what the user says, also of tensors that the plan leaves as they are; the rest is the plan's.
    own = tmp_path / "own"
    own.write_text("blk\\.0\\.ffn_down=q5_1\nblk\\.[03]\\.ffn=q4_1\n")
    code, out, err = lop(*words, "-o", tmp_path / "o.gguf", "--quantise", "Q8_0", "--tensor-types", own)
    assert code == 0, err
    found = {x.name: x.tensor_type.name for x in GGUFReader(tmp_path / "o.gguf").tensors}
    asked = {"blk.0.ffn_down.weight": "Q5_1"}
    asked |= {f"blk.{n}.weight": "Q4_1" for n in ("0.ffn_gate", "0.ffn_up", "3.ffn_gate", "3.ffn_up")}
    # Rows of 48 values are of no type with blocks of 32.
    assert found == kinds | asked | {"blk.3.ffn_down.weight": "F16"}
    # Without its types there is no file, and the types do not come without it.
    monkeypatch.setattr(publish, "_rename_to_new", full_disk)
    code, _, err = lop(*words, "-o", tmp_path / "p.gguf", "--types-out", tmp_path / "p.types")
    assert (code, "must have room for the export" in err) == (2, True)
    assert not list(tmp_path.glob("*p.*"))


def full_disk(_draft: Path, _out: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_users_mistake_is_one_line(lop: Lop, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    code, out, err = lop("-m", checkpoint, "-o", tmp_path / "a.gguf")
    assert (code, out) == (2, "")
    assert err.startswith("error: the output file must not exist yet")
    assert err.count("\n") == 1


def test_a_wrong_vocabulary_is_refused_unless_it_is_wanted(lop: Lop, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = with_merged_digits(checkpoint, tmp_path / "m")
    words = ("-m", folder, "-o", tmp_path / "a.gguf", "--pre-tokenizer", "qwen2")
    code, _, err = lop(*words)
    assert code == 2
    assert err.startswith("error: llama.cpp must encode text as transformers does")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    code, out, err = lop(*words, "--no-check", "--json")
    assert code == 0, err
    assert json.loads(out)["tokenizer_differences"] is None


def test_without_the_extra(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pruning.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lop-service\[gguf\]"'):
        tensor_types.require_gguf()
