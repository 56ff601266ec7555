"""Starts the service on a port of this machine: what `recsys serve` calls."""

import errno
import socket
from contextlib import suppress
from pathlib import Path

import uvicorn

from recsys.errors import ConfigError
from serving.app import create_app
from serving.service import Service
from serving.settings import read_settings

SECONDS_TO_FINISH = 10
LARGEST_PORT = 65_535


def serve(bundle: Path, host: str = "127.0.0.1", port: int = 8000, state: str | Path | None = None) -> None:
    """Serves `bundle` until the process is told to stop; `state` None means `RECSYS_STATE` or its default.

    A taken port, an unusable setting or a bundle that cannot be served is a `RecsysError` before anything starts.
    """
    settings = read_settings(state)
    with bound_socket(host, port) as listener:
        app = create_app(Service.open(bundle, settings), settings)
        server = uvicorn.Server(
            uvicorn.Config(app, access_log=False, server_header=False, timeout_graceful_shutdown=SECONDS_TO_FINISH)
        )
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


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


def _refusal(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program; stop that one, or pass --port with a free port."
    return f"port {port} on {host} cannot be opened ({error.strerror}); pass another --host or --port."
