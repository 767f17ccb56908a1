"""Asking llama.cpp itself: how it encodes a text with a GGUF file, and what logits it computes."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np

from pruning.cutting.gguf.tensor_types import Float32Array
from pruning.errors import CheckpointError
from pruning.missing_packages import missing_extra


def require_llama_cpp() -> None:
    """Raises MissingExtraError if llama-cpp-python is not installed, or is and does not load its library.

    Makes it print nothing but what is fatal.
    """
    try:
        import llama_cpp  # noqa: F401
    except Exception as error:
        raise missing_extra(
            "llama-cpp",
            "running a GGUF file needs the llama-cpp extra",
            values=str(error) or type(error).__name__,
            note="; it compiles for some minutes",
        ) from error
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)


class LlamaVocabulary(AbstractContextManager["LlamaVocabulary"]):
    """The tokenizer of a GGUF file as llama.cpp has it; no weights are read. Use it in a `with` block.

    Raises:
        MissingExtraError: llama-cpp-python is not installed, or broken.
        CheckpointError: llama.cpp refuses the file.
    """

    def __init__(self, path: str | Path) -> None:
        require_llama_cpp()
        from llama_cpp import llama_cpp

        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.vocab_only, settings.n_gpu_layers = True, 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if model is None:
            raise CheckpointError("llama.cpp must load the file", values=str(path))
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, begin and end added as the file says."""
        from llama_cpp import llama_cpp

        data = text.encode()
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, True, True)
        assert count >= 0, "a text makes no more tokens than it has bytes, and a begin and an end"
        return list(tokens[:count])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from llama_cpp import llama_cpp

        llama_cpp.llama_model_free(self._model)


class LlamaRuntime(AbstractContextManager["LlamaRuntime"]):
    """A GGUF file, opened by llama.cpp on the CPU. Use it in a `with` block.

    `context_length` bounds a prompt's tokens. `exact_cache` keeps keys and values in f32 instead of llama.cpp's usual
    f16.

    Raises:
        MissingExtraError: llama-cpp-python is not installed, or broken.
        CheckpointError: llama.cpp refuses the file.
    """

    def __init__(
        self, path: str | Path, *, context_length: int = 512, num_threads: int = 1, exact_cache: bool = False
    ) -> None:
        require_llama_cpp()
        from llama_cpp import GGML_TYPE_F16, GGML_TYPE_F32, Llama

        cache = GGML_TYPE_F32 if exact_cache else GGML_TYPE_F16
        try:
            self._llama = Llama(
                str(path),
                n_ctx=context_length,
                n_batch=context_length,
                n_ubatch=context_length,
                n_threads=num_threads,
                n_threads_batch=num_threads,
                logits_all=True,
                type_k=cache,
                type_v=cache,
                n_gpu_layers=0,
                verbose=False,
            )
        except ValueError as error:
            raise CheckpointError("llama.cpp must load the file", values=f"{path}: {error}") from error

    def logits(self, token_ids: Sequence[int]) -> Float32Array:
        """[T, V] logits after each of the T tokens of a prompt."""
        self._llama.reset()
        self._llama.eval(list(token_ids))
        found: Float32Array = np.array(self._llama.scores[: len(token_ids)], dtype=np.float32)
        return found

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The `count` most likely tokens after a prompt, each fed back to the model."""
        self._llama.reset()
        self._llama.eval(list(token_ids))
        found: list[int] = []
        while len(found) < count:
            found.append(int(np.argmax(self._llama.scores[self._llama.n_tokens - 1])))
            if len(found) < count:
                self._llama.eval(found[-1:])
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._llama.close()
