"""The summary of the runtimes benchmark, from rows made by hand."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.runtime_cell import RUNTIMES
from benchmarks.runtime_cells import Cells, Sizes, family_figures, speed_figures
from benchmarks.runtime_client import client_figures
from benchmarks.runtime_harnesses import harness_figures
from benchmarks.runtime_models import FAMILIES, write_family, write_gguf
from benchmarks.runtimes import holds
from benchmarks.steps import Steps


def row(runtime: str, kind: str, agreement: float | None) -> dict[str, Any]:
    runs = agreement is not None
    said = {"agreement": agreement} if runs else {"is_known": True}
    return {"family": "f", "kind": kind, "runtime": runtime, "runs": runs, **said}


def speed(runtime: str, prefill: float, decode: float, memory: float = 0.5) -> dict[str, Any]:
    ratios = {"prefill": prefill, "decode": decode, "peak_memory": memory}
    found = {f"{name}_pruned_over_dense": x for name, x in ratios.items()}
    return {"runtime": runtime, "runs": True, "same_token": True, **found}


def test_the_worst_cell_that_runs_and_the_runtime_with_the_fewest_families_count() -> None:
    rows = [row("a.b", "pruned", 1.0)] * 5 + [row("b", "pruned", 0.995)] * 6 + [row("b", "pruned", None)]
    rows += [row("a.b", "dense", 0.992)]
    found = family_figures(rows)
    families = {"families_run_min": 5, "families_run_a_b": 5, "families_run_b": 6}
    assert found == {"agreement_min": 0.992, "cells_failed": 0, **families}
    assert holds(found) == {"agreement_min": True, "cells_failed": True, "families_run_min": True}
    worse = family_figures([*rows, row("c", "pruned", None), row("c", "dense", 0.9)])
    assert (worse["agreement_min"], worse["families_run_min"]) == (0.9, 0)
    assert holds(worse) == {"agreement_min": False, "cells_failed": True, "families_run_min": False}


@pytest.mark.parametrize(
    ("said", "is_failure"),
    [
        ("lop export gguf: the language model's layers must be those of an architecture of llama.cpp", False),
        ("ValueError: There is no module or parameter named 'vision_tower.embeddings' in LlavaForConditional", False),
        ("ValueError: There is no module or parameter named 'layers.3.mlp' in LlamaForCausalLM", True),
        ("Segmentation fault (core dumped)", True),
    ],
)
def test_a_crash_is_no_refusal(tmp_path: Path, said: str, *, is_failure: bool) -> None:
    class Saying(Cells):
        def _cell(self, family: str, runtime: str, folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
            assert (family, folder.parent, len(asked["prompts"])) == ("llama", tmp_path / "llama", 2)
            return {"tokens": [1, 2]} if runtime == "lop" else {"refused": said}

    cells = Saying(tmp_path, Steps(tmp_path / "steps"), {"lop": "python", "other": "python"}, Sizes(prompts=2))
    found = family_figures(cells.family_rows("llama"))
    assert (found["families_run_min"], found["cells_failed"]) == (0, 2 * is_failure)
    assert holds(found)["cells_failed"] == (not is_failure)


def test_prompt_and_answer_must_both_be_faster_in_two_runtimes_beside_ours() -> None:
    two = [speed("lop", 2, 2, 0.9), speed("a", 1.5, 1.6), speed("b", 1.9, 1.4, 0.6)]
    found = speed_figures(two)
    assert (found["prefill_pruned_over_dense"], found["decode_pruned_over_dense"]) == (1.5, 1.4)
    assert found["peak_memory_pruned_over_dense"] == 0.6
    assert not holds(found)["runtimes_1.5_times_faster"]
    assert holds(found)["speed_runtimes_failed"]
    refused = {"runtime": "d", "runs": False}
    three = speed_figures([*two, speed("c", 1.6, 1.5), refused])
    assert holds(three) == {"runtimes_1.5_times_faster": True, "speed_runtimes_failed": False}
    other = speed_figures([*two, speed("c", 1.6, 1.5) | {"same_token": False}])
    assert other["speed_runtimes_failed"] == 1


def asked(model: str, kind: str, accuracy: float, ours: float, questions: int = 10) -> dict[str, Any]:
    said = {"accuracy": accuracy, "accuracy_of_lop_evaluate": ours, "questions": questions}
    return {"model": model, "kind": kind, "harness": "h", **said, "questions_of_lop_evaluate": 10}


def test_a_harness_that_finds_another_accuracy_or_asks_other_questions() -> None:
    rows = [asked("a", "dense", 1.0, 1.0), asked("a", "pruned", 0.5, 0.5), asked("b", "dense", 0.7, 0.7)]
    found = harness_figures(rows)
    assert (found["harness_accuracy_difference_max"], found["harness_questions"]) == (0, 20)
    assert holds(found) == {"harness_accuracy_difference_max": True}
    worse = harness_figures([*rows, asked("b", "pruned", 0.25, 0.5)])
    assert worse["harness_accuracy_difference_max"] == 0.25
    assert holds(worse) == {"harness_accuracy_difference_max": False}
    with pytest.raises(ValueError, match="as many questions"):
        harness_figures([*rows, asked("b", "pruned", 0.5, 0.5, questions=9)])


def test_the_light_client_over_everything() -> None:
    rows = [{"kind": "light", "bytes": 5e7, "seconds": 4.0}, {"kind": "full", "bytes": 1e9, "seconds": 80.0}]
    found = client_figures(rows)
    assert found["light_client_install_mb"] == 50
    assert (found["light_client_mb_over_full"], found["light_client_seconds_over_full"]) == (0.05, 0.05)


@pytest.mark.parametrize(("family", "is_exported"), [("smolvlm", True), ("gemma2", False)])
def test_families_are_written_and_what_llama_cpp_cannot_take_is_said(
    tmp_path: Path, family: str, is_exported: bool
) -> None:
    assert family in FAMILIES
    assert "llama.cpp" in RUNTIMES
    assert write_family(family, tmp_path / family)["ffn_widths"] == [32, 0, 96, 64]
    refused = write_gguf(tmp_path / family / "pruned")
    assert (refused is None) == is_exported
    assert refused is None or "gemma2" in refused
