"""`python -m lop_evaluation HARNESS READ WRITE TASKS`: started by `lop evaluate`.

READ and WRITE are descriptors; TASKS is JSON, `{"tasks": {name: file of questions, or null}, "limit": N or null}`.
"""

import json
import os
import sys

from lop_evaluation.connection import Connection


def main(harness: str, answers: str, questions: str, settings: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = os.environ.get(
        "HF_HUB_OFFLINE", "1"
    )  # tasks of the hub: from its cache, or set it to 0
    wanted = json.loads(settings)
    with os.fdopen(int(answers)) as reader, os.fdopen(int(questions), "w") as writer:
        connection = Connection(reader, writer)
        if harness == "lm-eval":
            from lop_evaluation.lm_eval_model import run
        else:
            from lop_evaluation.lmms_eval_model import run
        run(connection, wanted["tasks"], wanted["limit"])


main(*sys.argv[1:])
