"""Statistics of a model, kept in a file: another machine rounds otherwise, and would rank otherwise by its own."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measured_code import measured_code
from pruning.atomic_file import replace_file
from pruning.data.conversations import Conversation, calibration_id
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.plan_parts import content_id

MEASURED_BY = ("pruning/measuring/", "pruning/forward/")
"""What is imported from there decides what statistics say, beside the model and its data."""


def kept_statistics(
    work: Path,
    kind: StatisticsKind,
    folder: Path,
    conversations: list[Conversation],
    measure: Callable[[], ModelStatistics],
) -> tuple[ModelStatistics, float]:
    """Statistics of the checkpoint in `folder` on `conversations`, and the seconds that `measure` took for them.

    They are read from `work` if they were measured of the same weights, on the same data, by the same code.
    """
    code = {file: digest for file, digest in measured_code().items() if file.startswith(MEASURED_BY)}
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))]
    identity = content_id({"weights": weights, "data": calibration_id(conversations), "code": sorted(code.items())})
    path = work / f"statistics-{kind}-{identity}.safetensors"
    seconds = path.with_suffix(".json")
    if not seconds.is_file():
        started = time.perf_counter()
        measured = measure()
        replace_file(path, measured.to_bytes())
        replace_file(seconds, json.dumps({"seconds": time.perf_counter() - started}).encode())
    return ModelStatistics.from_bytes(path.read_bytes()), float(json.loads(seconds.read_text())["seconds"])
