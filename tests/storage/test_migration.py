"""Migrations: they build exactly the tables, in order, from any released revision, all or nothing."""

import dataclasses
import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Executable,
    Integer,
    String,
    column,
    insert,
    inspect,
    select,
    table,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from mcts.result import SearchResult
from mcts.settings import SearchSettings
from pruning.errors import SchemaRevisionError, StorageError, StorageUnavailableError
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_downgrade import downgrade
from storage import migration
from storage.database import create_database_engine, upgrade
from storage.records import JobStatus, PlanRecord
from storage.sql_repository import SqlRepository, open_repository
from storage.tables import Base, PlanRow, SearchRow
from storage.url import parse_url
from tests.storage.examples import (
    ANATOMY,
    MORNING,
    PROTOCOL,
    SPACE,
    calibration,
    dataset,
    device,
    job,
    key,
    model,
    plan,
    predictor,
    sample,
    samples_of_other_things,
    search_document,
    statistics,
    store_basics,
)
from tests.storage.make_asset import ASSETS, make_asset

SAMPLES_OF_0004 = (
    "SELECT number, model_id, ranking_sha256, calibration_id, configuration_key, configuration, kl, nll, accuracy, "
    "agreement, num_tokens, num_answers, seconds, source FROM samples ORDER BY number"
)

NEXT_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{current}"


def upgrade() -> None:
    with op.batch_alter_table("models") as table:
        table.add_column(sa.Column("license", sa.String(), nullable=False, server_default="unknown"))
        table.alter_column("path", nullable=True, existing_type=sa.String())
    {last_line}
"""


def write_next_revision(folder: Path, monkeypatch: pytest.MonkeyPatch, last_line: str = "") -> None:
    """A copy of the migrations with one more, as a later version of the code would have it."""
    scripts = folder / "later" / "migrations"
    shutil.copytree(migration.SCRIPT_LOCATION, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    script = NEXT_REVISION.format(current=migration.REVISIONS[-1], last_line=last_line)
    (scripts / "versions" / "9000_license.py").write_text(script)
    monkeypatch.setattr(migration, "SCRIPT_LOCATION", scripts)
    monkeypatch.setattr(migration, "REVISIONS", (*migration.REVISIONS, "9000"))


def test_revisions_are_the_scripts_oldest_first() -> None:
    config = Config()
    config.set_main_option("script_location", str(migration.SCRIPT_LOCATION))
    scripts = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(scripts)) == migration.REVISIONS


def test_no_migration_imports_the_live_tables() -> None:
    for path in (migration.SCRIPT_LOCATION / "versions").glob("*.py"):
        assert "storage" not in path.read_text()


def test_migrated_schema_equals_the_tables(database_url: str) -> None:
    engine = create_database_engine(parse_url(database_url))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        inspector = inspect(connection)
        for name, expected in Base.metadata.tables.items():  # what compare_metadata does not look at
            checks = {check["name"] for check in inspector.get_check_constraints(name)}
            assert checks == {c.name for c in expected.constraints if isinstance(c, CheckConstraint)}
            assert inspector.get_pk_constraint(name)["name"] == expected.primary_key.name
    engine.dispose()


def test_upgrade_works_in_any_folder_and_twice(empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert upgrade(empty_url) == upgrade(empty_url) == migration.REVISIONS[-1]
    open_repository(empty_url).close()


@pytest.mark.parametrize("asset", sorted(ASSETS.glob("*.sqlite3")), ids=lambda path: path.stem)
def test_database_of_every_released_revision_upgrades_and_keeps_its_rows(asset: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{shutil.copyfile(asset, tmp_path / 'old.db')}"
    upgrade(url)
    with open_repository(url) as repository:
        says = asset.stem >= "revision_0005"
        assert repository.list_models() == [model(has_origin=says)]
        assert repository.get_calibration("c") == calibration()
        has_agreement, has_folds = asset.stem >= "revision_0004", asset.stem >= "revision_0006"
        samples = [sample(number, has_agreement=has_agreement, has_folds=has_folds) for number in range(1, 6)]
        grouped, repaired = samples_of_other_things(has_folds=has_folds)
        assert repository.list_samples("m") == [*samples, *([grouped] if says else [])]
        assert repository.list_samples("m", protocol=PROTOCOL) == ([repaired] if says else [])
        found = repository.find_samples("m", samples[0].ranking_sha256, "c", [s.architecture for s in samples])
        assert list(found.values()) == [s.metrics for s in samples]
        assert repository.list_predictors() == [predictor(has_space=says)]
        assert repository.find_plan("request") == PlanRecord("request", plan())
        (done,) = repository.list_searches()
        jobs = repository.list_jobs()
        of_today = asset.stem >= "revision_0007"
        assert repository.list_devices() == ([device()] if asset.stem >= "revision_0003" else [])
        if asset.stem >= "revision_0002":
            assert repository.list_statistics("m") == [statistics()]
            assert done.settings == search_document()
            assert done.result == {"best_kl": 0.02, "validation": {"id": "c"}}
            (waiting,) = jobs
            assert waiting.settings == (job(key="once").settings if of_today else search_document())
            assert waiting.status is (JobStatus.QUEUED if of_today else JobStatus.FAILED)
        else:
            assert repository.list_statistics("m") == []
            assert done.result == {"search": {"targets": [], "scan_evaluations": 15}, "predictor": "p"}
        assert repository.add_statistics(statistics("gradients")) == statistics("gradients")
        assert done.space == (SPACE.document() if says else None)
        assert repository.list_datasets() == ([dataset()] if of_today else [])
        assert repository.list_keys() == ([key()] if of_today else [])
        assert repository.add_samples([sample(5), sample(6)]) == 1  # what was measured before stays as it was
        assert repository.add_samples([grouped, repaired]) == (0 if says else 2)
        assert repository.list_samples("m")[:5] == samples


def test_samples_of_before_keep_their_rows_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    shutil.copyfile(ASSETS / "revision_0004.sqlite3", path)

    def rows() -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(SAMPLES_OF_0004).fetchall()

    before = rows()
    upgrade(f"sqlite:///{path}")
    assert rows() == before
    with open_repository(f"sqlite:///{path}") as repository:
        assert repository.add_samples([sample(number) for number in range(1, 6)]) == 0
    assert hashlib.sha256(b'{"ffn_widths":[8,64]}').hexdigest() in before[0]


def migrate_to(url: str, revision: str, *, down: bool = False) -> None:
    """As Alembic's own commands do it; nothing is changed where they fail."""
    if url.startswith("sqlite:"):
        Path(url.removeprefix("sqlite:///")).touch()
    config = Config()
    config.set_main_option("script_location", str(migration.SCRIPT_LOCATION))
    engine = create_database_engine(parse_url(url), foreign_keys=False)
    try:
        with engine.execution_options(write=True).begin() as connection:
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)
    finally:
        engine.dispose()


def run_sql(url: str, *statements: Executable) -> list[Any]:
    """All rows of the last of `statements`."""
    engine = create_database_engine(parse_url(url))
    with engine.execution_options(write=True).begin() as connection:
        *_, last = [connection.execute(statement) for statement in statements]
        rows = list(last) if last.returns_rows else []
    engine.dispose()
    return rows


OWNER_OF_SEARCHES = (
    text("INSERT INTO artifacts VALUES ('s', 't', '')"),
    text("INSERT INTO models VALUES ('m', '{}', 'w', 's', '/m', '2025-03-01 08:00:00+00:00')"),
)
"""A model as revisions up to 0004 store it."""

SEARCHES_OF_OLD = table(
    "searches",
    column("number", Integer),
    column("id", String),
    column("model_id", String),
    column("settings", JSON),
    column("status", String),
    column("result", JSON(none_as_null=True)),
    column("error", String),
    column("created_at", DateTime(timezone=True)),
)
"""Searches as revisions up to 0006 store them: those that wait or run, too."""


def found(**choice: list[int]) -> dict[str, Any]:
    """The result of a search as it is stored, but for what it calls the choice."""
    target = {"label": "sparsity 0.3 (ffn)", "sparsity": 0.3, "budget": 4300, **choice, "widths": [32, 48]}
    metrics = {"kl": 0.25, "nll": 1.5, "accuracy": 0.5, "num_tokens": 64, "num_answers": 4, "agreement": 0.75}
    target |= {"metrics": metrics, "evaluations": 2, "curve": [0.5, 0.25]}
    return {"search": {"targets": [target], "scan_evaluations": 15}, "calibration_id": "c", "predictor": "p"}


OF_0004, OF_0005 = found(configuration=[4, 6]), found(choice=[3, 5])


def schema(url: str) -> dict[str, Any]:
    """All that there is to say of it."""
    engine = create_database_engine(parse_url(url))
    with engine.connect() as connection:
        inspector = inspect(connection)
        found: dict[str, Any] = {
            name: (
                [{**found, "type": str(found["type"])} for found in inspector.get_columns(name)],
                inspector.get_pk_constraint(name),
                sorted(inspector.get_unique_constraints(name), key=str),
                sorted(inspector.get_check_constraints(name), key=str),
                sorted(inspector.get_foreign_keys(name), key=str),
                sorted(inspector.get_indexes(name), key=str),
            )
            for name in inspector.get_table_names()
        }
        if connection.dialect.name == "sqlite":
            found["sql"] = connection.execute(text("SELECT sql FROM sqlite_master ORDER BY name")).scalars().all()
    engine.dispose()
    return found


def test_0005_can_be_undone_to_the_last_detail(empty_url: str) -> None:
    migrate_to(empty_url, "0004")
    before = schema(empty_url)
    upgrade(empty_url)
    assert schema(empty_url) != before
    of_schema_1 = downgrade(plan(), ANATOMY).model_dump(mode="json")
    with open_repository(empty_url) as repository:
        store_basics(repository)
        repository.add_samples([sample(1), sample(2)])
        repository.add_predictor(predictor())
        own_space = SearchSettings.from_dict(search_document()["search"]).space(ANATOMY)
        searches = [
            repository.record_search("m", search_document(), OF_0005, space=own_space),
            repository.record_search("m", {"seed": 1}, {"best_kl": 0.02}),
        ]
        stored = repository.add_plan(PlanRecord("request", plan()))
    run_sql(empty_url, update(PlanRow).values(document=of_schema_1))
    migrate_to(empty_url, "0004", down=True)
    assert schema(empty_url) == before
    assert run_sql(empty_url, select(SearchRow.result).order_by(SearchRow.number)) == [(OF_0004,), ({"best_kl": 0.02},)]
    assert run_sql(empty_url, select(PlanRow.document)) == [(of_schema_1,)]
    upgrade(empty_url)
    with open_repository(empty_url) as repository:
        assert repository.list_samples("m") == [sample(1, has_folds=False), sample(2, has_folds=False)]
        assert repository.list_models() == [model(has_origin=False)]
        assert repository.list_predictors() == [predictor(has_space=False)]
        assert repository.list_searches() == [dataclasses.replace(search, space=None) for search in searches]
        assert repository.find_plan("request") == PlanRecord("request", PruningPlan.from_document(of_schema_1))
        assert stored.plan.plan_id == of_schema_1["plan_id"]
        assert repository.record_search("m", search_document(), OF_0005, space=own_space).id == searches[0].id


def test_0006_can_be_undone_and_loses_folds_alone(empty_url: str) -> None:
    migrate_to(empty_url, "0005")
    before = schema(empty_url)
    upgrade(empty_url)
    with open_repository(empty_url) as repository:
        store_basics(repository)
        repository.add_samples([sample(1)])
    migrate_to(empty_url, "0005", down=True)
    assert schema(empty_url) == before
    upgrade(empty_url)
    with open_repository(empty_url) as repository:
        assert repository.list_samples("m") == [sample(1, has_folds=False)]


def add_samples_of_other_things(repository: SqlRepository) -> None:
    skip = dataclasses.replace(sample(3), architecture=ANATOMY.architecture((0, 64)))
    repository.add_samples([sample(1), *samples_of_other_things(), skip])


def add_predictor_of_today(repository: SqlRepository) -> None:
    repository.add_predictor(dataclasses.replace(predictor(), config={"format_version": 3}))


def add_searches(repository: SqlRepository) -> None:
    repository.record_search("m", search_document(), {}, space=SPACE)
    repository.record_search("m", {}, {}, space=SPACE)


@pytest.mark.parametrize(
    ("store", "lost"),
    [
        (add_samples_of_other_things, "3 samples of other architectures or protocols"),
        (lambda repository: repository.add_plan(PlanRecord("request", plan())), "1 plans of schema 2"),
        (add_predictor_of_today, "1 predictors of format 3"),
        (add_searches, "2 searches of other spaces"),
    ],
)
def test_0005_is_not_undone_where_something_would_be_lost(
    disposable_url: str, store: Callable[[SqlRepository], object], lost: str
) -> None:
    with open_repository(disposable_url) as repository:
        store_basics(repository)
        repository.record_search("m", {"seed": 1}, OF_0005)
        store(repository)
    before = schema(disposable_url)
    with pytest.raises(CommandError, match=rf"revision 0004 cannot hold {lost}\. Keep this version"):
        migrate_to(disposable_url, "0004", down=True)
    assert schema(disposable_url) == before
    assert (OF_0005,) in run_sql(disposable_url, select(SearchRow.result))


def test_results_of_searches_of_before_count_options_from_0(empty_url: str) -> None:
    migrate_to(empty_url, "0004")
    results: list[Any] = [OF_0004, {"search": {"targets": []}}, {"search": [1]}, {"best_kl": 0.02}, None]
    values = {"model_id": "m", "settings": {}, "status": "done", "created_at": MORNING}
    run_sql(
        empty_url,
        *OWNER_OF_SEARCHES,
        *(insert(SEARCHES_OF_OLD).values(id=f"s{n}", number=n, result=x, **values) for n, x in enumerate(results, 1)),
    )
    upgrade(empty_url)
    left = run_sql(empty_url, select(SearchRow.result).order_by(SearchRow.number))
    assert left == [(OF_0005,), *((result,) for result in results[1:-1])]  # one without a result is none
    assert SearchResult.from_dict(OF_0005["search"]).to_dict() == OF_0005["search"]


def test_every_released_revision_has_its_asset_and_it_is_small() -> None:
    assets = sorted(ASSETS.iterdir())
    assert [path.name for path in assets] == [f"revision_{revision}.sqlite3" for revision in migration.REVISIONS]
    assert all(path.stat().st_size < 100_000 for path in assets)


def test_older_database_is_refused_then_upgraded_with_its_rows(
    disposable_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_repository(disposable_url) as repository:
        store_basics(repository)
        repository.add_samples([sample(1)])
    current = migration.REVISIONS[-1]
    write_next_revision(tmp_path, monkeypatch)
    for create in (False, True):  # never migrated by the way
        with pytest.raises(
            SchemaRevisionError, match=rf"older.*found revision {current}, expected 9000.*lop db upgrade"
        ):
            open_repository(disposable_url, create=create)
    assert upgrade(disposable_url) == "9000"
    with open_repository(disposable_url) as repository:
        assert repository.list_models() == [model()]  # on SQLite, `models` was copied, dropped and renamed
        assert repository.list_samples("m") == [sample(1)]
        with pytest.raises(IntegrityError), repository._engine.begin() as connection:
            connection.execute(text("DELETE FROM models"))  # what refers to it still does


def test_rows_that_refer_to_nothing_are_told_of_and_nothing_is_changed(tmp_path: Path) -> None:
    path = shutil.copyfile(ASSETS / "revision_0003.sqlite3", tmp_path / "old.db")
    with closing(sqlite3.connect(path)) as connection, connection:  # which enforces no foreign keys
        connection.execute("DELETE FROM models")
    with pytest.raises(
        StorageError, match=r"refer to rows that are there \(got \d+ do not, first row \d+ of \w+, of models"
    ):
        upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0003",)]


def test_failed_migration_changes_nothing(disposable_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        write_next_revision(tmp_path, patch, 'op.execute("INSERT INTO no_such_table VALUES (1)")')
        with pytest.raises(StorageUnavailableError, match="no_such_table"):
            upgrade(disposable_url)
    with open_repository(disposable_url) as repository:
        columns = {column["name"] for column in inspect(repository._engine).get_columns("models")}
    assert columns == set(Base.metadata.tables["models"].columns.keys())


def test_newer_database_is_refused_even_by_upgrade(disposable_url: str, tmp_path: Path) -> None:
    engine = create_database_engine(parse_url(disposable_url))
    with engine.execution_options(write=True).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for act in (open_repository, upgrade):
        with pytest.raises(SchemaRevisionError, match=r"newer.*found revision 9999, expected .*pip install -U"):
            act(disposable_url)


def test_tables_of_another_program_are_left_alone(empty_url: str) -> None:
    upgrade(empty_url)
    engine = create_database_engine(parse_url(empty_url))
    with engine.execution_options(write=True).begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    engine.dispose()
    with pytest.raises(SchemaRevisionError, match=r"artifacts, .*, devices, .*models.*Use a database of its own"):
        upgrade(empty_url)


def test_asset_can_be_made_again(tmp_path: Path) -> None:
    make_asset(tmp_path / "again.sqlite3")
    with open_repository(f"sqlite:///{tmp_path / 'again.sqlite3'}") as repository:
        assert repository.count_samples("m") == 7
