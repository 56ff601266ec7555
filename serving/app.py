"""The application: routes, middleware, and the bundle that loads before the first request."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from recsys import __version__
from serving import admin, api, dashboard, examples, page, problems
from serving.api_keys import KeyRing
from serving.guard import Guard, Timeout
from serving.metrics import Metrics
from serving.observed import REQUEST_ID, Observed
from serving.rates import Rates
from serving.settings import Settings
from serving.sources import source_of
from serving.stores import redis_url
from serving.variants import Variants

STATIC = Path(__file__).parent / "static"


def create_app(source: str | Path | Variants, settings: Settings) -> FastAPI:
    """An app for a bundle's folder or address, opened when the app starts, or for `Variants` opened before.

    Either is closed when the app stops. A bundle that cannot be served stops the start with a `RecsysError`.
    """
    metrics = source.metrics if isinstance(source, Variants) else Metrics()
    # Swagger's page would load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="recsys", version=__version__, lifespan=_lifespan(source), docs_url=None, redoc_url=None)
    app.state.settings, app.state.metrics, app.state.draining = settings, metrics, False
    _surround(app, settings, metrics)
    problems.install(app)
    examples.install(app)
    app.include_router(api.router)
    app.include_router(admin.router)
    app.include_router(page.router)
    app.include_router(dashboard.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _surround(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Middleware, from the innermost to the outermost."""
    app.add_middleware(Guard, keys=_keys(settings), rates=_rates(settings))
    app.add_middleware(Timeout, seconds=settings.request_seconds)
    if settings.cors_origins is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    app.add_middleware(
        Observed, metrics=metrics, max_body_bytes=settings.max_body_bytes, logs_requests=settings.logs == "json"
    )


def _keys(settings: Settings) -> KeyRing | None:
    return None if settings.keys is None else KeyRing(settings.keys)


def _rates(settings: Settings) -> Rates | None:
    if settings.rate_limit is None:
        return None
    return Rates(settings.rate_limit, redis_url(settings), settings.state_seconds, settings.state_pause_seconds)


def _lifespan(source: str | Path | Variants) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings = app.state.settings
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
        metrics = app.state.metrics
        variants = source if isinstance(source, Variants) else Variants(source_of(source), settings, metrics)
        app.state.variants = variants
        variants.start()
        try:
            yield
        finally:
            variants.close()

    return lifespan
