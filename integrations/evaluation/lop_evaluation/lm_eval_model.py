"""lm-evaluation-harness: the model `lop`, and a run of it."""

from importlib.metadata import version
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.api.task import ConfigurableTask

from lop_evaluation.connection import Connection
from lop_evaluation.generation import generated
from lop_evaluation.llava_tasks import llava_task
from lop_evaluation.questions import from_document, from_text
from lop_evaluation.samples import scores_by_task


@register_model("lop")
class LopLM(LM):
    """A model that lop-service has loaded."""

    MULTIMODAL = True

    def __init__(self, connection: Connection, **_: Any) -> None:
        super().__init__()
        self._connection = connection

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Greedy answers. Of what a task sets, lengths and stop words count; sampling would compare luck."""
        return generated(self._connection, requests, question_of, length="max_gen_toks")

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        pairs = [list(request.args[:2]) for request in requests]
        return [(score, greedy) for score, greedy in self._connection.ask("loglikelihood", pairs=pairs)["scores"]]

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        pairs = [["", request.args[0]] for request in requests]
        return [score for score, _ in self._connection.ask("loglikelihood", pairs=pairs)["scores"]]


def question_of(request: Instance) -> dict[str, Any]:
    """A conversation where there is one, or pictures; else the task's own prompt as it is. With the question's name."""
    name = f"{request.task_name}, question {request.doc_id}"
    if (question := from_document(request.doc)) is not None:
        return question | {"name": name}
    pictures = request.args[2].get("visual") or [] if len(request.args) > 2 else []
    asked = from_text(request.args[0], pictures) if pictures else {"text": request.args[0]}
    return asked | {"name": name}


def run(connection: Connection, tasks: dict[str, str | None], limit: int | None) -> None:
    """Ask all `tasks`: the harness's own names, and names of LLaVA-format files with their questions' files."""
    wanted: list[Any] = [
        name if path is None else ConfigurableTask(config=llava_task(name, path)) for name, path in tasks.items()
    ]
    found = simple_evaluate(model=LopLM(connection), tasks=wanted, limit=limit, log_samples=True, bootstrap_iters=0)
    connection.say(
        "finished",
        harness={"name": "lm-eval", "version": version("lm-eval")},
        tasks=scores_by_task(found),
    )
