import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from storage.contract import Repository


def test_one_line_per_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="service.access"):
        client.get("/healthz")
        client.get("/v1/models/%0aforged%22")
    lines = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert len(lines) == 2
    assert lines[0].startswith('method=GET path="/healthz" status=200 duration_ms=')
    assert lines[0].endswith(" bytes=18 client=testclient")
    assert 'path="/v1/models/\\nforged\\"" status=404' in lines[1]
    assert "\n" not in lines[1]


def test_a_client_that_leaves_is_no_fault_of_the_server(
    settings: Settings, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes while it sends its body: nobody hears an answer, so there is none."""
    app = create_app(settings)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/plans", "raw_path": b"/v1/plans", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-length", b"20")], "client": ("127.0.0.1", 1), "scheme": "http",
        "http_version": "1.1", "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"},
    }  # fmt: skip
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        raise AssertionError(message)

    with caplog.at_level(logging.INFO, logger="service.access"):
        asyncio.run(app(scope, receive, send))
    [line] = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert "status=499" in line
