"""Starts the service on a port of this machine: what `recsys serve` calls."""

import errno
import ipaddress
import signal
import socket
from contextlib import suppress
from pathlib import Path
from threading import Timer
from types import FrameType

import uvicorn
from fastapi import FastAPI

from recsys.errors import ConfigError
from serving.app import create_app
from serving.logs import log_config
from serving.metrics import Metrics
from serving.settings import Settings, read_settings
from serving.sources import source_of
from serving.variants import Variants

SECONDS_TO_FINISH = 10
LARGEST_PORT = 65_535


class Server(uvicorn.Server):
    """At SIGTERM it says for a while that it is not ready, so that balancers send nothing more; then it closes."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=SECONDS_TO_FINISH,
                log_config=log_config(settings.logs),
            )
        )
        self._app, self._seconds = app, settings.drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT, and a second SIGTERM, close at once; open requests may finish in any case."""
        if sig != signal.SIGTERM or self._app.state.draining or not self._seconds:
            super().handle_exit(sig, frame)
            return
        self._app.state.draining = True
        closing = Timer(self._seconds, super().handle_exit, (sig, frame))
        closing.daemon = True
        closing.start()


def serve(bundle: str | Path, host: str = "127.0.0.1", port: int = 8000, state: str | Path | None = None) -> None:
    """Serves a bundle's folder or address until the process is told to stop; `state` None means `RECSYS_STATE` or its
    default.

    A taken port, an open door, an unusable setting or a bundle that cannot be served is a `RecsysError` before anything
    starts.
    """
    settings = read_settings(state)
    with bound_socket(host, port) as listener:
        _refuse_open_door(listener, host, settings)
        app = create_app(Variants(source_of(bundle), settings, Metrics()), settings)
        with suppress(KeyboardInterrupt):
            Server(app, settings).run(sockets=[listener])


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on which the service will listen; taken ports are found before the bundle is loaded."""
    if not 0 <= port <= LARGEST_PORT:  # getaddrinfo would cut it to 16 bits
        raise ConfigError(f"port {port} does not exist; pass --port between 1 and {LARGEST_PORT}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"host {host} is not known ({error.strerror}); pass --host 127.0.0.1 or 0.0.0.0.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(_refusal(error, host, port)) from None
    return listener


def _refuse_open_door(listener: socket.socket, host: str, settings: Settings) -> None:
    """Others may reach the service only with keys, or where somebody has said that they need none."""
    loopback = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
    if not loopback and settings.keys is None and not settings.without_keys:
        raise ConfigError(
            f"host {host} can be reached from other machines, and no API keys are set: make some with "
            "`recsys keys create` and name their file in RECSYS_KEYS; where something else asks who calls, set "
            "RECSYS_WITHOUT_KEYS=true."
        )


def _refusal(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program; stop that one, or pass --port with a free port."
    return f"port {port} on {host} cannot be opened ({error.strerror}); pass another --host or --port."
