"""What a harness logs of each question, as scores by metric."""

import sys
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

Scores = dict[str, dict[str, float]]
"""metric -> question -> score."""

_NO_METRICS = {"doc", "doc_id", "target", "version", "input", "token_counts", "schema_version"}
_NO_FILTER = "none"


def scores_by_task(found: Mapping[str, Any]) -> dict[str, Scores]:
    """task -> its scores, of what either harness returns; what they leave out is said on stderr.

    Compared are means over questions. A metric of which the harness makes something else (a perplexity, MME's sum) is
    no mean; where it gives each question a document with a `score`, as lmms-eval's often do, that is counted, under a
    name of its own: METRIC.score.
    """
    tasks = {}
    for task, samples in found["samples"].items():
        listed = found.get("configs", {}).get(task, {}).get("metric_list") or []
        others = {x["metric"] for x in listed if x.get("aggregation", "mean") != "mean"}
        tasks[task] = scores_by_metric(samples, others)
        named = {str(x["metric"]) for x in listed} | {name for x in samples for name in x.get("metrics", ())}
        kept = {metric.partition(",")[0].removesuffix(".score") for metric in tasks[task]}
        if gone := sorted(named - kept):
            sys.stderr.write(f"{task}: no score of single questions in {', '.join(gone)}, which is not compared\n")
    return tasks


def scores_by_metric(samples: Iterable[Mapping[str, Any]], others: Iterable[str] = ()) -> Scores:
    """Of the metrics that score each question by itself; numbers of `others`, whose mean says nothing, are left out.

    A task whose answers are read in several ways (`filter`) has a metric for each, METRIC,FILTER as lm-eval prints it.
    """
    found: Scores = {}
    for sample in samples:
        names = sample.get("metrics") or [name for name in sample if name not in _NO_METRICS]
        way = sample.get("filter", _NO_FILTER)
        for name in names:
            value = sample.get(name)
            if isinstance(value, Mapping):
                metric, value = f"{name}.score", value.get("score")
            else:
                metric, value = name, None if name in others else value
            if isinstance(value, Real):
                metric = metric if way == _NO_FILTER else f"{metric},{way}"
                found.setdefault(metric, {})[str(sample["doc_id"])] = float(value)
    return found
