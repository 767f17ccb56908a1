"""What llama.cpp's quantiser makes of tensors whose types are asked for: in layers that file types mix, and in versions
that do not keep to it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from pruning.anatomy.architecture import Architecture, Option, Site
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf import quantise
from pruning.cutting.gguf.options import Quantisation
from pruning.cutting.gguf.planned_types import planned_types
from pruning.cutting.gguf.quantise import PLAIN_FILE_TYPES, export_quantised
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.streaming import publish
from pruning.errors import CheckpointError
from pruning.planning.make_plan import without_bits
from tests.pruning.cut_models import random_ranking
from tests.pruning.packed_models import ATTENTION, FFN, plan_of
from tests.tiny_models import save_tiny_checkpoint, text

DEPTH = 16
MIXED = {0, 1, 4, 7, 10, 13, 14, 15}
"""Of 16 layers, those in which Q4_K_M gives values and down projections q6_k: `use_more_bits` of llama-quant.cpp, the
first two (16 / 8), the last two (from 7 x 16 / 8 on), and those i for which (i - 2) % 3 is 2."""

DEEP = Architecture.of(
    {Site(layer, FFN): Option(288 if layer == 5 else 256, 4) for layer in range(DEPTH)}
    | {Site(layer, ATTENTION): Option(1, 4 if layer % 2 else 8) for layer in range(DEPTH)}
)
"""Rows of 256 values, but for layer 5's down projection and what comes out of attention: 288 and 128."""


@pytest.fixture(scope="module")
def cut_and_planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of the units of `DEEP`, and the types of its tensors."""
    dense = save_tiny_checkpoint(tmp_path_factory.mktemp("deep") / "m", "llama")
    config = text.llama(
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=128,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(dense)
    anatomy, plan = read_anatomy(dense), plan_of(dense, DEEP)
    cut = prune_checkpoint(dense, without_bits(plan, anatomy), random_ranking(anatomy), dense.with_name("cut"))
    return cut, planned_types(cut, plan)


def types_in(file: Path) -> dict[str, str]:
    return {x.name: x.tensor_type.name.lower() for x in GGUFReader(file).tensors}


def test_a_mixture_does_not_reach_what_a_plan_names(
    cut_and_planned: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    cut, planned = cut_and_planned
    export_quantised(cut, tmp_path / "mixed.gguf", Quantisation.Q4_K_M, checks_encoding=False)
    mixed = types_in(tmp_path / "mixed.gguf")
    for name in ("attn_v", "ffn_down"):
        more = {layer for layer in range(DEPTH) if mixed[f"blk.{layer}.{name}.weight"] == "q6_k"}
        assert more == MIXED
    export_quantised(cut, tmp_path / "planned.gguf", Quantisation.Q4_K_M, planned=planned, checks_encoding=False)
    found = types_in(tmp_path / "planned.gguf")
    assert {name: found[name] for name in planned} == planned
    assert set(planned.values()) == {"q4_k", "q4_0", "q8_0"}
    assert mixed["token_embd.weight"] == found["token_embd.weight"]


OF_FILE_TYPES = {Quantisation.Q4_K_M: ("Q4_K", 256), Quantisation.Q8_0: ("Q8_0", 32), Quantisation.Q4_0: ("Q4_0", 32)}
"""The type of most tensors, and how many values it has in a block."""


def where_it_is_the_file_types_own(wanted: Quantisation, kind: str, _row: int) -> bool:
    """ggml-org/llama.cpp#22544."""
    return kind == OF_FILE_TYPES[wanted][0]


def where_rows_do_not_fit_the_file_type(wanted: Quantisation, _kind: str, row: int) -> bool:
    """Before ggml-org/llama.cpp#18952."""
    return row % OF_FILE_TYPES[wanted][1] != 0


Passes = Callable[[Quantisation, str, int], bool]


@pytest.mark.parametrize(
    ("passes", "instead"),
    [
        (where_it_is_the_file_types_own, r"blk\.0\.ffn_down\.weight: q6_k instead of q4_k"),
        (where_rows_do_not_fit_the_file_type, r"blk\.\d+\.attn_output\.weight: q5_0 instead of (q8_0|q4_0)"),
    ],
)
def test_versions_that_pass_over_types_are_found_out(
    passes: Passes,
    instead: str,
    cut_and_planned: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The installed quantiser, without the types that such a version passes over; with file types that are no mixtures
    those, too, give every tensor its type."""
    pytest.importorskip("llama_cpp")
    cut, planned = cut_and_planned
    real = quantise._quantise

    def older(whole: Path, out: Path, wanted: Quantisation, types: Mapping[str, str]) -> None:
        rows = {x.name: int(x.shape[0]) for x in GGUFReader(whole).tensors}
        real(whole, out, wanted, {n: kind for n, kind in types.items() if not passes(wanted, kind, rows[n])})

    monkeypatch.setattr(quantise, "_quantise", older)
    with pytest.raises(CheckpointError, match=rf"with --quantise Q4_K_M, .*{instead}.*Take --quantise Q8_0 or Q4_0"):
        export_quantised(cut, tmp_path / "a.gguf", Quantisation.Q4_K_M, planned=planned, checks_encoding=False)
    assert list(tmp_path.iterdir()) == []
    for wanted in PLAIN_FILE_TYPES:
        export_quantised(cut, tmp_path / wanted, wanted, planned=planned, checks_encoding=False)
        found = types_in(tmp_path / wanted)
        assert {name: found[name] for name in planned} == planned


@pytest.mark.parametrize("way", ["planned", "tensor_types"])
def test_a_quantiser_that_quantises_nothing_leaves_nothing(
    way: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "require_llama_cpp", lambda: None)
    monkeypatch.setattr(quantise, "_quantise", lambda whole, out, _wanted, _types: shutil.copyfile(whole, out))
    asked = {way: {"blk.0.attn_q.weight": "q8_0", "blk.1.attn_k.weight": "f16"}}
    with pytest.raises(
        CheckpointError,
        match=r"types that are asked for .*1 of 2 have others .*blk\.0\.attn_q\.weight: f16 instead of q8_0.*Install",
    ):
        export_quantised(
            checkpoint,
            tmp_path / "a.gguf",
            Quantisation.Q8_0,
            mmproj=tmp_path / "b.gguf",
            checks_encoding=False,
            **asked,
        )
    assert list(tmp_path.iterdir()) == []
    # What rows do not fit, llama.cpp gives another type, whoever asks.
    asked = {way: {"blk.0.ffn_down.weight": "q8_0"}}
    export_quantised(checkpoint, tmp_path / "a.gguf", Quantisation.Q8_0, checks_encoding=False, **asked)  # type: ignore[arg-type]


def test_the_vision_part_appears_with_the_language_model_or_not_at_all(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "require_llama_cpp", lambda: None)
    monkeypatch.setattr(quantise, "_quantise", lambda whole, out, _wanted, _types: shutil.copyfile(whole, out))
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    out, seen = tmp_path / "x" / "a.gguf", tmp_path / "y" / "b.gguf"
    rename, done = publish._rename_to_new, list[Path]()

    def interrupted(draft: Path, place: Path) -> None:
        if place == out:
            assert seen.is_file()
            raise KeyboardInterrupt
        rename(draft, place)
        done.append(place)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_rename_to_new", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_quantised(checkpoint, out, Quantisation.Q8_0, mmproj=seen, checks_encoding=False)
    # The place of the vision part is the first to be taken, and it is given back.
    assert done[-1] == seen
    assert [*out.parent.iterdir(), *seen.parent.iterdir()] == []
    made = export_quantised(checkpoint, out, Quantisation.Q8_0, mmproj=seen, checks_encoding=False)
    assert (made.file_bytes, made.mmproj_bytes) == (out.stat().st_size, seen.stat().st_size)
    assert [*out.parent.iterdir(), *seen.parent.iterdir()] == [out, seen]
