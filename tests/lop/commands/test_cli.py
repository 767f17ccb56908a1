"""The commands, as a user types them."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lop.cli import main
from pruning.allocators.methods import Method
from pruning.data.conversations import calibration_id, load_conversations
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint
from values.cross_validation import CrossValidation
from values.unseen import UnseenPoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: str) -> Run:
    """Run `lop ARGUMENTS` on the test's database; returns exit code, stdout, stderr."""

    def call(*arguments: object, database: str | None = database) -> tuple[int, str, str]:
        words = ["lop", *map(str, arguments)]
        if database is not None:
            monkeypatch.setenv("LOP_DATABASE_URL", database)
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


COMMANDS = [
    "model add",
    "model measure",
    "model list",
    "data answer",
    "data check",
    "search",
    "train",
    "serve",
    "plan",
    "apply",
    "evaluate",
    "demo",
    "worker",
    "job list",
    "job show",
    "job cancel",
    "job retry",
    "key create",
    "key list",
    "key revoke",
    "device profile",
    "device list",
    "device show",
    "db upgrade",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage: lop " + command in out.replace("\n", " ")


def test_add_search_plan_apply_evaluate(run: Run, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"

    def ok(*arguments: object) -> str:
        code, out, err = run(*arguments, database=url)
        assert code == 0, err
        return out

    added = json.loads(ok("model", "add", "mine", checkpoint, "--data", data, "--json"))
    assert added["layers"] == 4
    search = ("search", "-m", "mine", "-d", data, "-s", 0.3, "-s", 0.5, "-n", 6, "--num-levels", 6, "--json")
    found = json.loads(ok(*search))
    assert [target["evaluations"] for target in found["targets"]] == [6, 6]
    assert found["samples"] == len({s.architecture for s in open_repository(url).list_samples("mine")})
    assert json.loads(ok(*search)) == found  # replayed: nothing new
    (listed,) = json.loads(ok("model", "list", "--json"))
    assert (listed["id"], listed["samples"], listed["predictor"]) == ("mine", found["samples"], None)
    plan = json.loads(ok("plan", "-m", "mine", "-s", 0.4, "--json", "-o", tmp_path / "plan.json"))
    assert plan["method"] == "additive-dp"
    assert plan["achieved"]["removed"]["ffn"] >= 0.4
    applied = json.loads(ok("apply", "-p", tmp_path / "plan.json", "-m", checkpoint, "-o", tmp_path / "out", "--json"))
    assert applied["weights_bytes"] == plan["achieved"]["disk_bytes"]
    report = json.loads(ok("evaluate", tmp_path / "out", "-d", data, "--dense", checkpoint, "--json"))
    assert report["answers"] == 80
    assert report["kl"] > 0
    assert "exact match" in ok(*search[:-1])
    assert "achieved sparsity" in ok("plan", "-m", "mine", "-s", 0.4)


def test_a_model_without_data(run: Run, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Ranked by its weights alone: what needs statistics says how to get them, everything else works."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    add = ("model", "add", "bare", checkpoint)
    either = "on data or by weights only"
    for wrong, rule in (
        ((), either),
        (("--weights-only", "--data", data), either),
        (("--weights-only", "--conversations", 3), either),
        (("--weights-only", "--criterion", "elimination"), "a criterion is of rankings on data"),
        (("--data", data, "--second-order", tmp_path / "sums"), "belongs to --criterion elimination"),
    ):
        code, _, err = run(*add, *wrong, database=url)
        assert code == 2
        assert rule in err
    assert not (tmp_path / "new.db").exists()
    code, out, err = run(*add, "--weights-only", database=url)
    assert code == 0, err
    assert "ranked by weights alone" in out
    code, out, _ = run("plan", "-m", "bare", "-s", 0.4, "--json", database=url)
    assert json.loads(out)["method"] == "uniform"
    code, _, err = run("plan", "-m", "bare", "-s", 0.4, "--method", "flap", database=url)
    assert code == 2
    assert "lop model measure bare --data FILE --kind activations" in err
    code, _, err = run("search", "-m", "bare", "-d", data, "-s", 0.4, "-n", 4, "--num-levels", 4, database=url)
    assert code == 0, err
    code, _, err = run("model", "measure", "bare", "-d", data, "--kind", "activations", database=url)
    assert code == 0, err
    code, out, _ = run("plan", "-m", "bare", "-s", 0.4, "--method", "flap", "--json", database=url)
    assert json.loads(out)["method"] == "flap"


def test_fewer_tokens_than_inputs_are_warned_of(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOP_SECOND_ORDER", str(tmp_path / "second-order"))
    folder = save_tiny_checkpoint(tmp_path / "wide", ffn_width=128)
    url = f"sqlite:///{tmp_path / 'new.db'}"
    said = "for up to 128 inputs of a projection: without damping nothing could be solved"
    few = ("--data", data, "--conversations", 2)
    for name, *options in (("e", "--criterion", "elimination"), ("r", "--reconstruct"), ("n",)):
        code, _, err = run("model", "add", name, folder, *few, *options, database=url)
        assert code == 0, err
        assert err.count(said) == bool(options)
    both = ("--criterion", "elimination", "--reconstruct")
    code, _, err = run("model", "add", "b", folder, *few, *both, database=url)
    assert (code, err.count(said)) == (0, 1)
    code, _, err = run("model", "measure", "n", *few, "--kind", "second-order", database=url)
    assert (code, err.count(said)) == (0, 1)


def test_a_budget_with_a_device(run: Run, repository: Repository, tmp_path: Path) -> None:
    code, out, err = run("plan", "-m", "tiny", "-s", 0.0, "--json")
    dense = json.loads(out)["achieved"]
    assert code == 0, err
    memory, disk = dense["memory_bytes"] - 30_000, dense["disk_bytes"] - 30_000
    budget = ("--memory", f"{memory / 1000:.3f}KB", "--disk", f"{disk}B", "--latency", "1.5s", "--flops", "2T")
    command = ("plan", "-m", "tiny", "--device", "raspberry-pi-5-8gb", *budget, "--tp-size", 2, "--round-to", 4)
    code, out, err = run(*command, "--json", "-o", tmp_path / "plan.json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["target"]["budget"] == {
        "memory_bytes": memory,
        "latency_ms": 1500.0,
        "flops": 2 * 10**12,
        "disk_bytes": disk,
        "batch": 1,
        "prompt_tokens": 1024,
        "output_tokens": 128,
    }
    assert memory - 1024 < plan["achieved"]["memory_bytes"] <= memory
    assert plan["achieved"]["disk_bytes"] <= disk
    assert all(layer["ffn"]["units"] % 4 == 0 for layer in plan["layers"])
    # What is limited beside what is reached.
    _, out, _ = run(*command)
    assert f"in memory {plan['achieved']['memory_bytes']:,} bytes, at most {memory:,} allowed" in out
    assert f"on disk {plan['achieved']['disk_bytes']:,} bytes, at most {disk:,} allowed" in out
    assert re.search(r"latency [\d.,]+ ms, at most 1,500.0 allowed \(roofline: prefill [\d.]+ ms, then [\d.]+ ms", out)
    assert "for batch 1, 1024 prompt tokens and 128 output tokens" in out
    # The device's memory alone is a budget too: this model fits it whole.
    code, out, err = run("plan", "-m", "tiny", "--device", "l4", "--json")
    assert code == 0, err
    assert json.loads(out)["achieved"]["parameters"] == dense["parameters"]
    code, out, _ = run("plan", "-m", "tiny", "--flops", "2T", "--batch", 2, "--prompt-tokens", 9, "--json")
    assert json.loads(out)["achieved"]["workload"] == {"batch": 2, "prompt_tokens": 9, "output_tokens": 128}


def test_a_budget_of_a_gguf_file(run: Run) -> None:
    code, out, err = run("plan", "-m", "tiny", "--gguf", "1GB", "--json")
    assert code == 0, err
    most = json.loads(out)["achieved"]["gguf_bytes"] - 10_000
    command = ("plan", "-m", "tiny", "--gguf", f"{most}B", "--gguf-type", "q8_0")
    code, out, err = run(*command, "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["target"]["budget"]["gguf_bytes"] == most
    assert plan["target"]["budget"]["gguf_type"] == "q8_0"
    assert plan["achieved"]["gguf_bytes"] <= most
    _, out, _ = run(*command)
    assert f"as GGUF {plan['achieved']['gguf_bytes']:,} bytes, at most {most:,} allowed" in out
    code, _, err = run("plan", "-m", "tiny", "--memory", "1GB", "--gguf-type", "q8_0")
    assert code == 2
    assert "gguf_type says how gguf_bytes are counted" in err
    code, _, err = run("plan", "-m", "tiny", "--gguf", "1KB")
    assert code == 2
    assert "gguf_bytes" in err


def test_plan_help_names_every_method(run: Run) -> None:
    _, out, _ = run("plan", "--help")
    words = set(re.findall(r"[a-z-]+", out))
    # The table may break a list of choices at a hyphen.
    assert all(method in words or method in out.replace("\n", "") for method in Method)


def test_measure_plan_apply_by_statistics(run: Run, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    def ok(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    assert json.loads(ok("model", "list", "--json"))[0]["statistics"] == ["activations"]
    measured = json.loads(ok("model", "measure", "tiny", "-d", data, "--json"))
    assert [(x["kind"], x["conversations"]) for x in measured["statistics"]] == [
        ("gradients", 10),
        ("zeroth-order", 32),
    ]
    assert json.loads(ok("model", "measure", "tiny", "-d", data, "--json")) == {"model": "tiny", "statistics": []}
    assert "lacks no statistics" in ok("model", "measure", "tiny", "-d", data)
    assert "gradients" in ok("model", "measure", "tiny", "-d", data, "--kind", "gradients", "--conversations", 2)
    for method in ("flap", "llm-pruner", "ecoflap"):
        path = tmp_path / f"{method}.json"
        plan = json.loads(ok("plan", "-m", "tiny", "-s", 0.4, "--method", method, "-o", path, "--json"))
        assert plan["method"] == method
        out = tmp_path / method
        applied = json.loads(ok("apply", "-p", path, "-m", checkpoint, "-o", out, "--json"))
        assert applied["weights_bytes"] == plan["achieved"]["disk_bytes"]
        report = json.loads(ok("evaluate", out, "-d", data, "--dense", checkpoint, "--json"))
        assert report["kl"] > 0


def test_a_finished_search_answers_by_its_method(run: Run, repository: Repository, data: Path) -> None:
    arguments = ("search", "-m", "tiny", "-d", data, "-s", 0.5, "-n", 4, "--num-levels", 6, "--json")
    code, out, err = run(*arguments)
    assert code == 0, err
    (target,) = json.loads(out)["targets"]
    code, out, err = run("plan", "-m", "tiny", "-s", 0.5, "--json")  # what was just searched needs no naming
    assert code == 0, err
    assert json.loads(out)["method"] == "mcts"
    code, out, err = run("plan", "-m", "tiny", "-s", 0.5, "--method", "mcts", "--json")
    assert code == 0, err
    plan = json.loads(out)
    cut = {layer["index"]: layer["ffn"]["units"] for layer in plan["layers"]}
    assert all(cut.get(index, 48) >= then for index, then in enumerate(target["widths"]))
    expected = UnseenPoint.of(CrossValidation.from_dict(target["cross_validation"])).expected()
    assert plan["predicted"]["quality"] == expected.kl > target["metrics"]["kl"]
    assert plan["predicted"]["interval"] == list(expected.interval)
    assert plan["predicted"]["of"] == "unseen"
    assert plan["provenance"]["calibration"] == calibration_id(load_conversations(data))
    _, out, _ = run("plan", "-m", "tiny", "-s", 0.5, "--method", "mcts")
    low, high = expected.interval
    assert f"predicted KL to dense: {expected.kl:.4f} ({low:.4f} to {high:.4f}) (unseen data)\n" in out
    assert plan["provenance"]["samples"] == 4


def mistakes(checkpoint: Path, data: Path, tmp_path: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    missing_image = tmp_path / "missing.json"
    conversation = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    missing_image.write_text(json.dumps([{"id": "x", "image": "none.png", "conversations": conversation}]))
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    for path in checkpoint.iterdir():
        content = path.read_bytes()
        (truncated / path.name).write_bytes(content[:-10] if path.suffix == ".safetensors" else content)
    (tmp_path / "plan.json").write_text("{}")
    return {
        "sparsity too large": (("plan", "-m", "tiny", "-s", 1.0), "sparsity"),
        "sparsity negative": (("plan", "-m", "tiny", "-s", -0.2), "sparsity"),
        "infeasible": (("plan", "-m", "tiny", "-s", 0.95), "cannot exceed 0.8333"),
        "unknown model": (("plan", "-m", "nope", "-s", 0.4), "'nope'"),
        "unknown device": (("plan", "-m", "tiny", "-s", 0.4, "--device", "abacus"), "Known devices"),
        "unknown method": (("plan", "-m", "tiny", "-s", 0.4, "--method", "magic"), "'uniform'"),
        "no statistics": (("plan", "-m", "tiny", "-s", 0.4, "--method", "ecoflap"), "lop model measure tiny"),
        "no search": (("plan", "-m", "tiny", "-s", 0.4, "--method", "random"), "--method random -s 0.4"),
        "measure an unknown model": (("model", "measure", "nope", "-d", data), "'nope'"),
        "measure an unknown kind": (("model", "measure", "tiny", "-d", data, "--kind", "magic"), "zeroth-order"),
        "no scan": (("plan", "-m", "tiny", "-s", 0.4, "--method", "additive-dp"), "lop search"),
        "no server": (("plan", "-m", "tiny", "-s", 0.4, "--url", "http://127.0.0.1:9"), "lop serve"),
        "missing image": (
            ("search", "-m", "tiny", "-d", missing_image, "--num-levels", 6),
            "none.png (conversation x)",
        ),
        "no data": (("search", "-m", "tiny", "-d", tmp_path / "none.json", "--num-levels", 6), "readable"),
        "infeasible search": (("search", "-m", "tiny", "-d", data, "-s", 0.9, "--num-levels", 6), "0.9"),
        "too many levels": (("search", "-m", "tiny", "-d", data, "--num-levels", 99), "too narrow"),
        "no samples": (("train", "-m", "tiny"), "lop search"),
        "truncated checkpoint": (("model", "add", "x", truncated, "-d", data), "as long as its header says"),
        "taken id": (("model", "add", "tiny", checkpoint, "-d", data, "--conversations", 20), "tiny"),
        "not a plan": (
            ("apply", "-p", tmp_path / "plan.json", "-m", checkpoint, "-o", tmp_path / "o"),
            "schema version",
        ),
        "no checkpoint": (("evaluate", tmp_path / "none", "-d", data), "checkpoint folder"),
        "remote host": (("serve", "--host", "0.0.0.0"), "lop key create"),
        "not a number": (("plan", "-m", "tiny", "-s", "abc"), "--sparsity"),
        "no target": (("plan", "-m", "tiny"), "Give --sparsity, a budget (--memory"),
        "two targets": (("plan", "-m", "tiny", "-s", 0.4, "--memory", "6GiB"), "a sparsity or for a budget"),
        "missing option": (("plan", "-s", 0.4), "Missing option '--model'"),
        "a time for a size": (("plan", "-m", "tiny", "--memory", "200ms"), "(got '200ms'). Write 6GiB"),
        "a size for a time": (
            ("plan", "-m", "tiny", "--device", "l4", "--latency", "6GiB"),
            "(got '6GiB'). Write 200ms",
        ),
        "a size without a unit": (("plan", "-m", "tiny", "--disk", "3000000"), "(got '3000000'). Write 6GiB"),
        "no size": (("plan", "-m", "tiny", "--disk", "GB"), "(got 'GB'). Write 6GiB"),
        "no operations": (("plan", "-m", "tiny", "--flops", "0T"), "(got '0T'). Write 2T"),
        "latency on no device": (("plan", "-m", "tiny", "--latency", "1ms"), "latency_ms is a device's"),
        "only a workload": (("plan", "-m", "tiny", "--batch", 2), "a budget limits something"),
        "an impossible batch": (("plan", "-m", "tiny", "--flops", "2T", "--batch", 0), "budget.batch"),
        "beyond 64 bits": (("plan", "-m", "tiny", "--memory", "99999999TiB"), "fits 64 bits"),
        "infeasible budget": (("plan", "-m", "tiny", "--memory", "10KB"), "Ask for at least memory_bytes="),
        "heads that cannot be shared": (("plan", "-m", "tiny", "-s", 0.4, "--tp-size", 3), "Ask for a tp_size of"),
        "no such command": (("nonsense",), "nonsense"),
        "two sources": (("plan", "-m", "tiny", "-s", 0.4, "--url", "http://x", "--database", "sqlite:///x"), "--url"),
        "an id that cannot be named": (("model", "add", "a b", checkpoint, "-d", data), "'a b'"),
        "no reference": (("demo", "--reference", tmp_path, "--out", tmp_path / "d"), "--reference"),
        "demo over another folder": (("demo", "--out", checkpoint), "--out"),
    }


def test_a_mistake_is_one_line_and_exit_code_2(run: Run, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for name, (arguments, expected) in mistakes(checkpoint, data, tmp_path).items():
        code, out, err = run(*arguments)
        errors = [line for line in err.splitlines() if not line.startswith("warning:")]
        assert code == 2, (name, out, err)
        assert len(errors) == 1, (name, err)
        assert errors[0].startswith("error: "), (name, err)
        assert expected in err, (name, err)
        assert out == "", name
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////nowhere/at/all/lop.db", "nowhere"),
        ("mysql://x/y", "sqlite:///"),
        ("postgresql://lop:secret@127.0.0.1:9/lop", "127.0.0.1"),
    ],
)
def test_a_database_that_cannot_be_opened(run: Run, url: str, expected: str) -> None:
    code, _, err = run("model", "list", database=url)
    assert (code, len(err.splitlines())) == (2, 1)
    assert expected in err
    assert "secret" not in err


def test_an_old_database_names_the_command_that_upgrades_it(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    (tmp_path / "old.db").touch()
    code, _, err = run("model", "list", database=url)
    assert code == 2
    assert "lop db upgrade" in err
    assert run("db", "upgrade", database=url)[0] == 0
    assert run("model", "list", "--json", database=url)[:2] == (0, "[]\n")


def test_the_version_is_told(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "lop-service")


def test_too_little_data_is_warned_about_with_the_number(run: Run, data: Path) -> None:
    code, _, err = run("search", "-m", "tiny", "-d", data, "-s", 0.3, "-n", 2, "--num-levels", 2, "--conversations", 3)
    assert code == 0
    assert "has 6 answers; below 64" in err
