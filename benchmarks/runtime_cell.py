"""One checkpoint in one runtime, in a process of its own: `python runtime_cell.py RUNTIME FOLDER QUESTIONS`.

QUESTIONS is a JSON file: `prompts`, token ids after each of which the next token is wanted; maybe `speed`, the tokens
of a prompt, how many are to follow, and how often; maybe `text_alone`, for vLLM. One line of JSON is printed: the
`tokens`, and tokens a second; or what `refused` the checkpoint. vLLM's environment runs this file by itself, so ours
are imported where they are needed.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Questions = dict[str, Any]

NextTokens = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, how many tokens) -> the greedy tokens after each prompt."""

ROOM = 64
"""Positions beside the longest prompt and what follows it."""


def gguf_of(folder: Path) -> Path:
    """Where the float32 file of a checkpoint lies that llama.cpp reads."""
    return folder.with_suffix(".f32.gguf")


def loaded_by_ours(folder: str, _: Questions) -> NextTokens:
    """What the others are compared with: `lop.load_pruned`, or the dense model as transformers loads it."""
    import torch

    from pruning.checkpoints.loading import load_model

    return _generating(load_model(folder, dtype=torch.float32))


def loaded_by_transformers(folder: str, _: Questions) -> NextTokens:
    """transformers' own auto classes, after `lop.register_transformers()`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    import lop

    lop.register_transformers()
    config = AutoConfig.from_pretrained(folder)
    sees = config.get_text_config(decoder=True) is not config
    auto_class = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return _generating(auto_class.from_pretrained(folder, dtype=torch.float32).eval())


def _generating(model: Any) -> NextTokens:
    import torch

    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def next_tokens(prompts: list[list[int]], count: int) -> list[list[int]]:
        settings: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        asked = [torch.tensor([prompt]) for prompt in prompts]
        return [model.generate(ids, **settings)[0, ids.shape[1] :].tolist() for ids in asked]

    return next_tokens


def loaded_by_llama_cpp(folder: str, questions: Questions) -> NextTokens:
    """llama.cpp, keys and values in float32; the file was exported before, outside of what is measured."""
    from pruning.cutting.gguf.llama_runtime import LlamaRuntime

    threads = len(os.sched_getaffinity(0))
    length = longest(questions)
    runtime = LlamaRuntime(gguf_of(Path(folder)), context_length=length, num_threads=threads, exact_cache=True)

    def next_tokens(prompts: list[list[int]], count: int) -> list[list[int]]:
        return [runtime.greedy(prompt, count) for prompt in prompts]

    return next_tokens


def loaded_by_vllm(folder: str, questions: Questions) -> NextTokens:
    """vLLM, with integrations/vllm installed beside it."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    length = longest(questions)
    text_alone = {"limit_mm_per_prompt": {"image": 0, "video": 0}} if questions.get("text_alone") else {}
    engine = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=length,
        max_num_seqs=8,
        max_num_batched_tokens=max(length, 512),
        enable_prefix_caching=False,
        disable_log_stats=True,
        **text_alone,
    )

    def next_tokens(prompts: list[list[int]], count: int) -> list[list[int]]:
        settings = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(x.outputs[0].token_ids) for x in engine.generate(asked, settings, use_tqdm=False)]

    return next_tokens


RUNTIMES = {
    "lop": loaded_by_ours,
    "transformers": loaded_by_transformers,
    "llama.cpp": loaded_by_llama_cpp,
    "vllm": loaded_by_vllm,
}


def longest(questions: Questions) -> int:
    """Positions that are needed at most."""
    speed = questions.get("speed", {"prompt": [], "new_tokens": 1})
    lengths: list[int] = [len(speed["prompt"]) + speed["new_tokens"], *map(len, questions["prompts"])]
    return ROOM + max(lengths)


def measured(next_tokens: NextTokens, questions: Questions) -> dict[str, Any]:
    """The next token after each prompt, and tokens a second: the best of all turns, prompt and answer apart."""
    found: dict[str, Any] = {"tokens": [tokens[0] for tokens in next_tokens(questions["prompts"], 1)]}
    if "speed" not in questions:
        return found
    prompt, count, turns = (questions["speed"][name] for name in ("prompt", "new_tokens", "turns"))
    prefill = min(_seconds(lambda: next_tokens([prompt], 1)) for _ in range(turns))
    whole = min(_seconds(lambda: next_tokens([prompt], 1 + count)) for _ in range(turns))
    return found | {"prefill_per_s": len(prompt) / prefill, "decode_per_s": count / max(whole - prefill, 1e-9)}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main(runtime: str, folder: str, path: str) -> None:
    questions = json.loads(Path(path).read_text())
    try:
        found = measured(RUNTIMES[runtime](folder, questions), questions)
    except Exception as error:  # noqa: BLE001 (a refusal is a result)
        found = {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
