"""Which families are cut correctly: what the tests of `tests/pruning` say of each, as rows and as the docs' table.

`python -m benchmarks.families` runs them and rewrites the table between the markers of docs/checkpoints.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "checkpoints.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"

SUITES = (
    "tests/pruning/cutting/test_families.py",
    "tests/pruning/cutting/test_skips.py",
    "tests/pruning/measuring/test_evaluation_families.py",
    "tests/pruning/measuring/test_evaluation_axes.py",
)
"""Cut against its silenced twin, costs, files, a new process, generation; the same with sub-layers that are skipped;
and the evaluator against real cuts of FFNs, and of KV groups with sub-layers skipped."""

RUNS = ("tests.conftest", "tests.pruning.conftest", *(path.removesuffix(".py").replace("/", ".") for path in SUITES))
"""What pytest's process runs."""

CHECKPOINTS: Mapping[str, str] = MappingProxyType(
    {
        "llava-llama": "LLaVA-1.5",
        "llava-llama-tied": "LLaVA with a tied head",
        "llava-llama-biases": "LLaVA with biases (Llama)",
        "llava-mistral": "LLaVA, Mistral with wide heads (Nemo)",
        "llava-mistral-window": "LLaVA, Mistral 7B v0.1",
        "llava-qwen2": "LLaVA, Qwen2",
        "llava-qwen2-window": "LLaVA, Qwen2 with windows",
        "llava-qwen3": "LLaVA, Qwen3",
        "llava-phi3": "LLaVA, Phi-3",
        "llava-phi": "LLaVA, Phi-2 (Bunny's backbone)",
        "vipllava": "ViP-LLaVA",
        "llava-next": "LLaVA-NeXT",
        "llava-onevision": "LLaVA-OneVision",
        "qwen2-vl": "Qwen2-VL",
        "qwen2.5-vl": "Qwen2.5-VL",
        "qwen3-vl": "Qwen3-VL",
        "internvl-qwen2": "InternVL3 (-hf)",
        "internvl-qwen3": "InternVL3.5 (-hf)",
        "paligemma": "PaliGemma with grouped heads",
        "paligemma-mqa": "PaliGemma",
        "paligemma2": "PaliGemma 2",
        "gemma3": "Gemma 3, multimodal",
        "mistral3": "Mistral Small 3.1 and later, multimodal",
        "idefics2": "Idefics2",
        "idefics3": "Idefics3",
        "smolvlm": "SmolVLM, SmolVLM2",
        "llama": "Llama",
        "mistral": "Mistral 7B v0.1",
        "qwen2": "Qwen2, Qwen2.5",
        "qwen3": "Qwen3",
        "phi3": "Phi-3, Phi-4",
        "phi": "Phi-1, Phi-2",
        "gemma2": "Gemma 2",
        "gemma3-text": "Gemma 3, text only",
    }
)
"""What each tiny model of the tests stands for."""

_COLUMNS = ("kv_groups", "fused", "biases", "tied", "qk_norms", "windows", "mrope", "image")
_HEADINGS = ("KV groups", "fused", "biases", "tied head", "q/k norms", "windows", "M-RoPE", "images")


def family_rows() -> list[dict[str, Any]]:
    """One row a family, with what its tests say now; they run in a process of their own, two minutes on one core.

    `family` and `checkpoints` name it, `text_model_type` is its row of the family table. Then, true or false: `ffn` and
    `kv_groups` (cut in the tests), `fused`, `biases`, `tied`, `qk_norms`, `windows`, `mrope` (what its decoder has),
    `image` (tested with one). `tests` were run, of so many `suites`, and `green` says that all passed.
    """
    report = _run_suites()
    outcomes, suites = _outcomes(report), _suites(report)
    rows = []
    for family in CHECKPOINTS:
        passed = outcomes.get(family, [])
        told = {"tests": len(passed), "suites": len(suites.get(family, ())), "green": bool(passed) and all(passed)}
        rows.append({**_traits(family), **told})
    return rows


def _run_suites() -> ET.Element:
    """pytest's report of the suites."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *SUITES],
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if not report.is_file():
            raise RuntimeError(f"pytest wrote no report:\n{done.stdout}")
        return ET.parse(report).getroot()  # noqa: S314 (our own file)


def _outcomes(report: ET.Element) -> dict[str, list[bool]]:
    """For each family, whether each of its tests passed."""
    found: dict[str, list[bool]] = {}
    for case in report.iter("testcase"):
        family = family_of_test(case.get("name", ""))
        if family is not None:
            bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
            found.setdefault(family, []).append(not bad)
    return found


def _suites(report: ET.Element) -> dict[str, set[str]]:
    """For each family, the suites that have tests of it."""
    found: dict[str, set[str]] = {}
    for case in report.iter("testcase"):
        family = family_of_test(case.get("name", ""))
        if family is not None:
            found.setdefault(family, set()).add(case.get("classname", ""))
    return found


def family_of_test(name: str) -> str | None:
    """The family that a parametrised test is of, by its id; None if it is of none."""
    parameters = f"-{name.partition('[')[2].removesuffix(']')}-"
    return max((family for family in CHECKPOINTS if f"-{family}-" in parameters), key=len, default=None)


@cache
def _traits(family: str) -> dict[str, Any]:
    """What the tests' tiny model of the family has, read off the model."""
    from pruning.anatomy.decoder_view import decoder_view
    from pruning.checkpoints.anatomy_reader import anatomy_of
    from tests.tiny_models import IMAGE_FAMILIES, tiny_model

    model = tiny_model(family)
    anatomy, view = anatomy_of(model), decoder_view(model)
    text = model.config.get_text_config(decoder=True)
    inside = [name for name, _ in view.layers[0].named_parameters()]
    return {
        "family": family,
        "checkpoints": CHECKPOINTS[family],
        "text_model_type": anatomy.text_model_type,
        "ffn": True,
        "kv_groups": anatomy.layers[0].num_kv_groups > 1,
        "fused": any(len(roles) > 1 for roles in view.family.rows.values()),
        "biases": any(name.endswith(("proj.bias", "dense.bias")) for name in inside),
        "tied": _is_tied(model),
        "qk_norms": any("q_norm" in name or "q_layernorm" in name for name in inside),
        "windows": any(layer.window is not None for layer in anatomy.layers),
        "mrope": "mrope_section" in (getattr(text, "rope_parameters", None) or {}),
        "image": family in IMAGE_FAMILIES,
    }


def _is_tied(model: "PreTrainedModel") -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| checkpoints | tested as | language model | {' | '.join(_HEADINGS)} | tests |",
        f"|---|---|---|{'---|' * (len(_HEADINGS) + 1)}",
    ]
    for row in rows:
        marks = ("yes" if row[column] else "" for column in _COLUMNS)
        tests = f"{row['tests']} passed" if row["green"] else "FAILED"
        named = f"| {row['checkpoints']} | `{row['family']}` | `{row['text_model_type']}` |"
        lines.append(f"{named} {' | '.join(marks)} | {tests} |".replace("  |", " |"))
    return "\n".join(lines)


def with_table(document: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """`document` with the table of `rows` between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main() -> None:
    rows = family_rows()
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(), rows))
    sys.stdout.write(json.dumps({"families": len(rows), "families_green": sum(row["green"] for row in rows)}) + "\n")


if __name__ == "__main__":
    main()
