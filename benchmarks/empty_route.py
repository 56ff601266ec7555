"""The ceiling: routes that do nothing, in FastAPI with the service's own server settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

from serving.run import Server, bound_socket
from serving.settings import Settings

THREAD, LOOP = "/v1/recommend", "/v1/recommend/loop"


def serve(port: int) -> None:
    """Until the process is told to stop; one route in the thread pool, as the service's, and one in the event loop."""
    settings = Settings()
    app = FastAPI(lifespan=_with_threads(settings.threads))
    app.state.draining = False

    @app.post(THREAD)
    def in_a_thread() -> dict[str, str]:
        return {}

    @app.post(LOOP)
    async def in_the_loop() -> dict[str, str]:
        return {}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {}

    with bound_socket("127.0.0.1", port) as listener:
        Server(app, settings).run(sockets=[listener])


def _with_threads(threads: int):  # type: ignore[no-untyped-def]  # as Starlette's manual has it
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        yield

    return lifespan
