"""A checkpoint folder's tokenizer as a GGUF vocabulary.

Two kinds are read by llama.cpp as transformers does: SentencePiece BPE (`llama`: pieces with scores, bytes for unknown
characters) and byte-level BPE (`gpt2`: merges in order). The truth is what transformers loads, since a folder's files
may disagree; a tokenizer.model is taken for its scores, or alone where there is no tokenizer.json.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.cutting.gguf.answer_ends import with_answer_ends
from pruning.cutting.gguf.pre_tokenizers import pre_tokenizer_name
from pruning.cutting.gguf.sentencepiece_vocabulary import as_sentencepiece, from_sentencepiece
from pruning.cutting.gguf.tokenizer_files import chat_template
from pruning.cutting.gguf.vocabulary import TokenKind, Vocabulary, padded
from pruning.errors import CheckpointError, UnsupportedModelError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_vocabulary(folder: Path, num_rows: int, *, pre_tokenizer: str | None = None) -> Vocabulary:
    """The tokenizer of a checkpoint folder, padded to the `num_rows` rows of the embeddings.

    `pre_tokenizer` names llama.cpp's splitting for a byte-level tokenizer whose own is not recognised.

    Raises:
        CheckpointError: the folder holds no tokenizer that can be read, or more tokens than embeddings.
        UnsupportedModelError: llama.cpp has no such tokenizer.
    """
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        vocabulary = from_sentencepiece(folder)
    else:
        tokenizer = load_tokenizer(folder)
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = _from_tokenizer(folder, tokenizer, document, pre_tokenizer)
    return padded(replace(vocabulary, chat_template=chat_template(folder)), num_rows)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer as transformers has it; raises CheckpointError if there is none of the fast kind."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # which tokenizers raises itself
        raise CheckpointError(
            "the folder must hold the model's tokenizer (tokenizer.json or tokenizer.model)",
            values=f"{folder}: {reason_of(error)}",
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            "the tokenizer must be one that tokenizer.json describes", values=type(tokenizer).__name__
        )
    return tokenizer


def _from_tokenizer(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", document: Mapping[str, Any], pre_tokenizer: str | None
) -> Vocabulary:
    model = document["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedModelError(
            "the tokenizer must be byte-level or SentencePiece byte-pair encoding", values=f"{model.get('type')}"
        )
    tokens, kinds = _tokens(document, model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    ids, notes = with_answer_ends(_special_ids(tokenizer), tokens, folder)
    vocabulary = Vocabulary(
        model="gpt2",
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        special_ids=ids,
        adds_bos="bos" in ids and len(whole) > len(plain) and whole[0] == ids["bos"],
        adds_eos="eos" in ids and len(whole) > len(plain) and whole[-1] == ids["eos"],
        notes=(*_added_token_notes(document), *notes),
    )
    if model.get("byte_fallback"):
        return as_sentencepiece(vocabulary, folder, document, merges)
    _check_normalizer(document.get("normalizer"), pre_tokenizer)
    name = pre_tokenizer or pre_tokenizer_name(document)
    return replace(vocabulary, merges=tuple(merges), pre_tokenizer=name)


def _tokens(document: Mapping[str, Any], vocab: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """[V] tokens and kinds by id; ids that nothing has are unused."""
    size = 1 + max([*vocab.values(), *(int(x["id"]) for x in document["added_tokens"])], default=-1)
    tokens, kinds = [""] * size, [int(TokenKind.UNUSED)] * size
    for text, token_id in vocab.items():
        tokens[token_id], kinds[token_id] = text, TokenKind.NORMAL
    for added in document["added_tokens"]:
        special = TokenKind.CONTROL if added["special"] else TokenKind.USER_DEFINED
        tokens[int(added["id"])], kinds[int(added["id"])] = added["content"], special
    return tokens, kinds


def _added_token_notes(document: Mapping[str, Any]) -> tuple[str, ...]:
    greedy = [x["content"] for x in document["added_tokens"] if x["lstrip"] or x["rstrip"] or x["single_word"]]
    if not greedy:
        return ()
    return (f"{len(greedy)} added tokens take spaces around them ({greedy[0]}, ...); llama.cpp leaves the spaces",)


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Ids by llama.cpp's name."""
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {name: int(token_id) for name, token_id in found.items() if token_id is not None}


def _check_normalizer(node: Mapping[str, Any] | None, pre_tokenizer: str | None) -> None:
    """llama.cpp normalises no byte-level text. NFC changes nothing in text that is composed, as nearly all is."""
    parts = node.get("normalizers", [node]) if node is not None else []
    others = [part["type"] for part in parts if part["type"] != "NFC"]
    if others and pre_tokenizer is None:
        raise UnsupportedModelError(
            "the tokenizer must take text as it is", values=f"it has a normalizer: {', '.join(others)}"
        )
