"""A real `redis-server` (or `valkey-server`) on a free port, to be stopped, killed and started again by a test."""

import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis, exceptions
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from serving.run import bound_socket

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


@dataclass
class RedisServer:
    """Keeps nothing on disk unless `options` say so."""

    folder: Path
    options: tuple[str, ...] = ("--save", "", "--appendonly", "no")
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        """Waits for an answer up to a few seconds."""
        patience = Retry(ConstantBackoff(0.02), 500)
        return Redis(port=self.port, retry=patience, retry_on_error=[exceptions.ConnectionError])

    def start(self) -> "RedisServer":
        """Returns once it answers; skips the test where no server is installed."""
        if PROGRAM is None:
            pytest.skip("neither redis-server nor valkey-server is installed; `apt-get install redis-server` brings it")
        if not self.port:
            with bound_socket("127.0.0.1", 0) as free:
                self.port = free.getsockname()[1]
        self.folder.mkdir(exist_ok=True)
        place = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        self.process = subprocess.Popen([PROGRAM, *place, *self.options], stdout=subprocess.DEVNULL)
        with self.client() as client:
            client.ping()
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Returns once it is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)  # it may have been stopped to be slow
            self.process.send_signal(how)
            self.process.wait(timeout=30)
            self.process = None

    def freeze(self) -> None:
        """It listens on, and answers no more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
