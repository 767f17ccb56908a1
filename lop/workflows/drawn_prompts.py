"""What a model has users say, by what becomes of it: prompts of a file, or left out and counted."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lop.workflows.conversation_files import path_from
from pruning.data.chat_rendering import RenderedText
from pruning.data.input_checks import check_texts
from pruning.data.prompts import Prompt
from pruning.errors import DatasetError
from pruning.measuring.answers import Answer, question_of

if TYPE_CHECKING:
    from pruning.checkpoints.processor import Processor

LEFT_OUT = ("unfinished", "unusable", "repeated")
"""Why a draw is no prompt, as `DrawnPrompts` has it."""


@dataclass(frozen=True)
class DrawnPrompts:
    """What was written, and what was not.

    Attributes:
        prompts: how many are in the file.
        drawn: how often the model was asked; `resumed`: of these, by an earlier run.
        unfinished: had not ended at the limit of tokens.
        unusable: without words, or such that `lop data answer` would refuse it.
        repeated: said before, of the same picture, but for case and spaces.
    """

    prompts: int
    drawn: int
    resumed: int
    unfinished: int
    unusable: int
    repeated: int


class KeptPrompts:
    """The first `count` different ones that can be asked."""

    def __init__(self, count: int, processor: "Processor") -> None:
        self._count, self._processor = count, processor
        self.items: list[Prompt] = []
        self.drawn = 0
        self._resumed = 0
        self._left_out: Counter[str] = Counter()
        self._seen: set[tuple[Path | None, str]] = set()
        self._of_picture: Counter[Path | None] = Counter()

    @property
    def missing(self) -> int:
        """How many are still to come."""
        return self._count - len(self.items)

    def of_picture(self, image: Path | None) -> int:
        """How many there are about `image`."""
        return self._of_picture[image]

    def add(self, asked: Sequence[Prompt], said: Sequence[Answer], *, resumed: bool) -> None:
        """As many as are still needed, in order; `asked` have the ids and pictures of what was `said`."""
        for prompt, answer in zip(asked, said, strict=True):
            if not self.missing:
                return
            self.drawn += 1
            self._resumed += resumed
            prompt = Prompt(prompt.id, prompt.image, (answer.text,))
            folded = (prompt.image, " ".join(answer.text.casefold().split()))
            if answer.is_cut:
                self._left_out["unfinished"] += 1
            elif not self._can_be_asked(prompt):
                self._left_out["unusable"] += 1
            elif folded in self._seen:
                self._left_out["repeated"] += 1
            else:
                self._seen.add(folded)
                self._of_picture[prompt.image] += 1
                self.items.append(prompt)

    def _can_be_asked(self, prompt: Prompt) -> bool:
        """By the rules of `lop data answer`, and whether it has words."""
        if "\ufffd" in prompt.questions[0] or not any(map(str.isalnum, prompt.questions[0])):
            return False
        try:
            question = question_of(0, prompt.asked([]), self._processor)
            check_texts([RenderedText(question.conversation, question.text, ())], self._processor)
        except DatasetError:
            return False
        return True

    def report(self) -> DrawnPrompts:
        """Of what was added."""
        left_out = {reason: self._left_out[reason] for reason in LEFT_OUT}
        return DrawnPrompts(len(self.items), self.drawn, self._resumed, **left_out)

    def document(self, out: Path) -> bytes:
        """The file, one prompt a line; raises DatasetError if there is none."""
        if not self.items:
            told = ", ".join(f"{count} {reason}" for reason, count in self._left_out.items())
            raise DatasetError(
                "where a user would speak, a model must say what a user might ask",
                values=f"of {self.drawn} draws {told}",
                remedy="Raise --max-new-tokens where prompts do not end, or write prompts yourself: not every model "
                "has learned what users say",
            )
        lines = ",\n".join(json.dumps(_item(prompt, out), ensure_ascii=False) for prompt in self.items)
        return f"[\n{lines}\n]\n".encode()


def _item(prompt: Prompt, out: Path) -> dict[str, Any]:
    item: dict[str, Any] = {"id": prompt.id, "prompt": prompt.questions[0]}
    if prompt.image is not None:
        item["image"] = path_from(out, prompt.image)
    return item
