"""Evaluation harnesses in environments of their own: started here, and answered from here.

lm-evaluation-harness and lmms-eval pin packages in other versions than lop-service does. So the harness runs where it
is installed, with the small package `lop-evaluation` (integrations/evaluation) beside it, and asks the model over two
pipes, a line of JSON each way; the model is loaded here, like any other. Both sides of a comparison, dense and pruned,
answer the same questions.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from pruning.data.conversations import load_conversations
from pruning.errors import InputError, MissingExtraError

INTEGRATION = "lop_evaluation"
"""The package beside the harness."""


class Harness(StrEnum):
    """By the name of its package."""

    LM_EVAL = "lm-eval"
    LMMS_EVAL = "lmms-eval"

    @property
    def module(self) -> str:
        return self.value.replace("-", "_")


Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""task -> metric -> question -> score."""


def require_harness(harness: Harness, python: Path) -> None:
    """Raises MissingExtraError, with the commands, unless the harness and its integration can be imported there."""
    code = (
        "import importlib.util as u, sys; "
        f"sys.exit(not all(u.find_spec(x) for x in ({harness.module!r}, {INTEGRATION!r})))"
    )
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        found = False
    if not found:
        raise MissingExtraError(
            f"{harness} runs in an environment of its own, with lop-evaluation beside it",
            values=f"not found by {python}",
            remedy=f'python -m venv ENV && ENV/bin/pip install "./integrations/evaluation[{harness}]" (from a clone of '
            "lop-service), then --harness-python ENV/bin/python",
        )


def task_files(tasks: list[str], folder: Path, *, images: bool) -> dict[str, str | None]:
    """name -> None for a task of the harness's own; the file of its questions, written to `folder`, for the path of a
    LLaVA-format file. Without `images` a picture is refused.

    Raises DatasetError for a file that is not one, InputError for a name twice.
    """
    found: dict[str, str | None] = {}
    for task in tasks:
        path = Path(task)
        name = path.stem if path.suffix == ".json" else task
        if name in found:
            raise InputError("tasks must have different names", values=name)
        found[name] = None
        if path.suffix == ".json":
            out = folder / f"{name}.jsonl"
            with out.open("w", encoding="utf-8") as file:
                for document in _questions(path, images=images):
                    file.write(json.dumps(document) + "\n")
            found[name] = str(out)
    return found


def _questions(path: Path, *, images: bool) -> Iterator[dict[str, Any]]:
    """Every turn of every conversation, with the true history before it."""
    for conversation in load_conversations(path):
        if conversation.image is not None and not images:
            raise InputError("a language model takes conversations without images", values=f"{path}, {conversation.id}")
        for index, turn in enumerate(conversation.turns):
            asked = [[before.question, before.answer] for before in conversation.turns[:index]]
            yield {
                "id": f"{conversation.id}/{index}",
                "question": turn.question,
                "answer": turn.answer,
                "lop_turns": json.dumps([*asked, [turn.question, ""]]),
                "lop_image": "" if conversation.image is None else str(conversation.image.resolve()),
            }


def run_harness(
    harness: Harness,
    python: Path,
    tasks: Mapping[str, str | None],
    answer: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    limit: int | None = None,
) -> dict[str, Any]:
    """Run `tasks` in the environment of `python`, questions answered by `answer`; what the harness logs goes to stderr.

    Returns `{"harness": {name, version}, "tasks": Scores}`. Raises InputError if the harness fails, or ends without a
    result.
    """
    settings = json.dumps({"tasks": dict(tasks), "limit": limit})
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [str(python), "-m", INTEGRATION, str(harness), str(theirs_in), str(theirs_out), settings]
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=sys.stderr.fileno())  # noqa: S603
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with os.fdopen(ours_in) as questions, os.fdopen(ours_out, "w") as answers:
            result = _answered(questions, answers, answer)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    code = process.wait()  # without a result too: it says why
    if result is None or code:
        raise InputError(
            f"{harness} must finish its tasks",
            values=f"{', '.join(tasks)}: exit code {code}",
            remedy="What it said about that is above. Tasks of the hub need its cache: HF_HUB_OFFLINE=0 lets it ask",
        )
    return result


def _answered(
    questions: TextIO, answers: TextIO, answer: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any] | None:
    """Answer until the harness is finished; None if it went away before."""
    for line in questions:
        asked = json.loads(line)
        if asked.pop("kind") == "finished":
            return dict(asked)
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()
    return None


@contextmanager
def questions_folder() -> Iterator[Path]:
    """A folder for the files of questions, gone afterwards."""
    with TemporaryDirectory(prefix="lop-evaluation-") as folder:
        yield Path(folder)
