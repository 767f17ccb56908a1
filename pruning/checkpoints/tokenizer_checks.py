"""Whether a folder's tokenizer is the model's: transformers makes an empty one where vocabulary files are missing."""

from pathlib import Path
from typing import TYPE_CHECKING

from pruning.errors import CheckpointError, MissingExtraError
from pruning.missing_packages import is_installed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE = "tokenizer.json"
_LEAST_SHARE = 0.5
"""Of the embeddings' rows, tokens that there must be. Models have some hundreds of rows more than tokens, not twice."""


def check_can_be_read(folder: Path) -> None:
    """Raises MissingExtraError for a SentencePiece vocabulary alone, without the package that reads it.

    transformers takes it for another kind then, and asks for that kind's package.
    """
    models = sorted(path.name for path in folder.glob("*.model"))
    if models and not (folder / _WHOLE).is_file() and not is_installed("sentencepiece"):
        raise MissingExtraError(
            "`sentencepiece` must be installed for a vocabulary without tokenizer.json",
            values=f"{folder}: {models[0]}",
            remedy="Install it (pip install sentencepiece protobuf), or copy tokenizer.json there",
        )


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", folder: Path, rows: int) -> None:
    """Check that a tokenizer holds a vocabulary for embeddings of `rows` tokens, and tells where its tokens begin.

    Raises CheckpointError.
    """
    if len(tokenizer) < _LEAST_SHARE * rows:
        files = getattr(type(tokenizer), "vocab_files_names", None) or {}
        parts = [name for name in files.values() if name != _WHOLE]
        found = sorted(name for name in {_WHOLE, *parts} if (folder / name).is_file())
        raise CheckpointError(
            "the folder must hold the vocabulary of the model's tokenizer",
            values=f"{folder}: {len(tokenizer):,} tokens for {rows:,} embeddings; vocabulary files: "
            f"{', '.join(found) or 'none'}",
            remedy=f"Copy or download {_WHOLE}{' (or ' + ', '.join(parts) + ')' if parts else ''} of the model again",
        )
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            "the tokenizer must tell where in a text its tokens are",
            values=f"{folder}: {type(tokenizer).__name__}",
            remedy=f"Use a folder with {_WHOLE}, which a fast tokenizer saves",
        )


def ensure_padding(tokenizer: "PreTrainedTokenizerBase", folder: Path, rows: int) -> None:
    """Give a tokenizer a token to pad with, one that has an embedding. Padding is masked: any will do.

    Raises CheckpointError if it has no special token at all.
    """
    for name in ("pad_token", "eos_token", "bos_token", "unk_token"):
        token, number = getattr(tokenizer, name, None), getattr(tokenizer, f"{name}_id", None)
        if token is not None and number is not None and 0 <= number < rows:
            if name != "pad_token":
                tokenizer.pad_token = token
            return
    raise CheckpointError(
        "a tokenizer must have a token to pad with",
        values=f"{folder}: no pad_token, eos_token, bos_token or unk_token below {rows:,}",
        remedy="Set pad_token in tokenizer_config.json to a token of the vocabulary",
    )
