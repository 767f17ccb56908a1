"""A LLaVA-format file as a task of either harness: one question a turn, with the true history; exact match.

`lop evaluate` has written the questions of the file as lines of JSON, so both harnesses and `lop evaluate` itself ask
the same ones. Nothing is downloaded.
"""

from typing import Any

METRIC = "exact_match"


def llava_task(name: str, path: str) -> dict[str, Any]:
    """The task's config, which both harnesses read."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": path}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "do_sample": False},
        "process_results": scores,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def scores(document: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """1 for the recorded answer, case and white space folded, as `lop evaluate` compares them."""
    said = results[0][0] if isinstance(results[0], list) else results[0]
    return {METRIC: float(folded(said) == folded(document["answer"]))}


def folded(text: str) -> str:
    return " ".join(text.casefold().split())
