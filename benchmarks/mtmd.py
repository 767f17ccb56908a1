"""Looking at pictures through llama.cpp's mtmd library, by its C interface (tools/mtmd/mtmd.h)."""

import ctypes
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp, mtmd_cpp

from pruning.cutting.gguf.llama_runtime import require_llama_cpp
from pruning.cutting.gguf.tensor_types import Float32Array


def _say_nothing(_level: int, _text: bytes, _user_data: int) -> None:
    """mtmd reports every step of every picture."""


_QUIET = llama_cpp.llama_log_callback(_say_nothing)  # kept: the library calls it for as long as the process lives


class SeeingModel:
    """A language model's GGUF file and its mmproj file, run together on the CPU, with an f32 cache.

    Use it in a `with` block. Raises ValueError if llama.cpp refuses a file.
    """

    def __init__(self, model: Path, mmproj: Path, *, context_length: int = 512) -> None:
        require_llama_cpp()
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), settings)
        if self._model is None:
            raise ValueError(f"llama.cpp does not load {model}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = context_length
        context.n_threads = context.n_threads_batch = 1
        context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        vision = mtmd_cpp.mtmd_context_params_default()
        vision.use_gpu, vision.n_threads, vision.print_timings, vision.warmup = False, 1, False, False
        mtmd_cpp.mtmd_log_set(_QUIET, ctypes.c_void_p())
        mtmd_cpp.mtmd_helper_log_set(_QUIET, ctypes.c_void_p())
        self._vision = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), self._model, vision)
        if self._context is None or self._vision is None:
            raise ValueError(f"llama.cpp does not load {mmproj}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._input_size = llama_cpp.llama_model_n_embd_inp(self._model)

    def __enter__(self) -> "SeeingModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mtmd_cpp.mtmd_free(self._vision)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def features(self, picture: npt.NDArray[np.uint8]) -> Float32Array:
        """[tokens, hidden_size] what the projector makes of a picture uint8 [H, W, 3]: of all its tiles, in order.

        Where several decoder layers see features of the tower (DeepStack), a row has theirs behind the first's.
        """
        chunks = self._chunks(self._marker(), picture)
        tiles: list[Float32Array] = []
        for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                continue
            if mtmd_cpp.mtmd_encode_chunk(self._vision, chunk) != 0:
                raise ValueError("mtmd cannot encode the picture")
            rows = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
            pointer = mtmd_cpp.mtmd_get_output_embd(self._vision)
            tiles.append(np.ctypeslib.as_array(pointer, (rows, self._input_size)).copy())
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        if not tiles:
            raise ValueError("mtmd made no image chunk")
        return np.concatenate(tiles)

    def answer(self, before: str, picture: npt.NDArray[np.uint8], after: str, *, max_tokens: int = 24) -> list[int]:
        """Token ids of the greedy answer to a prompt with a picture in it, up to a token that ends an answer."""
        logits = self.logits(before, picture, after)
        found: list[int] = []
        while len(found) < max_tokens:
            token = int(logits.argmax())
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                break
            found.append(token)
            batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
            if llama_cpp.llama_decode(self._context, batch) != 0:
                raise ValueError("llama.cpp cannot decode")
            logits = self._last_logits()
        return found

    def logits(self, before: str, picture: npt.NDArray[np.uint8], after: str) -> Float32Array:
        """[V] logits after a prompt with a picture in it."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        chunks = self._chunks(before + self._marker() + after, picture)
        past = llama_cpp.llama_pos(0)
        code = mtmd_cpp.mtmd_helper_eval_chunks(
            self._vision, self._context, chunks, llama_cpp.llama_pos(0), llama_cpp.llama_seq_id(0), 512, True,
            ctypes.byref(past),
        )  # fmt: skip
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        if code != 0:
            raise ValueError(f"mtmd cannot evaluate the prompt ({code})")
        return self._last_logits()

    def _last_logits(self) -> Float32Array:
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._num_tokens,)).copy()

    def _marker(self) -> str:
        return str(mtmd_cpp.mtmd_default_marker().decode())

    def _chunks(self, text: str, picture: npt.NDArray[np.uint8]) -> mtmd_cpp.mtmd_input_chunks_p:
        """The prompt in pieces of text and picture."""
        height, width, _ = picture.shape
        pixels = np.ascontiguousarray(picture)
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        assert chunks is not None
        data = text.encode()
        prompt = mtmd_cpp.mtmd_input_text(text=data, text_len=len(data), add_special=True, parse_special=True)
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        code = mtmd_cpp.mtmd_tokenize(self._vision, chunks, ctypes.byref(prompt), bitmaps, 1)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        if code != 0:
            raise ValueError(f"mtmd cannot take the prompt apart ({code})")
        return chunks
