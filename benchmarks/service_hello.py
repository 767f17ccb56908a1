"""What `bench-service` compares with: a FastAPI application that says hello, by uvicorn as `lop serve` runs it.

`python -m benchmarks.service_hello PORT`
"""

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def hello() -> dict[str, str]:
    """The whole application."""
    return {"message": "hello, world"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, server_header=False)
