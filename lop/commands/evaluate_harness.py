"""`lop evaluate --lm-eval` and `--lmms-eval`: other people's tasks, dense and pruned on the same questions."""

import sys
from pathlib import Path
from typing import Any

from lop.console.console import bar, print_json, print_line, print_table


def evaluate_harness(
    model: Path,
    dense: Path | None,
    *,
    lm_eval: str | None,
    lmms_eval: str | None,
    python: Path | None,
    processor_folder: Path | None,
    limit: int | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Run one harness's tasks with each model, and write the results beside the checkpoint; raises as its parts do."""
    from lop.workflows.compute import load_for_compute, warn_of_adapter
    from lop.workflows.harness import Harness, questions_folder, require_harness, run_harness, task_files
    from lop.workflows.harness_answers import answering, check_files
    from lop.workflows.harness_results import document, results_file, write_results
    from pruning.checkpoints.anatomy_reader import load_config
    from pruning.checkpoints.loading import load_processor
    from pruning.checkpoints.processor import takes_images

    harness = Harness.LM_EVAL if lm_eval is not None else Harness.LMMS_EVAL
    names = [name.strip() for name in (lm_eval or lmms_eval or "").split(",") if name.strip()]
    environment = python or Path(sys.executable)
    require_harness(harness, environment)
    processor = load_processor(processor_folder or model)
    found: dict[Path, dict[str, Any]] = {}
    with questions_folder() as folder:
        tasks = task_files(names, folder, images=takes_images(processor))
        check_files(filter(None, tasks.values()), load_config(model), processor, limit=limit)
        for checkpoint in filter(None, (model, dense)):  # one after the other: one model is in memory at a time
            warn_of_adapter(checkpoint)
            with bar(f"{checkpoint.name} answering") as on_answers:
                network = load_for_compute(checkpoint)
                answer = answering(network, processor, batch_size=batch_size, on_answers=on_answers)
                found[checkpoint] = run_harness(harness, environment, tasks, answer, limit=limit)
                del answer, network
    of_dense = None if dense is None else found[dense]["tasks"]
    measured = document(model, dense, found[model]["harness"], found[model]["tasks"], of_dense)
    out = results_file(model, harness)
    write_results(out, measured)
    if as_json:
        print_json(measured | {"file": str(out)})
        return
    _print(model, measured)
    print_line(f"wrote {out}: each question's score")


def _print(model: Path, measured: dict[str, Any]) -> None:
    if "means" in measured:
        rows = [[task, metric, mean] for task, found in measured["means"].items() for metric, mean in found.items()]
        print_table(str(model), ["task", "metric", "mean"], rows)
        return
    rows = [
        [
            task,
            metric,
            x["questions"],
            x["dense"],
            x["pruned"],
            _percent(x),
            "-" if x["p_value"] is None else x["p_value"],
        ]
        for task, found in measured["paired"].items()
        for metric, x in found.items()
    ]
    columns = ["task", "metric", "questions", "dense", "pruned", "percent of dense (95%)", "McNemar's p"]
    print_table(str(model), columns, rows)


def _percent(x: dict[str, Any]) -> str:
    if x["percent_of_dense"] is None:
        return "-"
    interval = "" if x["interval"] is None else f" ({x['interval'][0]:.1f} to {x['interval'][1]:.1f})"
    return f"{x['percent_of_dense']:.1f}{interval}"
