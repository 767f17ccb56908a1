"""Exported files, run by llama.cpp itself, against transformers. Skipped where llama-cpp-python is not installed."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_pruned
from pruning.cutting.gguf.answer_ends import _KNOWN_ENDS
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.llama_runtime import LlamaRuntime, LlamaVocabulary
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.gguf.tensor_types import Float32Array
from pruning.cutting.gguf.tokenizer_check import encoding_differences
from pruning.cutting.gguf.tokenizer_reader import read_vocabulary
from pruning.cutting.gguf.writer import GgufFile, write_gguf
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import CheckpointError, MissingExtraError, UnsupportedModelError
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from tests.pruning import sentencepiece_files
from tests.pruning.cut_models import WIDTHS, kept_groups, random_ranking
from tests.pruning.tokenizer_files import with_merged_digits
from tests.tiny_models import save_tiny_checkpoint, text, tiny_processor

pytest.importorskip("llama_cpp")

TOKENS = [17, 40, 9, 77, 31, 52, 64, 8, 25, 90, 13]


class TableGelu(torch.nn.Module):
    """llama.cpp's GELU: looked up in a table of half precision, up to 10."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()
        return torch.where(values >= 10, values, found)


def logits_of(model: PreTrainedModel) -> Float32Array:
    kind = model.config.get_text_config(decoder=True).model_type
    if kind == "gemma3_text":
        for layer in model.get_decoder().layers:
            if hasattr(layer.mlp, "act_fn"):
                layer.mlp.act_fn = TableGelu()
    if kind in ("qwen2_vl_text", "qwen2_5_vl_text"):
        for module in model.get_decoder().modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.0  # which llama.cpp's qwen2vl forgets to read
    with torch.inference_mode():
        found: Float32Array = model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    return found


def exported_logits(folder: Path, file: Path, tensor_type: TensorType = TensorType.F32) -> Float32Array:
    export_gguf(folder, file, tensor_type=tensor_type)
    with LlamaRuntime(file, context_length=64, exact_cache=True) as runtime:
        return runtime.logits(TOKENS)


def cut(
    folder: Path,
    out: Path,
    *,
    compensates: bool = False,
    widths: Sequence[int] = WIDTHS,
    kv_groups: Sequence[int] | None = None,
) -> PreTrainedModel:
    """The checkpoint with widths and KV groups that differ by layer, written to `out`."""
    anatomy = read_anatomy(folder)
    ranking = random_ranking(anatomy)
    if compensates:
        rng = np.random.default_rng(1)
        means = tuple(rng.normal(size=x.ffn_width).astype(np.float32) for x in anatomy.layers)
        ranking = replace(ranking, ffn_means=means)
    plan = make_plan(
        anatomy,
        anatomy.architecture(widths, kv_groups or kept_groups(anatomy)),
        model_id="tiny",
        target=PlanTarget(sparsity=0.3),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
        compensates=compensates,
    )
    prune_checkpoint(folder, plan, ranking, out)
    return load_pruned(out, dtype=torch.float32)


@pytest.mark.parametrize(
    "family",
    [
        "llava-llama",
        "llava-llama-tied",
        "llava-llama-biases",
        "llava-mistral",  # heads wider than D / H
        "llava-qwen2",  # biases of queries and keys, which are rotated too
        "llava-next",
        "internvl-qwen2",
        "smolvlm",
        "llama",
        "qwen2",  # a language model alone, tied
        "qwen2-vl",  # one width for all layers: filled up with zeros
        "qwen2.5-vl",
        "llava-qwen3",
        "qwen3",
        "qwen3-vl",
    ],
)
def test_a_pruned_model_computes_the_same_logits(tmp_path: Path, family: str) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    with torch.no_grad():
        model = cut(folder, tmp_path / "cut")
    expected = logits_of(model)
    found = exported_logits(tmp_path / "cut", tmp_path / "a.gguf")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("widths", "kv_groups", "heads"),
    [
        ([16, 8, 48, 40], [1, 2, 0, 2], [2, 4, 0, 4]),
        ([16, 8, 48, 40], [0, 2, 1, 0], [1, 4, 2, 0]),  # the first has a head of zeros
        ([0, 8, 48, 0], [1, 2, 2, 2], [2, 4, 4, 4]),  # as many channels of zeros as q8_0 needs
        ([16, 0, 40, 0], [0, 0, 2, 0], [1, 4]),
        ([48, 48, 0, 0], [2, 2, 0, 0], [4, 4]),  # two ordinary layers are left
    ],
)
@pytest.mark.parametrize("family", ["llava-llama-biases", "qwen2"])
def test_a_model_that_skips_computes_the_same_logits(
    tmp_path: Path, family: str, widths: list[int], kv_groups: list[int], heads: list[int]
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    expected = logits_of(cut(folder, tmp_path / "cut", widths=widths, kv_groups=kv_groups))
    found = exported_logits(tmp_path / "cut", tmp_path / "a.gguf")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    made = export_gguf(tmp_path / "cut", tmp_path / "b.gguf", tensor_type=TensorType.Q8_0)
    assert list(made.sizes.heads) == heads
    assert made.architecture == ("llama" if heads == [4, 4] else "deci")
    assert sum("of zeros" in note for note in made.notes) == (heads[0] == 1) + (widths[0] == 0)
    with LlamaRuntime(tmp_path / "b.gguf", context_length=64) as runtime:
        assert np.abs(runtime.logits(TOKENS) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3", "qwen3-vl"])
def test_skips_of_layers_of_one_size_are_zeros(tmp_path: Path, family: str) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    model = cut(folder, tmp_path / "cut", widths=[16, 0, 0, 40], kv_groups=[0, 1, 0, 1])
    expected = logits_of(model)
    found = exported_logits(tmp_path / "cut", tmp_path / "a.gguf")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    made = export_gguf(tmp_path / "cut", tmp_path / "b.gguf", tensor_type=TensorType.Q8_0)
    # Of 16, 0 and 40, in blocks of 32. The two first of a Qwen3-VL stay for what they see of pictures.
    assert made.sizes.ffn_widths == (64,) * 3
    note = made.notes[0]
    # Of 4 heads, 2 or all of which a layer has in the file.
    assert ("71% of FFN channels and 67% of heads" if family == "qwen2.5-vl" else "71% of FFN channels and 33%") in note


@pytest.mark.parametrize(
    ("widths", "kv_groups"),
    [
        ([48, 48, 48, 48], [2, 2, 2, 2]),
        ([16, 8, 48, 40], [1, 2, 1, 1]),
        ([16, 0, 0, 40], [0, 1, 0, 1]),
        ([16, 48, 40, 0], [2, 1, 1, 0]),  # the one that sees all tokens is gone
        ([0, 0, 0, 40], [0, 0, 0, 1]),  # it is left alone
    ],
    ids=str,
)
def test_gemma3_computes_the_same_logits(tmp_path: Path, widths: list[int], kv_groups: list[int]) -> None:
    """Windows, bases and the scale of scores are such that all of them matter: a window is shorter than the prompt."""
    config = text.gemma3(
        query_pre_attn_scalar=36,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        },
    )
    folder = save_tiny_checkpoint(tmp_path / "dense", "gemma3-text")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name or "proj" in name else 0.1)
    model.save_pretrained(folder)
    expected = logits_of(cut(folder, tmp_path / "cut", widths=widths, kv_groups=kv_groups))
    found = exported_logits(tmp_path / "cut", tmp_path / "a.gguf")
    # A value between two entries of the table may round to either.
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("family", "width", "groups", "of_file", "note"),
    [
        ("qwen3", 32, 1, (32, 1), None),
        ("qwen3", 40, 1, (64, 1), "38% of FFN channels in the file"),
        ("qwen2-vl", 32, 1, (32, 2), "50% of heads in the file"),  # which its heads must have
    ],
)
def test_what_plans_of_equal_widths_are_filled_up_to(
    tmp_path: Path, family: str, width: int, groups: int, of_file: tuple[int, int], note: str | None
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    expected = logits_of(cut(folder, tmp_path / "cut", widths=[width] * 4, kv_groups=[groups] * 4))
    made = export_gguf(tmp_path / "cut", tmp_path / "a.gguf", tensor_type=TensorType.F32)
    assert (set(made.sizes.ffn_widths), set(made.sizes.kv_heads)) == ({of_file[0]}, {of_file[1]})
    assert [x for x in made.notes if "zeros" in x] == [x for x in made.notes if note is not None and note in x]
    with LlamaRuntime(tmp_path / "a.gguf", context_length=64, exact_cache=True) as runtime:
        assert np.abs(runtime.logits(TOKENS) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["qwen3", "qwen2.5-vl"])
def test_biases_that_an_architecture_does_not_read(tmp_path: Path, family: str) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    cut(folder, tmp_path / "cut", compensates=True)
    with pytest.raises(UnsupportedModelError, match=r"qwen.* architecture .*layer 0 has mlp\.down_proj\.bias"):
        export_gguf(tmp_path / "cut", tmp_path / "a.gguf")


def test_biases_that_a_plan_adds(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", "llava-llama")
    model = cut(folder, tmp_path / "cut", compensates=True)
    biases = [layer.mlp.down_proj.bias for layer in model.model.language_model.layers]
    assert [bias is not None for bias in biases] == [width < 48 for width in WIDTHS]
    expected = logits_of(model)
    found = exported_logits(tmp_path / "cut", tmp_path / "a.gguf")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_scaled_rotary_embeddings(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = language_model(tmp_path / "m", rope_parameters={"rope_theta": 10000.0, **rope})
    plain = language_model(tmp_path / "plain")
    expected = logits_of(model)
    assert np.abs(logits_of(plain) - expected).max() > 1e-3 * np.abs(expected).max(), "the scaling must matter"
    found = exported_logits(tmp_path / "m", tmp_path / "a.gguf")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def language_model(folder: Path, **changed: Any) -> PreTrainedModel:
    """A random Llama of ordinary scale, whose attention says something."""
    save_tiny_checkpoint(folder, "llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(text.llama(max_position_embeddings=256, **changed)).eval()
    for name, parameter in model.named_parameters():
        if "proj" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("tensor_type", "tolerance"), [(TensorType.F16, 5e-3), (TensorType.BF16, 5e-2), (TensorType.Q8_0, 1e-1)]
)
def test_smaller_types_are_nearly_as_good(tmp_path: Path, tensor_type: TensorType, tolerance: float) -> None:
    expected = logits_of(language_model(tmp_path / "m"))
    found = exported_logits(tmp_path / "m", tmp_path / "a.gguf", tensor_type)
    assert 0 < np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_the_tokenizer_encodes_alike(tmp_path: Path, checkpoint: Path) -> None:
    export_gguf(checkpoint, tmp_path / "a.gguf")
    assert encoding_differences(checkpoint, tmp_path / "a.gguf") == []


def test_a_difference_in_the_tokenizer_is_found(tmp_path: Path, checkpoint: Path) -> None:
    export_gguf(checkpoint, tmp_path / "a.gguf")
    (tmp_path / "other").mkdir()
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:-1]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(document))
    shutil.copy(checkpoint / "tokenizer_config.json", tmp_path / "other")
    found = encoding_differences(tmp_path / "other", tmp_path / "a.gguf", (" three", "1"))
    assert [x.text for x in found] == [" three"]
    assert len(found[0].transformers) > len(found[0].llama_cpp)


@pytest.mark.parametrize("with_model_file", [False, True])
def test_a_sentencepiece_tokenizer_encodes_alike(tmp_path: Path, with_model_file: bool) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llama")
    tokenizer = sentencepiece_files.tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(text.llama(vocab_size=len(tokenizer) + 3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if with_model_file:
        sentencepiece_files.write_model(folder / "tokenizer.model")
    export_gguf(folder, tmp_path / "a.gguf")
    words = ("the cat sat there", "that hat rests", "a  cat", "the dog\n\u00fc \U0001f642", "there<image>the cat", "")
    assert encoding_differences(folder, tmp_path / "a.gguf", words) == []
    with LlamaVocabulary(tmp_path / "a.gguf") as vocabulary:
        assert vocabulary.encode("the cat") == [1, *tokenizer.convert_tokens_to_ids(["\u2581the", "\u2581cat"])]
        (tmp_path / "m" / "tokenizer.json").unlink()
        if with_model_file:  # what is left says the same
            export_gguf(folder, tmp_path / "b.gguf")
            with LlamaVocabulary(tmp_path / "b.gguf") as alone:
                assert [alone.encode(x) for x in words[:4]] == [vocabulary.encode(x) for x in words[:4]]


def test_gemmas_tokenizer_encodes_alike(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "gemma3-text")
    tokenizer = sentencepiece_files.of_gemma()
    AutoModelForCausalLM.from_config(text.gemma3(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = export_gguf(folder, tmp_path / "a.gguf")
    assert made.encoding_differences == ()
    words = ("the cat sat there", " that hat rests", "a  cat", "the dog\n\u00fc", "there<image>the cat", "")
    assert encoding_differences(folder, tmp_path / "a.gguf", words) == []


def test_a_vocabulary_that_llama_cpp_reads_otherwise_is_refused_before_anything_is_written(
    tmp_path: Path, checkpoint: Path
) -> None:
    folder = with_merged_digits(checkpoint, tmp_path / "m")
    seen: list[int] = []
    with pytest.raises(UnsupportedModelError, match=r"must encode text as transformers does.*1 of 12.*--no-check"):
        export_gguf(folder, tmp_path / "a.gguf", pre_tokenizer="qwen2", on_bytes=lambda done, _: seen.append(done))
    assert seen == []
    with pytest.raises(CheckpointError, match=r"llama\.cpp must load the file"):
        export_gguf(folder, tmp_path / "a.gguf", pre_tokenizer="no-such-splitting")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    made = export_gguf(folder, tmp_path / "a.gguf", pre_tokenizer="qwen2", checks_encoding=False)
    assert made.encoding_differences is None
    assert export_gguf(folder, tmp_path / "b.gguf").encoding_differences == ()


def test_differences_beside_special_tokens_are_told(tmp_path: Path) -> None:
    """llama.cpp puts a space before text that follows a special token, here it should not be."""
    folder = save_tiny_checkpoint(tmp_path / "m", "llama")
    tokenizer = sentencepiece_files.with_metaspace("first")
    AutoModelForCausalLM.from_config(text.llama(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = export_gguf(folder, tmp_path / "a.gguf").encoding_differences
    assert found
    beside = {f"one{special}two" for special in tokenizer.all_special_tokens}
    assert {x.text for x in found} <= beside | {" leading and trailing spaces  "}
    assert beside & {x.text for x in found}


def test_llama_cpp_knows_the_ends_that_are_said_to_be_known(tmp_path: Path, checkpoint: Path) -> None:
    """It stops at each of them though no key of the file names it."""
    from llama_cpp import llama_cpp

    tokenizer = tiny_processor().tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [*_KNOWN_ENDS, "<no end>"]})
    tokenizer.save_pretrained(tmp_path / "m")
    vocabulary = read_vocabulary(tmp_path / "m", len(tokenizer))
    assert "eot" not in vocabulary.special_ids
    write_gguf(GgufFile("llama", vocabulary.metadata(), ()), tmp_path / "a.gguf")
    with LlamaVocabulary(tmp_path / "a.gguf") as runtime:
        ends = {x: llama_cpp.llama_vocab_is_eog(runtime._vocab, vocabulary.tokens.index(x)) for x in _KNOWN_ENDS}
        assert all(ends.values()), ends
        assert not llama_cpp.llama_vocab_is_eog(runtime._vocab, vocabulary.tokens.index("<no end>"))


def test_a_library_that_does_not_load_counts_as_none(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken" / "llama_cpp").mkdir(parents=True)
    (tmp_path / "broken" / "llama_cpp" / "__init__.py").write_text("raise RuntimeError('libllama.so: no such symbol')")
    for name in [name for name in sys.modules if name.split(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    with pytest.raises(MissingExtraError, match="no such symbol"):
        LlamaVocabulary(tmp_path / "a.gguf")
    assert export_gguf(checkpoint, tmp_path / "a.gguf").encoding_differences is None
    assert (tmp_path / "a.gguf").is_file()


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not at all")
    with pytest.raises(CheckpointError, match=r"llama\.cpp must load the file"):
        LlamaVocabulary(tmp_path / "a.gguf")
