"""`lop serve`: the HTTP service."""

from typing import Annotated

import typer

from lop.commands.options import OptionalDatabase


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; loopback by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 8000 by default, 0 for any free one.")
    ] = None,
    allow_remote: Annotated[
        bool | None, typer.Option("--allow-remote", help="Allow an address that other machines reach.")
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(help="Prefix of all paths as clients see them, where a proxy takes it away, such as /lop."),
    ] = None,
    database: OptionalDatabase = None,
) -> None:
    """Serve plans over HTTP. Settings also come from LOP_... environment variables."""
    from service.server import serve as run
    from service.settings import load_settings

    run(load_settings(host=host, port=port, allow_remote=allow_remote, root_path=root_path, database_url=database))
