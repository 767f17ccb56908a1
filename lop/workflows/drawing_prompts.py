"""A prompts file of what a model itself thinks that users ask: for users who have no prompts, or too few."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lop.workflows.answering import Answerer
from lop.workflows.conversation_files import exists, write_once
from lop.workflows.drawn_prompts import DrawnPrompts, KeptPrompts
from pruning.checkpoints.processor import takes_images, tokenizer_of
from pruning.data.conversations import Conversation, Turn
from pruning.data.prompts import Prompt
from pruning.data.user_turns import UserTurn, user_turn
from pruning.errors import InputError
from pruning.measuring.answer_draft import locked_answers
from pruning.measuring.answers import Answer, Question, answer_batch, batch_key, check_lengths, check_questions
from pruning.measuring.drawing import Drawing

_MOST_DRAWS = 4
"""As many times the prompts that are asked for: a model of which three in four are of no use draws no better ones."""
_DRAWS_IN_VAIN = 256
"""After so many of no use at all there will be no others."""

_Turns = Sequence[tuple[Path | None, UserTurn]]


def draw_prompts(
    answerer: Answerer,
    out: Path,
    *,
    count: int,
    drawing: Drawing,
    pictures: Sequence[Path] = (),
    max_new_tokens: int = 128,
    batch_size: int = 64,
    on_prompt: Callable[[int, int], None] | None = None,
) -> DrawnPrompts:
    """Write `count` different prompts to `out`, as `load_prompts` takes them; of `pictures` equally many, if any.

    The model begins where a user would speak (`user_turn`). What does not end, cannot be asked or was said before is
    left out; after `_MOST_DRAWS` times `count` draws fewer are written. Batches wait in a draft beside `out`, and a run
    that was killed is gone on with by the same call. `on_prompt(done, count)` is told of progress.

    Raises:
        CheckpointError: the model does not load or has no chat template, or another process writes `out`.
        DatasetError: a picture cannot be used, no prompt was of use, or the file system refuses.
        InputError: `out` exists with other content, or the model takes no `pictures`.
    """
    turns = _turns(answerer, pictures, count, max_new_tokens)
    most = _MOST_DRAWS * count
    with locked_answers(out) as draft:
        kept = KeptPrompts(count, answerer.processor)
        settings = f"prompts {answerer.settings} {max_new_tokens}"
        while kept.missing and kept.drawn < most and (kept.items or kept.drawn < _DRAWS_IN_VAIN):
            size = min(batch_size, 2 * kept.missing, most - kept.drawn)
            batch = _next(turns, kept, size)
            key = batch_key(settings, batch, drawing)
            said = draft.find(key)
            resumed = said is not None
            if said is None:
                if os.path.lexists(out):
                    raise exists(out)
                said = _said(answerer, batch, turns[0][1], max_new_tokens, drawing)
                draft.add(key, said)
            kept.add([_prompt(question, drawing) for question in batch], said, resumed=resumed)
            if on_prompt is not None:
                on_prompt(len(kept.items), count)
        content = kept.document(out)
        write_once(out, content)
        draft.discard()
    return kept.report()


def _turns(answerer: Answerer, pictures: Sequence[Path], count: int, max_new_tokens: int) -> _Turns:
    """Each picture and how a conversation about it begins, or the one beginning without; all that can be told early."""
    from pruning.checkpoints.anatomy_reader import load_config

    processor = answerer.processor
    if pictures and not takes_images(processor):
        raise InputError(
            "only a model that takes pictures can be asked about some",
            values=f"{answerer.folder} is a language model",
            remedy="Leave --pictures out",
        )
    turns = [(image, user_turn(processor, image)) for image in pictures[:count] or (None,)]
    begun = [_begun(index, *turn) for index, turn in enumerate(turns)]
    check_questions(begun, processor)
    lengths = [len(tokenizer_of(processor)(turn.before)["input_ids"]) for _, turn in turns]
    check_lengths(load_config(answerer.folder), [x.conversation.id for x in begun], lengths, max_new_tokens)
    return turns


def _next(turns: _Turns, kept: KeptPrompts, size: int) -> list[Question]:
    """As many beginnings, of the pictures with the fewest prompts; they follow from what was said before."""
    order = sorted(turns, key=lambda turn: kept.of_picture(turn[0]))
    return [_begun(kept.drawn + place, *order[place % len(order)]) for place in range(size)]


def _begun(index: int, image: Path | None, turn: UserTurn) -> Question:
    """Not by the prompt's later id: by that its answer is drawn, which must not have the same random numbers."""
    return Question(index, Conversation(f"draw {index}", image, (Turn("", ""),)), turn.before, 0)


def _prompt(question: Question, drawing: Drawing) -> Prompt:
    """What is still to be said, by an id that another draw, of another seed or with pictures, does not use."""
    kind = "drawn" if question.conversation.image is None else "drawn-of-picture"
    return Prompt(f"{kind}-{drawing.seed}-{question.index}", question.conversation.image, ())


def _said(
    answerer: Answerer, batch: Sequence[Question], turn: UserTurn, max_new_tokens: int, drawing: Drawing
) -> list[Answer]:
    """What the model has users say; `turn` says how it ends, whatever the picture."""
    said = answer_batch(
        answerer.load(),
        answerer.processor,
        batch,
        max_new_tokens=max_new_tokens,
        ends=answerer.ends | turn.ends,
        stops=[turn.stop] if turn.stop else [],
        drawing=drawing,
    )
    if not turn.stop:
        return said
    return [Answer(x.text.partition(turn.stop)[0].strip(), x.is_cut and turn.stop not in x.text) for x in said]
