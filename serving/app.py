"""The application: routes, middleware, and the bundle that loads before the first request."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from recsys import __version__
from serving import api, examples, page, problems
from serving.metrics import Metrics
from serving.observed import Observed
from serving.service import Service
from serving.settings import Settings

STATIC = Path(__file__).parent / "static"


def create_app(source: Path | Service, settings: Settings) -> FastAPI:
    """An app for a bundle folder, opened when the app starts, or for a `Service` opened before.

    Either is closed when the app stops. A bundle that cannot be served stops the start with a `RecsysError`.
    """
    metrics = Metrics()
    # Swagger's page would load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="recsys", version=__version__, lifespan=_lifespan(source), docs_url=None, redoc_url=None)
    app.state.settings, app.state.metrics = settings, metrics
    app.add_middleware(Observed, metrics=metrics, max_body_bytes=settings.max_body_bytes)
    problems.install(app)
    examples.install(app)
    app.include_router(api.router)
    app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _lifespan(source: Path | Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings = app.state.settings
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
        service = source if isinstance(source, Service) else Service.open(source, settings)
        app.state.service = service
        app.state.metrics.serving(service.bundle)
        try:
            yield
        finally:
            service.close()

    return lifespan
