"""lm-evaluation-harness and lmms-eval against `lop evaluate`: the same questions, the same accuracy.

The reference is asked its validation conversations, pictures and all; SmolLM2 the prompts of the real benchmark, whose
recorded answers are its own. Of both, a pruned copy answers too: many of its answers are wrong, and a harness has to
find just as many.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import PROMPTS
from benchmarks.runtime_models import prune
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.atomic_file import replace_file

SMOLLM2 = Path(__file__).parent / ".work" / "real" / "checkpoint"
"""Where `make bench-real` has it, too."""
HARNESSES = ("lm-eval", "lmms-eval")
MAX_NEW_TOKENS = 24
"""Of SmolLM2's recorded answers."""

Row = dict[str, Any]


def harness_rows(
    work: Path, steps: Steps, pythons: Mapping[str, str], *, num_conversations: int, num_prompts: int
) -> list[Row]:
    """A row for each model, dense and pruned, and harness."""
    work.mkdir(parents=True, exist_ok=True)
    questions = work / "reference-questions.json"
    replace_file(questions, json.dumps(_conversations(num_conversations)).encode())
    rows = _rows_of("reference", REFERENCE / "model", questions, work, steps, pythons)
    half, _ = smollm2(SMOLLM2)
    asked, answers = work / "smollm2-prompts.json", work / "smollm2-questions.json"
    prompts = json.loads(PROMPTS.read_text())[:num_prompts]
    replace_file(asked, json.dumps([{"id": x["id"], "prompt": x["prompt"]} for x in prompts]).encode())
    command = ["data", "answer", "--model", str(half), "--prompts", str(asked), "--out", str(answers)]
    steps.lop("smollm2 answers", *command, "--max-new-tokens", str(MAX_NEW_TOKENS), makes=answers)
    return rows + _rows_of("smollm2", half, answers, work, steps, pythons)


def _rows_of(
    name: str, dense: Path, questions: Path, work: Path, steps: Steps, pythons: Mapping[str, str]
) -> list[Row]:
    pruned = work / f"{name}-pruned"
    write = partial(prune, dense, pruned, name, _nearly_whole)
    steps.call(f"{name} pruned", [str(dense)], write, modules=["benchmarks.runtime_harnesses"])
    ours = {}
    for kind, folder in (("dense", dense), ("pruned", pruned)):
        ours[kind] = steps.lop(f"{name} {kind}", "evaluate", str(folder), "--data", str(questions)).document
    rows = []
    for harness in HARNESSES:
        asked = (f"--{harness}", str(questions), "--harness-python", pythons[harness])
        said = steps.lop(f"{name} {harness}", "evaluate", str(pruned), "--dense", str(dense), *asked).document
        pair = said["paired"][questions.stem]["exact_match"]
        rows += [
            {
                "model": name,
                "kind": kind,
                "harness": harness,
                "version": said["harness"]["version"],
                "questions": pair["questions"],
                "accuracy": pair[kind],
                "accuracy_of_lop_evaluate": found["accuracy"],
                "questions_of_lop_evaluate": found["answers"],
            }
            for kind, found in ours.items()
        ]
    return rows


def _conversations(count: int) -> list[Row]:
    """The first of the validation split, with their pictures' places."""
    data = REFERENCE / "data"
    items: list[Row] = json.loads((data / "validation.json").read_text())[:count]
    return [item | {"image": str((data / item["image"]).resolve())} for item in items]


def _nearly_whole(anatomy: ModelAnatomy) -> Architecture:
    """A sixteenth of the channels goes, whichever: some answers are wrong then, and others are not."""
    widths = [x.ffn_width * 15 // 16 for x in anatomy.layers]
    return anatomy.architecture(widths, [x.num_kv_groups for x in anatomy.layers])


def harness_figures(rows: Sequence[Mapping[str, Any]]) -> Row:
    """How far the accuracy of a harness is from that of `lop evaluate` at most; questions of one harness on one kind.

    Raises ValueError if a harness was asked another number of questions: accuracies say nothing then.
    """
    for row in rows:
        if row["questions"] != row["questions_of_lop_evaluate"]:
            raise ValueError(f"{row['harness']} and lop evaluate must be asked as many questions: {dict(row)}")
    by_model = {row["model"]: row["questions"] for row in rows}
    return {
        "harness_accuracy_difference_max": max(abs(x["accuracy"] - x["accuracy_of_lop_evaluate"]) for x in rows),
        "harness_questions": sum(by_model.values()),
        "harness_accuracy_min": min(row["accuracy"] for row in rows),
        "harness_accuracy_max": max(row["accuracy"] for row in rows),
    }
