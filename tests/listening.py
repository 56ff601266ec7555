"""The app on a real port of this process, for clients that no test client can stand for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.app import create_app
from serving.run import Server, bound_socket
from serving.settings import Settings


@contextmanager
def listening(bundle: Path, settings: Settings) -> Iterator[int]:
    """The port; connections wait there until the app has started."""
    with bound_socket("127.0.0.1", 0) as listener:
        server = Server(create_app(bundle, settings), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        listener.listen()
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=30)
