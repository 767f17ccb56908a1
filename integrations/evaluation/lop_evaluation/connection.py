"""Questions to the process that holds the model: a line of JSON each way.

    {"kind": "generate", "questions": [...], "max_new_tokens": N or null, "until": [...]}  ->  {"answers": [text]}
    {"kind": "loglikelihood", "pairs": [[context, continuation]]}  ->  {"scores": [[log-likelihood, is greedy]]}
    {"kind": "finished", "harness": {...}, "tasks": {name: {metric: {question: score}}}}

A question is a raw prompt, `{"text": ...}`, or a conversation, `{"turns": [[question, answer], ...], "image": path or
null, "answer": ...}`: the answer to its last question is wanted, and may be no longer than `answer` where N is null.
Its `"name"`, if it has one, is what messages call it.
A picture that is in no file comes as `"png"`, in base 64.
"""

import json
from typing import Any, TextIO


class Connection:
    """The two pipes. One question at a time."""

    def __init__(self, answers: TextIO, questions: TextIO) -> None:
        self._answers, self._questions = answers, questions

    def ask(self, kind: str, **question: Any) -> dict[str, Any]:
        """The answer's document; raises SystemExit if nobody answers, who has said why."""
        self.say(kind, **question)
        line = self._answers.readline()
        if not line:
            raise SystemExit("lop evaluate has stopped answering")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def say(self, kind: str, **document: Any) -> None:
        """Tell something that is not answered."""
        self._questions.write(json.dumps({"kind": kind, **document}) + "\n")
        self._questions.flush()
