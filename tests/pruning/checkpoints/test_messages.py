"""Files that are not what they should be: the rule, what was found, and what to do about it, in one line."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.finite_weights import check_finite_weights
from pruning.checkpoints.headers import INDEX_NAME
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import BatchStream
from pruning.data.conversations import load_conversations
from pruning.errors import LopError
from pruning.measuring.statistics import measure_checkpoint
from pruning.measuring.weight_importance import rank_by_weights
from pruning.reasons import reason_of
from tests.tiny_models import save_tiny_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 134217728\n"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A language model in one weight file."""
    return save_tiny_checkpoint(tmp_path / "model", "llama")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(LopError) as caught:
        call()
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_without_their_index(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / INDEX_NAME).unlink()
    message = refusal(lambda: read_anatomy(folder))
    assert INDEX_NAME in message
    assert "model-00001-of-" in message


@pytest.mark.parametrize(
    ("name", "advice"),
    [("adapter_model.safetensors", "merge"), ("consolidated.safetensors", "call it model.safetensors"),
     ("pytorch_model.bin", "save_pretrained"), ("nothing", "download the weights")],
)  # fmt: skip
def test_other_files_instead_of_weights(single: Path, name: str, advice: str) -> None:
    (single / "model.safetensors").rename(single / name)
    message = refusal(lambda: read_anatomy(single))
    assert advice in message
    assert name in message or name == "nothing"


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("_orig_mod.", "torch.compile"), ("module.", "DDP"), ("base_model.model.", "peft"),
                            ("module._orig_mod.", "torch.compile"), ("_fsdp_wrapped_module.", "FSDP")]
)  # fmt: skip
def test_names_that_a_wrapper_wrote(single: Path, prefix: str, wrapper: str) -> None:
    rewrite(single, lambda tensors: {prefix + name: x for name, x in tensors.items()})
    for read in (read_anatomy, load_model):
        message = refusal(partial(read, single))
        assert wrapper in message
        assert prefix.rstrip(".").split(".")[-1] in message


def test_a_wrapper_around_one_module(single: Path) -> None:
    rewrite(single, lambda tensors: {n.replace("layers.1.", "layers.1._orig_mod."): x for n, x in tensors.items()})
    assert "torch.compile" in refusal(lambda: read_anatomy(single))


def test_names_of_another_library(single: Path) -> None:
    rewrite(single, lambda tensors: {f"transformer.{name}".replace("layers", "h"): x for name, x in tensors.items()})
    message = refusal(lambda: read_anatomy(single))
    assert "transformer.lm_head.weight" in message
    assert "model.layers.0.mlp.down_proj.weight" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_pointer_of_git_lfs(single: Path, name: str) -> None:
    (single / name).write_bytes(POINTER)
    for read in (read_anatomy, load_model):
        message = refusal(partial(read, single))
        assert name in message
        assert "git lfs pull" in message
    if name != "model.safetensors":
        assert "git lfs pull" in refusal(lambda: load_processor(single))


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"<html>403</html>", "a web page"), (b"PK\x03\x04" + b"\xff" * 20, "torch.save"),
     (b"\x80\x02" + b"\xff" * 20, "pickle")],
)  # fmt: skip
def test_a_weight_file_that_is_something_else(single: Path, content: bytes, kind: str) -> None:
    (single / "model.safetensors").write_bytes(content)
    assert kind in refusal(lambda: read_anatomy(single))


def broken(folder: Path, name: str) -> Path:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[3] = float("nan")
        return tensors

    rewrite(folder, change)
    return folder


def test_weights_that_are_no_numbers_are_named(single: Path, tmp_path: Path) -> None:
    check_finite_weights(single)
    name = "model.layers.2.mlp.down_proj.weight"
    folder = broken(single, name)
    data = tmp_path / "data.json"
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]
    data.write_text(json.dumps([{"id": 1, "conversations": turns}]))
    batches = BatchStream(load_conversations(data), load_processor(folder), max_tokens=1000)
    for measure in (
        lambda: rank_by_weights(folder, read_anatomy(folder)),
        lambda: measure_checkpoint(folder, batches, torch.device("cpu")),
    ):
        message = refusal(measure)
        assert name in message
        assert "Measure them again" not in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_every_dtype_is_looked_at(single: Path, dtype: torch.dtype, value: str) -> None:
    rewrite(single, lambda tensors: {name: x.to(dtype) for name, x in tensors.items()})
    check_finite_weights(single)

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][-1] = float(value)
        return tensors

    rewrite(single, change)
    assert "model.norm.weight" in refusal(lambda: check_finite_weights(single))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"rope_scaling": {"type": "foo", "factor": 2.0}, "rope_parameters": None}, "foo"),
     ({"hidden_act": "gulu"}, "'gulu', which is its hidden_act"), ({"num_attention_heads": 5}, "not a multiple")],
)  # fmt: skip
def test_what_transformers_says_is_told_whole(single: Path, change: dict[str, object], told: str) -> None:
    config = json.loads((single / "config.json").read_text())
    config.update(change)
    (single / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    assert told in refusal(lambda: read_anatomy(single))


def test_why_a_tokenizer_does_not_load(single: Path) -> None:
    (single / "tokenizer.json").unlink()
    message = refusal(lambda: load_processor(single))
    assert "one of: (1)" in message  # what follows the first line
    assert "Copy tokenizer" in message


def test_reasons_are_one_line_and_say_the_kind_where_the_text_does_not() -> None:
    assert reason_of(ValueError("a:\n  b\n\n  c")) == "a: b c"
    assert reason_of(KeyError("foo")) == "KeyError: 'foo'"
    assert reason_of(RuntimeError()) == "RuntimeError"
    assert len(reason_of(ValueError("x" * 10_000))) < 700


def picture(folder: Path, content: bytes | None) -> Path:
    item = {"id": "c7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"},
                                                            {"from": "gpt", "value": "red"}]}  # fmt: skip
    if content is not None:
        (folder / "a.png").write_bytes(content)
    (folder / "d.json").write_text(json.dumps([item]))
    return folder / "d.json"


@pytest.mark.parametrize(
    ("content", "told"),
    [(POINTER, "git lfs pull"), (b"", "empty"), (b"<html></html>", "no picture format"),
     (b"\x89PNG\r\n\x1a\n", "a.png")],
)  # fmt: skip
def test_a_picture_that_is_none(tmp_path: Path, content: bytes, told: str) -> None:
    message = refusal(lambda: load_conversations(picture(tmp_path, content)))
    assert told in message
    assert "c7" in message


def test_a_picture_over_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (200, 200)).save(tmp_path / "a.png")
    path = picture(tmp_path, None)
    item = load_conversations(path)[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for read in (lambda: load_conversations(path), item.open_image):
        message = refusal(read)
        assert "20,000 pixels at most" in message
        assert "40000 pixels" in message
        assert "smaller" in message


def test_a_conversation_file_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(POINTER)
    assert "git lfs pull" in refusal(lambda: load_conversations(tmp_path / "d.json"))
