"""lmms-eval: the model `lop`, and a run of it."""

import tempfile
from importlib.metadata import version
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from lop_evaluation.connection import Connection
from lop_evaluation.generation import generated
from lop_evaluation.llava_tasks import llava_task
from lop_evaluation.questions import from_document, from_text
from lop_evaluation.samples import scores_by_task


class LopLmms(lmms):
    """A model that lop-service has loaded."""

    is_simple = True

    def __init__(self, connection: Connection, **_: Any) -> None:
        super().__init__()
        self._connection = connection
        self.task_dict: dict[str, Any] = {}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers. Of what a task sets, lengths and stop words count."""
        return generated(self._connection, requests, self._question_of, length="max_new_tokens")

    def _question_of(self, request: Instance) -> dict[str, Any]:
        context, _, doc_to_visual, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        question = from_document(document)
        if question is None:
            question = from_text(context, doc_to_visual(document) or [])
        return question | {"name": f"{task}, question {doc_id}"}

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("lop answers questions of one round; ask tasks of a single round")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("lop scores no answers of lmms-eval; ask tasks that generate")


def run(connection: Connection, tasks: dict[str, str | None], limit: int | None) -> None:
    """As lm_eval_model.run."""
    with tempfile.TemporaryDirectory(prefix="lop-evaluation-") as cache:
        wanted: list[Any] = [name if path is None else _task(name, path, cache) for name, path in tasks.items()]
        found = simple_evaluate(
            model=LopLmms(connection),
            tasks=wanted,
            task_manager=TaskManager(),
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
        )
    connection.say(
        "finished",
        harness={"name": "lmms-eval", "version": version("lmms-eval")},
        tasks=scores_by_task(found),
    )


def _task(name: str, path: str, cache: str) -> ConfigurableTask:
    settings: dict[str, Any] = llava_task(name, path)
    settings["doc_to_visual"] = lambda _: []  # the picture goes with the document
    settings["dataset_kwargs"]["cache_dir"] = cache
    return ConfigurableTask(config=settings, model_name="lop")
