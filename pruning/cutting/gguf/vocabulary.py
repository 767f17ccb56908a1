"""What a GGUF file says of a tokenizer: tokens, their kinds and scores or merges, and what is special about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from pruning.cutting.gguf.writer import Value
from pruning.errors import CheckpointError

UNMERGED_SCORE = -1e6
"""Of tokens that no merge makes: under every score of one that a merge makes."""


class TokenKind(IntEnum):
    """`tokenizer.ggml.token_type` (GGUF specification); the numbers are SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE).
        tokens: [V] by id.
        kinds: [V] of each token.
        scores: [V] of SentencePiece: the pair that makes the token of the highest score is merged first.
        merges: of byte-level BPE, "left right", the first first.
        pre_tokenizer: llama.cpp's name for how byte-level BPE splits words.
        special_ids: "bos", "eos", "eot", "unknown", "padding" -> id, where there is one.
        adds_bos, adds_eos: whether encoding puts them around a text.
        adds_space_prefix: whether SentencePiece puts a space before a text.
        chat_template: Jinja, if the folder has one.
        notes: where llama.cpp may encode otherwise than transformers, for the user.
    """

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    pre_tokenizer: str = "default"
    special_ids: Mapping[str, int] = field(default_factory=dict)
    adds_bos: bool = False
    adds_eos: bool = False
    adds_space_prefix: bool = False
    chat_template: str = ""
    notes: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Value]:
        """The keys of the file (GGUF specification, "Tokenizer")."""
        found: dict[str, Value] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre_tokenizer,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.kinds,
            "tokenizer.ggml.add_bos_token": self.adds_bos,
            "tokenizer.ggml.add_eos_token": self.adds_eos,
            "tokenizer.ggml.add_space_prefix": self.adds_space_prefix,
            **{f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in self.special_ids.items()},
        }
        if self.scores:
            found["tokenizer.ggml.scores"] = self.scores
        if self.merges:
            found["tokenizer.ggml.merges"] = self.merges
        if self.chat_template:
            found["tokenizer.chat_template"] = self.chat_template
        return found


def padded(vocabulary: Vocabulary, num_rows: int) -> Vocabulary:
    """With a distinct name for every row of the embeddings: llama.cpp wants as many tokens as rows, all different."""
    vocabulary = _without_strangers(vocabulary, num_rows)
    known = len(vocabulary.tokens)
    tokens = list(vocabulary.tokens) + [""] * (num_rows - known)
    named = [text for text in tokens if text]
    taken = set(named)
    if len(taken) < len(named):
        twice = next(text for text in named if named.count(text) > 1)
        raise CheckpointError("every token must have a name of its own", values=f"{twice!r} stands twice")
    for index, text in enumerate(tokens):
        if not text:
            name = f"[PAD{index}]"
            while name in taken:
                name += "_"
            tokens[index] = name
            taken.add(name)
    extra = num_rows - known
    return replace(
        vocabulary,
        tokens=tuple(tokens),
        kinds=vocabulary.kinds + (int(TokenKind.UNUSED),) * extra,
        scores=vocabulary.scores + (UNMERGED_SCORE,) * extra if vocabulary.scores else (),
    )


def _without_strangers(vocabulary: Vocabulary, num_rows: int) -> Vocabulary:
    """Without added tokens that the model has no embedding for, which transformers' tokenizer classes may bring along.

    Raises CheckpointError if there are ordinary ones among them: then model and tokenizer are not of one kind.
    """
    strangers = [text for text in vocabulary.tokens[num_rows:] if text]
    if not strangers:
        return vocabulary
    added = {TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNUSED}
    if not added.issuperset(vocabulary.kinds[num_rows:]):
        raise CheckpointError(
            "every token must have an embedding",
            values=f"{len(vocabulary.tokens)} tokens, {num_rows} embeddings",
            remedy="Resize the model's embeddings to the tokenizer with transformers first",
        )
    ids = {name: token_id for name, token_id in vocabulary.special_ids.items() if token_id < num_rows}
    note = f"{len(strangers)} added tokens have no embedding and are left out ({strangers[0]}, ...)"
    return replace(
        vocabulary,
        tokens=vocabulary.tokens[:num_rows],
        kinds=vocabulary.kinds[:num_rows],
        scores=vocabulary.scores[:num_rows],
        special_ids=ids,
        adds_bos=vocabulary.adds_bos and "bos" in ids,
        adds_eos=vocabulary.adds_eos and "eos" in ids,
        notes=(*vocabulary.notes, note),
    )
