"""Vocabularies of the SentencePiece kind: from a tokenizer.json that was made of one, or from tokenizer.model alone.

llama.cpp knows no merges for them: of two neighbours that make a token, the pair with the highest score goes first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruning.cutting.gguf.answer_ends import with_answer_ends
from pruning.cutting.gguf.sentencepiece_model import BPE, read_sentencepiece
from pruning.cutting.gguf.tokenizer_files import json_object
from pruning.cutting.gguf.vocabulary import UNMERGED_SCORE, TokenKind, Vocabulary
from pruning.errors import UnsupportedModelError

_SPACE = "\u2581"  # what SentencePiece writes for a space
_AFTER_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def as_sentencepiece(
    vocabulary: Vocabulary, folder: Path, document: Mapping[str, Any], merges: Sequence[str]
) -> Vocabulary:
    """A tokenizer.json that was made from a SentencePiece model, as the pieces and scores that it had."""
    prefix, notes = _space_prefix(document)
    unknown = vocabulary.special_ids.get("unknown")
    kinds = [
        TokenKind.UNKNOWN if index == unknown else TokenKind.BYTE if _is_byte(text) else kind
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    ]
    scores = _piece_scores(folder, vocabulary.tokens)
    if scores is None:
        scores = _merge_scores(vocabulary.tokens, merges)
        if not _merges_are_complete(document["model"]["vocab"], merges):
            notes.append("the tokenizer's merges are not those of a SentencePiece model; llama.cpp may merge otherwise")
    return replace(
        vocabulary,
        model="llama",
        kinds=tuple(map(int, kinds)),
        scores=tuple(scores),
        adds_space_prefix=prefix,
        notes=(*vocabulary.notes, *notes),
    )


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _space_prefix(document: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether a space is put before a text, and what llama.cpp does otherwise."""
    normalizer, pre_tokenizer = document.get("normalizer") or {}, document.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    known = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}, {"type": "Prepend", "prepend": _SPACE}]
    strange = [step["type"] for step in steps if step not in known]
    if pre_tokenizer == _AFTER_SPACES and known[0] in steps:
        pre_tokenizer = {}  # Gemma's: there are no spaces left
    if strange or pre_tokenizer.get("type", "Metaspace") != "Metaspace":
        raise UnsupportedModelError(
            "a SentencePiece tokenizer must only write spaces as \u2581",
            values=", ".join(strange) or str(pre_tokenizer.get("type")),
        )
    if known[1] in steps:
        return True, []
    scheme = pre_tokenizer.get("prepend_scheme", "never")
    if scheme == "first":
        return True, ["llama.cpp puts a space before text that follows a special token; transformers does not"]
    return scheme == "always", []


def _piece_scores(folder: Path, tokens: Sequence[str]) -> list[float] | None:
    """[V] scores of tokenizer.model, if there is one and its pieces are the first of `tokens`."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    model = read_sentencepiece(path)
    pieces = [piece.text for piece in model.pieces]
    if model.model_type != BPE or list(tokens[: len(pieces)]) != pieces:
        return None
    scores = [piece.score for piece in model.pieces]
    return scores + [UNMERGED_SCORE] * (len(tokens) - len(scores))


def _merge_scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """[V] scores that order the merges as they are: the first is the highest."""
    ranks: dict[str, int] = {}
    for pair in merges:
        ranks.setdefault(pair.replace(" ", ""), len(ranks))
    return [-float(ranks[text]) if text in ranks else UNMERGED_SCORE for text in tokens]


def _merges_are_complete(vocab: Mapping[str, int], merges: Sequence[str]) -> bool:
    """Whether every way to make a token of two is a merge, as it is for SentencePiece, which knows no merges."""
    ways: dict[str, int] = {}
    for pair in merges:
        text = pair.replace(" ", "")
        ways[text] = ways.get(text, 0) + 1
    return all(
        count == sum(text[:cut] in vocab and text[cut:] in vocab for cut in range(1, len(text)))
        for text, count in ways.items()
    )


def from_sentencepiece(folder: Path) -> Vocabulary:
    """A tokenizer.model alone, with what lies beside it as JSON: added tokens, special ones, flags.

    As in transformers, the JSON files have the last word on which tokens are special.
    """
    model = read_sentencepiece(folder / "tokenizer.model")
    if model.model_type != BPE:
        raise UnsupportedModelError(
            "a SentencePiece model must be byte-pair encoding", values=f"model type {model.model_type}"
        )
    settings = json_object(folder / "tokenizer_config.json")
    named = _named_tokens(json_object(folder / "special_tokens_map.json"), settings)
    added = {str(text): int(token_id) for text, token_id in json_object(folder / "added_tokens.json").items()}
    special = {text for texts in named.values() for text in texts}
    for token_id, entry in settings.get("added_tokens_decoder", {}).items():
        added[entry["content"]] = int(token_id)
        if entry.get("special"):
            special.add(entry["content"])
    size = max([len(model.pieces), *(token_id + 1 for token_id in added.values())])
    tokens = [piece.text for piece in model.pieces] + [""] * (size - len(model.pieces))
    kinds = [piece.kind for piece in model.pieces] + [int(TokenKind.UNUSED)] * (size - len(model.pieces))
    for text, token_id in added.items():
        if token_id >= len(model.pieces):
            tokens[token_id], kinds[token_id] = text, TokenKind.USER_DEFINED
    for token_id, text in enumerate(tokens):
        if text in special and kinds[token_id] in (TokenKind.NORMAL, TokenKind.USER_DEFINED):
            kinds[token_id] = TokenKind.CONTROL
    scores = [piece.score for piece in model.pieces] + [UNMERGED_SCORE] * (size - len(model.pieces))
    own = {"bos": model.bos_id, "eos": model.eos_id, "unknown": model.unk_id, "padding": model.pad_id}
    ids = {name: token_id for name, token_id in own.items() if token_id >= 0}
    ids |= {name: tokens.index(named[key][0]) for name, key in _KEYS.items() if set(named[key]) & set(tokens)}
    ids, notes = with_answer_ends(ids, tokens, folder)
    return Vocabulary(
        model="llama",
        tokens=tuple(tokens),
        kinds=tuple(map(int, kinds)),
        scores=tuple(scores),
        special_ids=ids,
        adds_bos=bool(settings.get("add_bos_token", True)),
        adds_eos=bool(settings.get("add_eos_token", False)),
        adds_space_prefix=model.adds_space_prefix,
        notes=notes,
    )


_KEYS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""llama.cpp's names of special tokens -> those in a tokenizer's JSON files."""


def _named_tokens(*documents: Mapping[str, Any]) -> dict[str, list[str]]:
    """The special tokens by the keys of JSON files, of which the last that names one counts; [] where none does."""
    found: dict[str, list[str]] = {key: [] for key in (*_KEYS.values(), "additional_special_tokens")}
    for document in documents:
        for key in found:
            value = document.get(key)
            entries = value if isinstance(value, list) else [value]
            texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
            found[key] = [x for x in texts if isinstance(x, str)] or found[key]
    return found
