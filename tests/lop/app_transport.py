"""An httpx transport that calls the application in this process: no socket, the real routes."""

import asyncio

import httpx
from fastapi import FastAPI


class AppTransport(httpx.BaseTransport):
    """Runs each request through the ASGI application to its end."""

    def __init__(self, app: FastAPI) -> None:
        self._inner = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def call() -> httpx.Response:
            streamed = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
            response = await self._inner.handle_async_request(streamed)
            content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)

        request.read()
        return asyncio.run(call())
