"""What comes along with the weights: by name, from the checkpoint's own folder, and without code."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from pruning.cutting.streaming.companions import companion_bytes, companion_files, copy_companions
from pruning.errors import CheckpointError

ALONG = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tekken.json", "tokenizer.model", "tokenizer.model.v3", "spiece.model",
    "sentencepiece.bpe.model", "qwen.tiktoken", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "chat_template.json", "chat_template.jinja", "generation_config.json",
    "LICENSE", "LICENSE.txt", "LICENCE.md", "Notice", "COPYING", "README.md", "USE_POLICY.md", "use_policy.txt",
)  # fmt: skip
LEFT = (
    "config.json", "adapter_config.json", "params.json", "trainer_state.json", "quantize_config.json",
    "quantization_config.json", "training_args.json", "all_results.json", "metrics.json", "lop_plan.json",
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "pytorch_model.bin", "consolidated.00.pth",
    "model.safetensors", "modeling_x.py", "license.py", "requirements.txt", "nohup.txt", ".gitattributes", "a.gguf",
)  # fmt: skip


def test_by_name(tmp_path: Path) -> None:
    for name in (*ALONG, *LEFT):
        (tmp_path / name).write_text("x")
    assert sorted(map(str, companion_files(tmp_path))) == sorted(ALONG)
    assert companion_bytes(tmp_path) == len(ALONG)


def test_links_within_the_hubs_cache(tmp_path: Path) -> None:
    blobs, source = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    source.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (source / "tokenizer.json").symlink_to("../../blobs/abc")
    (source / "LICENSE").write_text("l")
    (source / "README.md").symlink_to("LICENSE")
    (tmp_path / "to here").symlink_to(source)
    for folder in (source, tmp_path / "to here"):
        assert list(map(str, companion_files(folder))) == ["LICENSE", "README.md", "tokenizer.json"]
    (tmp_path / "out").mkdir()
    copy_companions(source, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


@pytest.mark.parametrize("name", ["README.md", "additional_chat_templates/a.jinja", "additional_chat_templates"])
def test_links_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    (home / "a.jinja").write_text("machine x password y")
    link = source / name
    link.parent.mkdir(parents=True)
    link.symlink_to(home if name.endswith("templates") else home / "a.jinja")
    with pytest.raises(CheckpointError, match=rf"must stay within it.*{name}.*{home}"):
        companion_files(source)


def test_a_blobs_folder_that_is_no_hub_cache_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_text("x")
    (tmp_path / "folder" / "source").mkdir(parents=True)
    (tmp_path / "folder" / "source" / "README.md").symlink_to(tmp_path / "blobs" / "a")
    with pytest.raises(CheckpointError, match="must stay within it"):
        companion_files(tmp_path / "folder" / "source")


def test_configs_no_longer_name_code(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    document = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["code.X", None]}, "eos_token": "‹é›"}
    (source / "tokenizer_config.json").write_text(json.dumps(document), encoding="utf-8")
    (source / "preprocessor_config.json").write_text('{"a":   1}')
    (source / "generation_config.json").write_text("no JSON: who reads it will say so")
    (source / "tokenizer.json").write_text('{"auto_map": "a word"}')
    copy_companions(source, out)
    del document["auto_map"]
    assert json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8")) == document
    for name in ("preprocessor_config.json", "generation_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_a_file_that_cannot_be_read_is_the_sources_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "README.md").write_text("x")
    real = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == source / "README.md":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CheckpointError, match=r"files must be readable.*README\.md: Input/output error"):
        copy_companions(source, out)
