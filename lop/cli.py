"""The `lop` command. Each command lives in its own module under `lop/commands`.

Exit codes: 0 done, 2 the user's input breaks a rule (one line on stderr says which), 130 interrupted.
"""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from lop.commands import (
    apply,
    compare,
    data,
    db,
    demo,
    device,
    evaluate,
    export,
    inspect,
    job,
    key,
    model,
    plan,
    quantise,
    recover,
    search,
    serve,
    sparsify,
    train,
    worker,
)
from lop.console.console import accept_any_text, fail, print_line
from pruning.errors import LopError
from pruning.missing_packages import needing

INTERRUPTED = 130

_EXTRA_OF = (
    dict.fromkeys(("apply", "sparsify", "quantise", "evaluate", "export", "inspect", "data"), "apply")
    | {"recover": "recover"}
    | dict.fromkeys(("serve", "plan", "db", "job", "key"), "server")
)
"""What to install for a command, where several extras would do; `search` for the others."""

app = typer.Typer(
    name="lop",
    help="Make multimodal LLMs fit the hardware that people have: search once, then a plan per target in milliseconds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"lop-service {version('lop-service')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


app.add_typer(model.app, name="model")
app.add_typer(data.app, name="data")
app.command("search")(search.search)
app.command("train")(train.train)
app.command("serve")(serve.serve)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("apply")(apply.apply)
app.command("recover")(recover.recover)
app.command("sparsify")(sparsify.sparsify)
app.command("quantise")(quantise.quantise)
app.command("inspect")(inspect.inspect)
app.add_typer(export.app, name="export")
app.command("evaluate")(evaluate.evaluate)
app.command("demo")(demo.demo)
app.command("worker")(worker.worker)
app.add_typer(job.app, name="job")
app.add_typer(key.app, name="key")
app.add_typer(device.app, name="device")
app.add_typer(db.app, name="db")


def main() -> None:
    """Entry point: runs the command, turns a user's mistake into one line and exit code 2."""
    # The commands say what matters themselves; a user can still ask for more.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # notes on lost nodes go to stdout, amid a command's JSON
    # OpenMP threads that spin while they wait slow everything down tenfold where another process has one of the cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    accept_any_text()
    try:
        with needing(_EXTRA_OF.get(next(iter(sys.argv[1:]), ""), "search")):
            code = app(prog_name="lop", standalone_mode=False)
    except typer.TyperException as error:  # a command line that does not parse
        if message := error.format_message():
            fail(f"{message.rstrip('.')}. `lop --help` and `lop COMMAND --help` list what there is")
        code = 2
    except LopError as error:
        fail(str(error))
        code = 2
    except OSError as error:
        if error.filename is None:  # no file of the user's: a fault of ours, which its traceback explains
            raise
        fail(f"a file or folder must be usable (got {error.filename}: {error.strerror}). Choose another, or mend it")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer makes this code of a Ctrl-C within a command, and says nothing
        fail("interrupted; what was stored is intact, run the same command again to go on")
    sys.exit(code)


if __name__ == "__main__":
    main()
