"""Tokenizers that are like a checkpoint's own but for one thing."""

import json
import shutil
from pathlib import Path


def with_merged_digits(checkpoint: Path, folder: Path) -> Path:
    """A copy whose byte-level tokenizer has a token "12", which splittings that part digits never make."""
    shutil.copytree(checkpoint, folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    vocab["12"] = vocab.pop("".join(merges[-1]))
    merges[-1] = ["1", "2"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder
