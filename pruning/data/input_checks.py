"""What can be known of texts and pictures before anything is measured, so that no long pass is lost for one item."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pruning.checkpoints.processor import (
    adds_special_tokens,
    embeddings_of,
    process_conversations,
    takes_images,
    tokenizer_of,
)
from pruning.data.chat_rendering import RenderedText
from pruning.data.conversations import Conversation
from pruning.data.picture_files import check_pixels
from pruning.errors import CheckpointError, DatasetError, LopError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from pruning.checkpoints.processor import Processor

_TEXTS_AT_ONCE = 256


def check_texts(texts: Sequence[RenderedText], processor: "Processor") -> None:
    """Check that questions and answers have tokens, and that all tokens have embeddings.

    Raises:
        DatasetError: a question or an answer has no token of its own, or holds the model's placeholder for a picture.
        CheckpointError: a token has no embedding.
    """
    conversations = list({id(text.conversation): text.conversation for text in texts}.values())
    _check_turns(conversations, processor)
    if embeddings_of(processor) is not None:
        special = {adds_special_tokens(processor, text.text) for text in texts}
        for adds in sorted(special):
            chosen = [(t.conversation, t.text) for t in texts if adds_special_tokens(processor, t.text) == adds]
            for conversation, _, ids in _tokens(chosen, processor, add_special_tokens=adds):
                check_embedded(ids, conversation, processor)


def check_embedded(ids: Iterable[int], conversation: Conversation, processor: "Processor") -> None:
    """Raises CheckpointError if the model has no embedding for one of the tokens `ids`; of an unknown model, never."""
    known = embeddings_of(processor)
    if known is None:
        return
    for number in ids:
        if not 0 <= number < known.rows and number not in known.placeholders:
            token = tokenizer_of(processor).convert_ids_to_tokens(number)
            raise CheckpointError(
                "every token must have an embedding",
                values=f"conversation {conversation.id}: token {token!r} is number {number:,}, the model has "
                f"{known.rows:,} embeddings",
                remedy="Take the tokenizer that the model was trained with, or resize the embeddings "
                "(`resize_token_embeddings`), train them and save the model",
            )


def check_pictures(texts: Sequence[RenderedText], processor: "Processor") -> None:
    """Check that every picture can be decoded, and that the processor takes the smallest, largest and narrowest ones.

    Raises:
        DatasetError: names the conversation.
        MissingExtraError: the processor asks for a package.
    """
    if not takes_images(processor):
        return
    sizes: dict[tuple[int, int], RenderedText] = {}
    checked = set()
    for text in texts:
        path = text.conversation.image
        if path is None or path in checked:
            continue
        checked.add(path)
        try:
            sizes.setdefault(check_pixels(path), text)
        except DatasetError as error:
            values = f"{error.values} (conversation {text.conversation.id})"
            raise DatasetError(error.rule, values=values, remedy=error.remedy) from error
    for text in _extremes(sizes):
        ids = [text.conversation.id]
        process_conversations(processor, [text.text], [text.conversation.open_image()], ids)


def _extremes(sizes: dict[tuple[int, int], RenderedText]) -> list[RenderedText]:
    """What a processor cannot take is too small, too large or too narrow: one of these is, if any is."""
    if not sizes:
        return []
    measures = (
        lambda size: size[0],
        lambda size: size[1],
        lambda size: size[0] * size[1],
        lambda size: size[0] / size[1],
    )
    chosen = [pick(sizes, key=measure) for measure in measures for pick in (min, max)]
    return [sizes[size] for size in dict.fromkeys(chosen)]


def _check_turns(conversations: Sequence[Conversation], processor: "Processor") -> None:
    tokenizer = tokenizer_of(processor)
    placeholders = [str(x) for x in getattr(processor, "all_special_multimodal_tokens", ())]
    said = [(c, text) for c in conversations for turn in c.turns for text in (turn.question, turn.answer) if text]
    for conversation, text in said:
        if found := [token for token in placeholders if token in text]:
            raise DatasetError(
                "a text must not hold what stands for a picture in the model's own prompts",
                values=f"conversation {conversation.id}: {found[0]!r} in {text[:60]!r}",
                remedy="Take it out: only <image> in the first question stands for the picture",
            )
    means_nothing = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    for conversation, text, ids in _tokens(said, processor, add_special_tokens=False):
        if means_nothing.issuperset(ids):
            raise DatasetError(
                "every question and answer must have tokens of its own",
                values=f"conversation {conversation.id}: {text[:60]!r} becomes {list(ids)[:8]}",
                remedy="Check the tokenizer's files (tokenizer.json), or leave this conversation out",
            )


def _tokens(
    said: Sequence[tuple[Conversation, str]], processor: "Processor", *, add_special_tokens: bool
) -> Iterator[tuple[Conversation, str, list[int]]]:
    """The tokens of each text; raises DatasetError for one that the tokenizer does not take."""
    tokenizer = tokenizer_of(processor)
    rest = iter(said)
    while chunk := list(islice(rest, _TEXTS_AT_ONCE)):
        try:
            encoded = tokenizer([text for _, text in chunk], add_special_tokens=add_special_tokens)["input_ids"]
        except (LopError, MemoryError):
            raise
        except Exception as error:
            raise _not_taken(chunk, processor, error) from error
        for (conversation, text), ids in zip(chunk, encoded, strict=True):
            yield conversation, text, ids


def _not_taken(chunk: Sequence[tuple[Conversation, str]], processor: "Processor", error: Exception) -> DatasetError:
    """The first text that the tokenizer does not take alone."""
    conversation, reason = chunk[0][0], error
    for conversation, text in chunk:  # noqa: B007 (the last one is named)
        try:
            tokenizer_of(processor)(text)
        except Exception as alone:  # noqa: BLE001 (reported below)
            reason = alone
            break
    return DatasetError(
        "the model's tokenizer must take every text",
        values=f"conversation {conversation.id}: {reason_of(reason)}",
        remedy="Look at this conversation, and at tokenizer.json and tokenizer_config.json of the model",
    )
