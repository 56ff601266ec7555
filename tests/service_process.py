"""`serve` in a process of its own, in which nothing of training can be imported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from serving.run import bound_socket

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("torch", "jaxtyping", "scipy", "accelerate", "onnx", "onnxscript", "safetensors")


@dataclass(frozen=True)
class ServiceProcess:
    """Listens; `log` is what it has written so far."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def address(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Fails with the log where it does not come up."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        pytest.fail(f"the service did not start: {self.log.read_text()}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


@contextmanager
def served(bundle: Path, state: str | Path, log: Path, **settings: object) -> Iterator[ServiceProcess]:
    """Ready; `settings` become environment variables. Ended at the end, and its log holds no traceback."""
    with bound_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); from pathlib import Path; "
        f"from serving.run import serve; serve(Path({str(bundle)!r}), port={port}, state={str(state)!r})"
    )
    given = {f"RECSYS_{name.upper()}": str(value) for name, value in {"drain_seconds": 0, **settings}.items()}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=output, stdout=output, cwd=ROOT, env={**os.environ, **given}
        )
    service = ServiceProcess(port, process, log)
    try:
        service.wait_until_ready()
        yield service
    finally:
        if process.poll() is None:
            service.end()
    assert "Traceback" not in log.read_text()
