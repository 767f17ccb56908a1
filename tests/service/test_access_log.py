import logging

import pytest
from fastapi.testclient import TestClient


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
