"""A `redis-server` (or `valkey-server`) that forgets nothing it has acknowledged, to be killed and started again."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as NoConnection

from recsys.errors import RecsysError
from serving.run import bound_socket

SECONDS_TO_START = 60


@dataclass
class RedisProcess:
    """Keeps its append-only file in `folder`, written through to the disk before it answers."""

    folder: Path
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns once it answers."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise RecsysError("neither redis-server nor valkey-server is installed; `apt-get install redis-server`.")
        if not self.port:
            with bound_socket("127.0.0.1", 0) as free:
                self.port = free.getsockname()[1]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", ""]
        safe = ["--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen([program, *place, *safe], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS_TO_START
        with Redis(port=self.port) as client:
            while time.monotonic() < deadline:
                try:
                    client.ping()
                except NoConnection:  # also while it reads its file
                    time.sleep(0.05)
                else:
                    return
        raise RecsysError(f"redis-server did not start on port {self.port} within {SECONDS_TO_START} s.")

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
