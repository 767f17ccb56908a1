"""Checkpoints, teachers and recipes that do not belong together are refused before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lop.workflows.recovering import recover_folder, recovery_data
from pruning.errors import CheckpointError, FingerprintMismatchError, InputError, LopError
from recovery.checks import checked_plan
from recovery.recipe import Recipe
from tests.recovery.conftest import Cut
from tests.tiny_models import save_tiny_checkpoint


def refused(cut: Cut, pruned: Path, teacher: Path, out: Path, error: type[LopError], said: str, **recipe: Any) -> None:
    asked = Recipe.of(steps=1, **recipe)
    with pytest.raises(error, match=said):
        recover_folder(pruned, teacher, recovery_data(cut.data, recipe=asked), asked, out)
    assert not out.exists()


def changed(folder: Path, out: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A copy of `folder` in which the JSON file `name` is what `change` makes of it, or gone."""
    shutil.copytree(folder, out)
    document = change(json.loads((out / name).read_text()))
    (out / name).write_text(json.dumps(document)) if document is not None else (out / name).unlink()
    return out


def test_folders_that_are_not_what_they_should_be(cut: Cut, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(cut, cut.dense, cut.dense, out, CheckpointError, "what is recovered is a pruned checkpoint")
    refused(cut, cut.pruned, cut.pruned, out, CheckpointError, "the teacher is the dense model")
    refused(cut, cut.pruned, cut.dense, out, InputError, r"numbered 0\.\.3", hidden_layers=(9,))


def gptq(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"quantization_config": {"quant_method": "gptq"}}


def sparsified(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"lop_sparsity": {"sparsity": 0.5}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (gptq, "must be plain numbers.*gptq.*Recover the unquantised checkpoint, then quantise"),
        (sparsified, r"fills the zeros of a sparsified.*lop_sparsity .*0\.5.*then `lop sparsify` the recovered one"),
    ],
)
def test_a_cut_checkpoint_with_weights_of_another_kind(
    cut: Cut, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    pruned = changed(cut.pruned, tmp_path / "pruned", "config.json", change)
    refused(cut, pruned, cut.dense, tmp_path / "out", CheckpointError, said)


def quantised(cut: Cut, folder: Path) -> tuple[Path, Path]:
    return cut.pruned, changed(cut.dense, folder / "teacher", "config.json", gptq)


def of_another_family(_cut: Cut, folder: Path) -> tuple[Path, Path]:
    return _cut.pruned, save_tiny_checkpoint(folder / "teacher", "llava-mistral")


def of_more_rows(cut: Cut, folder: Path) -> tuple[Path, Path]:
    def more(config: dict[str, Any]) -> dict[str, Any]:
        text = config["text_config"]
        return config | {"text_config": text | {"vocab_size": text["vocab_size"] + 8}}

    return cut.pruned, changed(cut.dense, folder / "teacher", "config.json", more)


def of_other_tokens(cut: Cut, folder: Path) -> tuple[Path, Path]:
    """As many, of which two have each other's ids."""

    def swapped(document: dict[str, Any]) -> dict[str, Any]:
        vocabulary = document["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        return document

    return cut.pruned, changed(cut.dense, folder / "teacher", "tokenizer.json", swapped)


def of_other_layers(cut: Cut, folder: Path) -> tuple[Path, Path]:
    return cut.pruned, save_tiny_checkpoint(folder / "teacher", ffn_width=40)


def of_another_plan(cut: Cut, folder: Path) -> tuple[Path, Path]:
    def other(plan: dict[str, Any]) -> dict[str, Any]:
        return plan | {"model": plan["model"] | {"fingerprint": "0" * 64}}

    return changed(cut.pruned, folder / "pruned", "lop_plan.json", other), cut.dense


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (quantised, CheckpointError, "must be plain numbers.*teacher.*gptq"),
        (of_another_family, FingerprintMismatchError, "one model_type.*llama, .*mistral"),
        (of_more_rows, FingerprintMismatchError, "one vocab_size"),
        (of_other_tokens, FingerprintMismatchError, "one vocabulary.*2 tokens have other ids, such as 'a'"),
        (of_other_layers, FingerprintMismatchError, "layers must be cut from the teacher's"),
        (of_another_plan, FingerprintMismatchError, "plan"),
    ],
)
def test_a_teacher_of_another_model(
    cut: Cut,
    tmp_path: Path,
    made: Callable[[Cut, Path], tuple[Path, Path]],
    error: type[LopError],
    said: str,
) -> None:
    refused(cut, *made(cut, tmp_path), tmp_path / "out", error, said)


def test_a_tokenizer_that_was_saved_again_is_the_same(cut: Cut, tmp_path: Path) -> None:

    again = changed(
        cut.dense, tmp_path / "teacher", "tokenizer.json", lambda document: dict(reversed(document.items()))
    )
    assert checked_plan(cut.pruned, again) is not None
