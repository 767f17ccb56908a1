"""Tokenizers as GGUF metadata: kinds of tokens, scores, merges, what is special, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruning.cutting.gguf.answer_ends import with_answer_ends
from pruning.cutting.gguf.pre_tokenizers import GPT_4O, LLAMA3, QWEN2, TEKKEN, pre_tokenizer_name
from pruning.cutting.gguf.sentencepiece_model import Piece, read_sentencepiece
from pruning.cutting.gguf.tokenizer_reader import read_vocabulary
from pruning.cutting.gguf.vocabulary import TokenKind, Vocabulary, padded
from pruning.errors import CheckpointError, UnsupportedModelError
from tests.pruning import sentencepiece_files
from tests.tiny_models import tiny_tokenizer

NUM_PIECES = len(sentencepiece_files.pieces())


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


class TestByteLevel:
    def test_tokens_kinds_and_merges(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        found = read_vocabulary(saved(tokenizer, tmp_path), len(tokenizer) + 2)
        assert (found.model, found.pre_tokenizer) == ("gpt2", "gpt-2")
        assert list(found.tokens[: len(tokenizer)]) == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        special = [index for index, kind in enumerate(found.kinds) if kind == TokenKind.CONTROL]
        assert [found.tokens[index] for index in special[:3]] == ["<pad>", "<bos>", "<eos>"]
        assert found.tokens[-2:] == (f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]")
        assert found.kinds[-2:] == (TokenKind.UNUSED, TokenKind.UNUSED)
        assert found.merges[:2] == ("r e", "Ġ i")
        assert found.special_ids == {"bos": 1, "eos": 2, "padding": 0}
        assert not found.adds_bos
        assert not found.adds_space_prefix
        assert not found.scores
        assert found.metadata()["tokenizer.ggml.bos_token_id"] == 1

    def test_an_added_token_that_is_not_special_is_the_users(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([AddedToken("<think>", lstrip=True)])
        found = read_vocabulary(saved(tokenizer, tmp_path), len(tokenizer))
        assert found.kinds[-1] == TokenKind.USER_DEFINED
        assert "take spaces" in found.notes[0]
        assert "<think>" in found.notes[0]

    def test_a_second_end_of_an_answer(self, tmp_path: Path) -> None:
        (saved(tiny_tokenizer(), tmp_path) / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
        assert read_vocabulary(tmp_path, 300).special_ids["eot"] == 5

    @pytest.mark.parametrize(
        ("tokens", "eos", "ends", "expected", "noted"),
        [
            # Llama 3: the turn's end is neither the first other end nor the text's.
            (["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], 0, [0, 1, 2], 2, []),
            (["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], 2, [0, 1, 2], 2, []),
            # Qwen2: the token that ends a text ends the turn too.
            (["<|im_end|>", "<|endoftext|>"], 0, [0, 1], 0, []),
            (["<|endoftext|>", "<|assistant|>", "<|end|>"], 0, [0, 1, 2], 2, ["<|assistant|>"]),  # Phi-3
            (["</s>", "<stop>", "<halt>"], 0, [0, 1, 2], 1, ["<halt>"]),
            (["<|im_end|>", "<stop>"], 0, [0, 1], 1, []),
        ],
    )
    def test_which_end_is_the_turns(
        self, tmp_path: Path, tokens: list[str], eos: int, ends: list[int], expected: int, noted: list[str]
    ) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        found, notes = with_answer_ends({"eos": eos}, tokens, tmp_path)
        assert found == {"eos": eos, "eot": expected}
        assert len(notes) == bool(noted)
        assert all(text in notes[0] for text in noted)

    @pytest.mark.parametrize("said", [{}, {"eos_token_id": 2}, {"eos_token_id": [2]}, {"eos_token_id": None}], ids=str)
    def test_a_single_end(self, tmp_path: Path, said: dict[str, Any]) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
        assert with_answer_ends({"eos": 2}, ["a", "b", "c"], tmp_path) == ({"eos": 2}, ())
        without = {"eos": 2} if said.get("eos_token_id") else {}
        assert with_answer_ends({}, ["a", "b", "c"], tmp_path) == (without, ())

    @pytest.mark.parametrize(
        ("parts", "whole_words", "name"),
        [
            (["words"], False, "gpt-2"),
            ([pre_tokenizers.Digits(individual_digits=True), "words"], False, "smollm"),
            ([LLAMA3, "bytes"], True, "llama-bpe"),
            ([LLAMA3, "bytes"], False, "dbrx"),
            ([QWEN2, "bytes"], False, "qwen2"),
            ([TEKKEN, "bytes"], True, "tekken"),
            ([GPT_4O, "bytes"], False, "gpt-4o"),
        ],
        ids=lambda x: x if isinstance(x, str) else None,
    )
    def test_pre_tokenizers_by_llama_cpps_name(self, parts: list[Any], whole_words: bool, name: str) -> None:
        tokenizer = tiny_tokenizer().backend_tokenizer
        tokenizer.pre_tokenizer = built(parts)
        document = json.loads(tokenizer.to_str())
        document["model"]["ignore_merges"] = whole_words
        assert pre_tokenizer_name(document) == name

    def test_the_splittings_are_those_of_the_published_tokenizers(self) -> None:
        """Written out, as Llama 3's and Qwen2's tokenizer.json have them."""
        rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        assert words + r"\p{N}{1,3}" + rest == LLAMA3
        assert words + r"\p{N}" + rest == QWEN2

    def test_an_unknown_splitting_is_refused_unless_it_is_named(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.pre_tokenizer = built([r"\w+|\W+", "bytes"])
        saved(tokenizer, tmp_path)
        with pytest.raises(UnsupportedModelError, match=r"\\w\+.*--pre-tokenizer"):
            read_vocabulary(tmp_path, 300)
        assert read_vocabulary(tmp_path, 300, pre_tokenizer="viking").pre_tokenizer == "viking"

    def test_a_normalizer_that_changes_text(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        assert read_vocabulary(saved(tokenizer, tmp_path / "nfc"), 300).model == "gpt2"
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        with pytest.raises(UnsupportedModelError, match="Lowercase"):
            read_vocabulary(saved(tokenizer, tmp_path / "lower"), 300)


def built(parts: list[Any]) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer of splittings and byte levels."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    for part in parts:
        if part in ("bytes", "words"):
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=part == "words"))
        elif isinstance(part, str):
            steps.append(pre_tokenizers.Split(Regex(part), behavior="isolated"))
        else:
            steps.append(part)
    return pre_tokenizers.Sequence(steps)


class TestSentencePiece:
    def test_a_model_file(self, tmp_path: Path) -> None:
        sentencepiece_files.write_model(tmp_path / "tokenizer.model", adds_space_prefix=False)
        found = read_sentencepiece(tmp_path / "tokenizer.model")
        assert found.pieces == tuple(Piece(*piece) for piece in sentencepiece_files.pieces())
        assert (found.unk_id, found.bos_id, found.eos_id, found.pad_id) == (0, 1, 2, -1)
        assert not found.adds_space_prefix
        assert found.model_type == 2

    @pytest.mark.parametrize("content", [b"", b"\x0a\x05ab", b"\xff" * 40, b"\x08\x01", b"not a model at all"])
    def test_a_damaged_model_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model must be"):
            read_sentencepiece(tmp_path / "tokenizer.model")

    def test_every_cut_of_a_model_file_is_an_error_or_a_prefix(self, tmp_path: Path) -> None:
        sentencepiece_files.write_model(tmp_path / "tokenizer.model")
        content = (tmp_path / "tokenizer.model").read_bytes()
        for size in range(0, len(content), 7):
            (tmp_path / "tokenizer.model").write_bytes(content[:size])
            try:
                pieces = read_sentencepiece(tmp_path / "tokenizer.model").pieces
            except CheckpointError:
                continue
            assert pieces == tuple(Piece(*x) for x in sentencepiece_files.pieces()[: len(pieces)])

    def test_a_model_file_alone(self, tmp_path: Path) -> None:
        sentencepiece_files.write_model(tmp_path / "tokenizer.model")
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": NUM_PIECES}))
        found = read_vocabulary(tmp_path, NUM_PIECES + 3)
        assert found.model == "llama"
        assert found.adds_bos
        assert found.adds_space_prefix
        assert found.tokens[:3] == ("<unk>", "<s>", "</s>")
        assert found.kinds[:4] == (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL, TokenKind.BYTE)
        assert found.tokens[NUM_PIECES] == "<image>"
        assert found.kinds[NUM_PIECES] == TokenKind.USER_DEFINED
        assert found.scores[:NUM_PIECES] == tuple(score for _, score, _ in sentencepiece_files.pieces())
        assert found.special_ids == {"unknown": 0, "bos": 1, "eos": 2}

    def test_what_json_says_of_special_tokens_counts(self, tmp_path: Path) -> None:
        """Vicuna's layout: tokenizer.model, and special tokens in JSON files, of either form."""
        sentencepiece_files.write_model(tmp_path / "tokenizer.model")
        words = [text for text, _, kind in sentencepiece_files.pieces() if kind == TokenKind.NORMAL]
        (tmp_path / "added_tokens.json").write_text(
            json.dumps({"<pad>": NUM_PIECES, "<|im_end|>": NUM_PIECES + 1, "<image>": NUM_PIECES + 2})
        )
        (tmp_path / "special_tokens_map.json").write_text(
            json.dumps({"pad_token": "<unk>", "eos_token": {"content": "<|im_end|>"}, "bos_token": "<nowhere>"})
        )
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"pad_token": {"__type": "AddedToken", "content": "<pad>"}, "eos_token": None,
                        "add_bos_token": False, "additional_special_tokens": [words[0]]})
        )  # fmt: skip
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, NUM_PIECES + 1]}))
        found = read_vocabulary(tmp_path, NUM_PIECES + 3)
        assert found.special_ids == {
            "unknown": 0, "bos": 1, "eos": NUM_PIECES + 1, "padding": NUM_PIECES, "eot": NUM_PIECES + 1,
        }  # fmt: skip
        assert found.kinds[NUM_PIECES:] == (TokenKind.CONTROL, TokenKind.CONTROL, TokenKind.USER_DEFINED)
        assert found.kinds[found.tokens.index(words[0])] == TokenKind.CONTROL
        assert found.kinds[0] == TokenKind.UNKNOWN
        assert not found.adds_bos

    def test_a_unigram_model_is_refused(self, tmp_path: Path) -> None:
        sentencepiece_files.write_model(tmp_path / "tokenizer.model", model_type=1)
        with pytest.raises(UnsupportedModelError, match="model type 1"):
            read_vocabulary(tmp_path, 400)

    def test_scores_follow_the_merges_without_a_model_file(self, tmp_path: Path) -> None:
        tokenizer = sentencepiece_files.tokenizer()
        found = read_vocabulary(saved(tokenizer, tmp_path), NUM_PIECES + 1)
        assert found.model == "llama"
        assert found.notes == ()
        assert found.adds_bos
        assert not found.adds_eos
        assert found.adds_space_prefix
        assert found.kinds[:4] == (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL, TokenKind.BYTE)
        assert (found.tokens[-1], found.kinds[-1]) == ("<image>", TokenKind.CONTROL)
        exact = [x for x in sentencepiece_files.pieces() if x[2] == TokenKind.NORMAL and x[1] > -1000]
        by_score = sorted(exact, key=lambda x: -x[1])
        by_merges = sorted(exact, key=lambda x: -found.scores[found.tokens.index(x[0])])
        assert by_merges == by_score

    def test_scores_of_the_model_file_are_used_where_it_is_there(self, tmp_path: Path) -> None:
        saved(sentencepiece_files.tokenizer(), tmp_path)
        sentencepiece_files.write_model(tmp_path / "tokenizer.model")
        found = read_vocabulary(tmp_path, NUM_PIECES + 1)
        assert found.scores[:NUM_PIECES] == tuple(score for _, score, _ in sentencepiece_files.pieces())

    def test_merges_that_no_scores_can_stand_for_are_noted(self, tmp_path: Path) -> None:
        folder = saved(sentencepiece_files.tokenizer(), tmp_path)
        document = json.loads((folder / "tokenizer.json").read_text())
        merges = [tuple(pair) for pair in document["model"]["merges"]]
        twice = next(pair for pair in merges if sum("".join(other) == "".join(pair) for other in merges) > 1)
        document["model"]["merges"].remove(list(twice))
        (folder / "tokenizer.json").write_text(json.dumps(document))
        (note,) = read_vocabulary(folder, NUM_PIECES + 1).notes
        assert "not those of a SentencePiece model" in note

    def test_a_splitting_at_spaces_of_which_there_are_none_left(self, tmp_path: Path) -> None:
        """Gemma's: a normalizer has written all spaces as \u2581."""
        found = read_vocabulary(saved(sentencepiece_files.of_gemma(), tmp_path), NUM_PIECES + 1)
        assert (found.model, found.adds_space_prefix, found.notes) == ("llama", False, ())
        document = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(document | {"normalizer": None}))
        with pytest.raises(UnsupportedModelError, match="Split"):
            read_vocabulary(tmp_path, NUM_PIECES + 1)

    @pytest.mark.parametrize(("scheme", "adds"), [("always", True), ("first", True), ("never", False)])
    def test_space_prefixes(self, tmp_path: Path, scheme: str, adds: bool) -> None:
        folder = saved(sentencepiece_files.with_metaspace(scheme), tmp_path)
        found = read_vocabulary(folder, NUM_PIECES + 1)
        assert found.adds_space_prefix is adds
        assert bool(found.notes) == (scheme == "first")


class TestPadding:
    vocabulary = Vocabulary(
        model="gpt2",
        tokens=("a", "b", "", "<x>"),
        kinds=(1, 1, 5, 3),
        special_ids={"bos": 3, "eos": 1},
        adds_bos=True,
    )

    def test_gaps_and_rows_without_a_token_get_names(self) -> None:
        found = padded(replace(self.vocabulary, tokens=("a", "[PAD2]", "", "<x>")), 5)
        assert found.tokens == ("a", "[PAD2]", "[PAD2]_", "<x>", "[PAD4]")
        assert found.kinds == (1, 1, 5, 3, 5)

    def test_added_tokens_without_an_embedding_are_left_out(self) -> None:
        found = padded(self.vocabulary, 3)
        assert found.tokens == ("a", "b", "[PAD2]")
        assert found.special_ids == {"eos": 1}
        assert not found.adds_bos
        assert "1 added tokens have no embedding" in found.notes[0]

    def test_ordinary_tokens_without_an_embedding_are_an_error(self) -> None:
        with pytest.raises(CheckpointError, match="4 tokens, 1 embeddings"):
            padded(self.vocabulary, 1)

    def test_two_tokens_of_one_name(self) -> None:
        with pytest.raises(CheckpointError, match="'a' stands twice"):
            padded(replace(self.vocabulary, tokens=("a", "b", "", "a")), 4)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must hold the model's tokenizer"):
        read_vocabulary(tmp_path, 10)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "chat_template.jinja").write_text("A"),
        lambda folder: (folder / "chat_template.json").write_text('{"chat_template": "A"}'),
        lambda folder: (folder / "chat_template.json").write_text(
            '{"chat_template": [{"name": "tool", "template": "B"}, {"name": "default", "template": "A"}]}'
        ),
    ],
)
def test_chat_templates(tmp_path: Path, write: Callable[[Path], int]) -> None:
    write(saved(tiny_tokenizer(), tmp_path))
    assert read_vocabulary(tmp_path, 300).chat_template == "A"
