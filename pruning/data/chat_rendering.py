"""Conversations as text: what a chat template makes of them, and where in it the answers are.

One text holds a whole conversation where the template renders its beginning as a prefix of the whole. Templates of
reasoning models do not: Qwen3's opens the last answer with an empty `<think>` block and drops it from the history. Of
those, every turn is a text of its own, with the history before it as the model would see it when asked.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.processor import takes_images, tokenizer_of
from pruning.data.conversations import Conversation, Turn
from pruning.errors import CheckpointError, DatasetError

if TYPE_CHECKING:
    from pruning.checkpoints.processor import Processor

_TODAY = datetime(2024, 7, 26)
"""The day on which all templates are rendered: what Llama 3.1's says by itself."""
_VARIABLES = {"enable_thinking": False, "date_string": _TODAY.strftime("%d %b %Y")}
"""What templates are told, if they ask: answers are given without reasoning (Qwen3), and text must not change from day
to day (Llama 3.2 writes today's date unless it is given one)."""
_CLOCK = "strftime_now"
"""What transformers gives to templates that write a date (Mistral Small's, gpt-oss's). It knows no day but today."""


@dataclass(frozen=True, slots=True)
class RenderedText:
    """One teacher-forced text.

    Attributes:
        answers: where answers start and stop in `text`, in characters, end-of-turn marker included; in order.
    """

    conversation: Conversation
    text: str
    answers: tuple[tuple[int, int], ...]


def rendered_texts(conversation: Conversation, processor: "Processor") -> list[RenderedText]:
    """The texts that together hold every answer of `conversation` once, in order: one of all turns, or one a turn.

    Raises:
        DatasetError: the chat template does not fit.
        CheckpointError: the model has none.
    """
    turns = [_render_turn(conversation, turn, processor) for turn in range(len(conversation.turns))]
    whole = turns[-1].text
    if all(whole.startswith(turn.text[: turn.answers[0][1]]) for turn in turns):
        return [RenderedText(conversation, whole, tuple(turn.answers[0] for turn in turns))]
    return turns


def prompts_of(conversation: Conversation, processor: "Processor") -> list[str]:
    """For each turn, the text up to where its answer begins, the true history before it."""
    return [prompt_of(conversation, turn, processor) for turn in range(len(conversation.turns))]


def prompt_of(conversation: Conversation, turn: int, processor: "Processor") -> str:
    """The text up to where the answer of `turn` begins, the answers before it included.

    Raises as `rendered_texts`.
    """
    return _render(processor, conversation.messages()[: 2 * turn + 1], conversation, add_generation_prompt=True)


def _render_turn(conversation: Conversation, turn: int, processor: "Processor") -> RenderedText:
    """The text up to the answer of `turn`, of which only that answer counts."""
    messages = conversation.messages()[: 2 * turn + 2]
    prompt = _render(processor, messages[:-1], conversation, add_generation_prompt=True)
    answered = _render(processor, messages, conversation)
    # A prompt may end with what only reasoning answers go on with (DeepSeek-R1's `<think>`).
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, answered, strict=False)))
    if start < len(prompt) and not answered[start:].lstrip().startswith(conversation.turns[turn].answer.strip()):
        raise DatasetError(
            "the chat template must render an answer where its prompt ends",
            values=f"conversation {conversation.id}, turn {turn}: {prompt[start:]!r} and {answered[start:][:40]!r}",
        )
    stop = _stop(answered.rstrip(), messages, conversation, processor)
    return RenderedText(conversation, answered, ((start, stop),))


def _stop(answered: str, messages: list[dict[str, Any]], conversation: Conversation, processor: "Processor") -> int:
    """Where the last answer stops: before a marker that ends the text, and not the turn (Phi-3's `<|endoftext|>`)."""
    eos = tokenizer_of(processor).eos_token
    if not eos or not answered.endswith(str(eos)):
        return len(answered)
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    continued = _render(processor, [*messages, question], conversation)
    before = answered.removesuffix(str(eos)).rstrip()
    return len(before) if continued.startswith(before) and not continued.startswith(answered) else len(answered)


def _render(processor: "Processor", messages: list[dict[str, Any]], conversation: Conversation, **kwargs: Any) -> str:
    if not takes_images(processor):
        if conversation.image is not None:
            raise DatasetError(
                "a language model takes conversations without images",
                values=f"conversation {conversation.id}: {conversation.image}",
                remedy="Leave these conversations out, or take `image` out of them",
            )
        # Templates of language models take a message's text, not a list of its parts.
        messages = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
    template = _template_of(processor)
    asked = {name: value for name, value in _VARIABLES.items() if name in template}
    if _CLOCK in template:
        asked["chat_template"] = _stopped_clock() + template
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, **asked, **kwargs))
    except Exception as error:
        raise DatasetError(
            "the processor's chat template must take user and assistant messages",
            values=f"conversation {conversation.id}: {error}",
        ) from error


def _template_of(processor: "Processor") -> str:
    """The chat template that is used without being asked for by name; raises CheckpointError if there is none."""
    template = processor.chat_template
    if not template:
        raise CheckpointError(
            "the model must have a chat template, which says how questions and answers are written",
            values="neither chat_template.jinja nor an entry in the tokenizer's or processor's config",
            remedy="Base models have none: take the instruction-tuned version, or put its chat_template.jinja into the "
            "model's folder",
        )
    if isinstance(template, dict):
        if "default" not in template:
            raise CheckpointError(
                "of several chat templates one must be the default",
                values=f"named {', '.join(sorted(template))}",
                remedy="Put the one for questions and answers into the model's folder as chat_template.jinja",
            )
        template = template["default"]
    return str(template)


@cache
def _stopped_clock() -> str:
    """A macro before a template, which hides transformers' function of that name: the same texts on every day."""
    plain = [f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZ"]
    directives = [f"%-{letter}" for letter in "dHIjklmMSUWy"] + plain  # the longer ones first
    known = [(directive, _TODAY.strftime(directive)) for directive in directives]
    # A percent sign of its own waits as a character that no format has; seconds since 1970 would depend on the zone.
    known = [("%%", "\x00"), ("%s", str(int(_TODAY.replace(tzinfo=UTC).timestamp()))), *known, ("\x00", "%")]
    replaced = "".join(f"|replace({a!r},{b!r})" for a, b in known if b != a)
    # It ends with an expression: the line break that a template may begin with would be dropped after a block.
    return f"{{%- macro {_CLOCK}(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}{{{{ '' }}}}"


def turn_ends(processor: "Processor") -> set[int]:
    """The special token with which the chat template ends an answer, if it does.

    It belongs to the tokens that end generation, but not every checkpoint's files say so. Raises as `rendered_texts`.
    """
    text = rendered_texts(Conversation("", None, (Turn("?", "."),)), processor)[0]
    start, stop = text.answers[0]
    _, _, end = text.text[start:stop].partition(".")
    tokenizer = tokenizer_of(processor)
    tokens = tokenizer(end.lstrip(), add_special_tokens=False)["input_ids"]
    return {token for token in tokens[:1] if token in tokenizer.all_special_ids}
