"""vLLM with the plugin answers as `lop.load_pruned` does: greedy tokens, text and pictures.

Runs in vLLM's environment, over the folder that write_checkpoints.py has written (LOP_VLLM_CHECKPOINTS): `make
test-vllm`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _engines_are_gone() -> Iterator[None]:
    """Also what is left of one that did not start: vLLM keeps its process groups in globals. What a failed test's
    traceback holds goes first: an engine that ends later would take the next one's groups along."""
    yield
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    cleanup_dist_env_and_memory()


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_load_pruned(name: str) -> None:
    case = CASES[name]
    without_pictures = {"limit_mm_per_prompt": {"image": 0, "video": 0}} if case["refused"] else {}
    llm = engine(case["folder"], dtype=case["dtype"], **without_pictures)
    prompts = [{"prompt_token_ids": prompt} for prompt in case["prompts"]]
    assert tokens_of(llm, prompts, len(case["tokens"][0])) == case["tokens"]
    if case["sees"] and not case["refused"]:
        prompt = {"prompt": case["picture_prompt"], "multi_modal_data": {"image": Image.open(case["picture"])}}
        assert tokens_of(llm, [prompt], len(case["picture_tokens"])) == [case["picture_tokens"]]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["refused"]])
def test_pictures_that_vllm_would_see_wrongly_are_refused(name: str) -> None:
    with pytest.raises(Exception, match=CASES[name]["refused"]):
        engine(CASES[name]["folder"])


def test_a_tensor_parallel_size_that_does_not_divide_is_refused_before_a_worker_starts() -> None:
    with pytest.raises(Exception, match=r"layer 0 has 1 KV groups.*Sizes below it that do: 1"):
        engine(CASES["llama, mixed"]["folder"], tensor_parallel_size=2)


def test_another_backend_is_refused() -> None:
    with pytest.raises(Exception, match="Leave --model-impl out"):
        engine(CASES["llama, mixed"]["folder"], model_impl="vllm")


def test_two_devices_share_a_checkpoint_that_divides() -> None:
    case = CASES["llama, halved"]
    # A core for each: vLLM's build for CPUs binds them by NUMA nodes by itself, and wants as many nodes.
    done = _in_a_process(case, {"tensor_parallel_size": 2}, VLLM_CPU_OMP_THREADS_BIND="0|1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == case["tokens"]


def test_without_the_plugin_vllm_stops_and_config_and_card_lead_on() -> None:
    case = CASES["llama, mixed"]
    done = _in_a_process(case, {}, VLLM_PLUGINS="none")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "exceeds dimension size" in said, said[-3000:]
    folder = Path(case["folder"])
    assert "lop-vllm" in json.loads((folder / "config.json").read_text())["lop_note"]
    assert "lop-vllm" in (folder / "README.md").read_text()


ASKS = """
import json, sys
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from test_tokens import engine, tokens_of
    case, changed = json.loads(sys.argv[2]), json.loads(sys.argv[3])
    prompts = [{"prompt_token_ids": prompt} for prompt in case["prompts"]]
    print(json.dumps(tokens_of(engine(case["folder"], **changed), prompts, len(case["tokens"][0]))))
"""


def _in_a_process(
    case: dict[str, Any], changed: dict[str, Any], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Workers of their own need a process that can be started again, and plugins are loaded once."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "asks.py"
        script.write_text(ASKS)
        words = [sys.executable, str(script), str(Path(__file__).parent), json.dumps(case), json.dumps(changed)]
        multi = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} if changed else {}
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env=os.environ | multi | environment, timeout=600
        )
