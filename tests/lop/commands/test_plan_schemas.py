"""Plan files of both schemas, as a user types commands over them."""

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader

from lop.cli import main
from lop.client import Client
from pruning.checkpoints.loading import PLAN_NAME
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_v1 import PlanV1
from service.app import create_app
from service.settings import Settings
from tests.lop.app_transport import AppTransport

Lop = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: str) -> Lop:
    """Run `lop ARGUMENTS`; `--url` reaches a server over the test's database."""
    transport = AppTransport(create_app(Settings(database_url=database)))
    monkeypatch.setattr("lop.workflows.planning.Client", lambda url: Client(url, transport=transport))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lop", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(params=["server", "database"])
def source(request: pytest.FixtureRequest, database: str) -> tuple[str, str]:
    return ("--url", "http://lop.test") if request.param == "server" else ("--database", database)


def test_a_file_in_the_schema_asked_for(lop: Lop, source: tuple[str, str], tmp_path: Path) -> None:
    command = ("plan", "-m", "tiny", "-s", 0.4, *source)
    for name, options in (("default", ()), ("two", ("--schema", 2)), ("one", ("--schema", 1))):
        code, out, err = lop(*command, *options, "--json", "-o", tmp_path / f"{name}.json")
        assert code == 0, err
        assert json.loads(out) == json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / "default.json").read_text() == (tmp_path / "two.json").read_text()
    old = PlanV1.from_json((tmp_path / "one.json").read_text())
    new = PruningPlan.load(tmp_path / "two.json")
    assert (old.plan_id, len(old.layers), json.loads((tmp_path / "two.json").read_text())["schema_version"]) == (
        new.plan_id, 4, 2,
    )  # fmt: skip
    assert old.ranking.url == new.ranking.url
    rankings = [(tmp_path / f"{name}.ranking.safetensors").read_bytes() for name in ("one", "two")]
    assert rankings[0] == rankings[1]


def test_the_table_says_what_is_not_dense(lop: Lop, source: tuple[str, str]) -> None:
    for schema in (1, 2):
        code, out, err = lop("plan", "-m", "tiny", "-s", 0.4, *source, "--schema", schema)
        assert code == 0, err
        assert "layers that are not listed stay dense" in " ".join(out.split())
        assert "achieved sparsity: ffn 0.4" in out


def test_a_plan_of_both_halves_is_drawn_and_shown(lop: Lop, source: tuple[str, str], tmp_path: Path) -> None:
    command = ("plan", "-m", "tiny", "-s", 0.3, "--space", "all", "--method", "uniform", *source)
    code, out, err = lop(*command, "--plot", tmp_path / "plan.png")
    assert code == 0, err
    assert "wrote " in err
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split("│")[2:4] for line in out.splitlines() if line.startswith("│")]
    assert all(half.strip().startswith("█") for row in rows for half in row)
    assert all(any("█░" in row[half] for row in rows) for half in (0, 1))
    code, out, err = lop(*command, "--plot", tmp_path / "plan.txt")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert ".png, .svg, .pdf" in err


def test_an_unknown_space_is_refused_with_those_that_there_are(lop: Lop, source: tuple[str, str]) -> None:
    code, out, err = lop("plan", "-m", "tiny", "-s", 0.4, *source, "--space", "heads")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'heads'" in err
    assert all(f"'{name}'" in err for name in SpaceName)


@pytest.mark.parametrize("wrong", [0, 3, "two"])
def test_there_are_two_schemas(lop: Lop, source: tuple[str, str], wrong: object) -> None:
    code, out, err = lop("plan", "-m", "tiny", "-s", 0.4, *source, "--schema", wrong)
    assert (code, out) == (2, "")
    assert "--schema" in err


def test_what_schema_1_cannot_say_is_refused_in_one_line(
    lop: Lop, source: tuple[str, str], database: str, tmp_path: Path
) -> None:
    code, out, _ = lop("plan", "-m", "tiny", "-s", 0.4, *source, "--json")
    document = json.loads(out)
    document["layers"][0]["ffn"]["bits"] = 4
    connection = sqlite3.connect(database.removeprefix("sqlite:///"))
    with connection:
        connection.execute("UPDATE plans SET document = ?", (json.dumps(document),))
    connection.close()
    code, out, err = lop("plan", "-m", "tiny", "-s", 0.4, *source, "--schema", 1, "-o", tmp_path / "p.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "plan schema 1 holds" in err
    assert "schema 2" in err
    assert not (tmp_path / "p.json").exists()
    code, out, err = lop("plan", "-m", "tiny", "-s", 0.4, *source)
    assert code == 0, err
    assert ", 4 bits" in out


def test_files_of_both_schemas_are_applied_and_exported_alike(
    lop: Lop, database: str, checkpoint: Path, tmp_path: Path
) -> None:
    weights, plan_ids, metadata = [], set(), set()
    for schema in (1, 2):
        plan, out = tmp_path / f"{schema}.json", tmp_path / f"pruned-{schema}"
        code, _, err = lop("plan", "-m", "tiny", "-s", 0.4, "--database", database, "--schema", schema, "-o", plan)
        assert code == 0, err
        code, _, err = lop("apply", "-p", plan, "-m", checkpoint, "-o", out)
        assert code == 0, err
        weights.append((out / "model.safetensors").read_bytes())
        plan_ids.add(PruningPlan.load(out / PLAN_NAME).plan_id)
        (out / PLAN_NAME).write_bytes(plan.read_bytes())  # folders of before hold plans of schema 1
        code, _, err = lop("export", "gguf", "-m", out, "-o", tmp_path / f"{schema}.gguf", "--no-check")
        assert code == 0, err
        field = GGUFReader(tmp_path / f"{schema}.gguf").get_field("lop.plan_id")
        assert field is not None
        metadata.add(field.contents())
    assert weights[0] == weights[1]
    assert metadata == plan_ids
    assert len(plan_ids) == 1


@pytest.mark.parametrize("schema", [1, 2])
def test_a_plan_that_skips_is_applied_evaluated_and_exported(
    lop: Lop, database: str, checkpoint: Path, data: Path, tmp_path: Path, schema: int
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "pruned"
    code, _, err = lop("plan", "-m", "tiny", "-s", 0.4, "--database", database, "--schema", schema, "-o", plan)
    assert code == 0, err
    document = json.loads(plan.read_text())
    if schema == 1:
        document["layers"][0] |= {"num_kv_groups": 0, "num_heads": 0, "skip": ["attention"]}
        document["layers"][2] |= {"ffn_width": 0, "skip": ["ffn"]}
    else:
        document["layers"] = [
            {"index": 0, "attention": {"units": 0}},
            {"index": 2, "ffn": {"units": 0}},
        ]
    plan.write_text(json.dumps(document))
    code, _, err = lop("apply", "-p", plan, "-m", checkpoint, "-o", out)
    assert code == 0, err
    assert "of random weights, unless lop.register_transformers() was called" in " ".join(err.split())
    code, report, err = lop("evaluate", out, "-d", data, "--dense", checkpoint, "--conversations", 4, "--json")
    assert code == 0, err
    assert json.loads(report)["kl"] > 0
    code, said, err = lop("export", "gguf", "-m", out, "-o", tmp_path / "a.gguf", "--no-check")
    assert code == 0, err
    assert "architecture deci" in said
    assert "a head of zeros" in " ".join(err.split())
    assert "channels of zeros" in " ".join(err.split())


@pytest.mark.parametrize(
    ("schema", "change", "named"),
    [
        (1, {"layers": [{"index": 0}]}, "schema version 1: layers.0.ffn_width: Field required"),
        (2, {"layers": [{"index": 0}]}, "schema version 2: layers.0: a layer that is dense is left out"),
        (2, {"layers": [{"index": 0, "ffn": {"units": 8, "bits": 4}}]}, "layer 0, ffn"),
        (2, {"layers": [{"index": i, "attention": {"units": 0}} for i in range(4)]}, "all 4 layers skip it"),
        (2, {"layers": [{"index": 9, "ffn": {"units": 8}}]}, "layers are numbered 0..3"),
        (2, {"schema_version": 3}, "plans of schema version 1 and 2"),
    ],
)
def test_what_cannot_be_applied_is_one_line(
    lop: Lop, database: str, checkpoint: Path, tmp_path: Path, schema: int, change: dict[str, object], named: str
) -> None:
    plan = tmp_path / "plan.json"
    code, _, err = lop("plan", "-m", "tiny", "-s", 0.4, "--database", database, "--schema", schema, "-o", plan)
    assert code == 0, err
    plan.write_text(json.dumps(json.loads(plan.read_text()) | change))
    code, out, err = lop("apply", "-p", plan, "-m", checkpoint, "-o", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err
    assert not (tmp_path / "out").exists()
