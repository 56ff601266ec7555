"""The service in a process of its own, for what is measured from outside."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import RecsysError
from serving.run import bound_socket

SECONDS_TO_START = 300
SERVE = "from pathlib import Path; from serving.run import serve; import sys; serve(Path(sys.argv[1]), port={port})"


@dataclass(frozen=True)
class Running:
    """Listens; `log` is what it writes."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def address(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    def resident_mib(self) -> float:
        """What the process holds of the machine's memory now, files mapped by it included."""
        return _status(self.process.pid, "VmRSS")

    def own_mib(self) -> float:
        """The same without mapped files: what it has allocated."""
        return _status(self.process.pid, "RssAnon")

    def cpu_seconds(self) -> float:
        """What the process has computed so far, in all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(bundle: Path, log: Path, code: str = SERVE, **settings: object) -> Iterator[Running]:
    """Ready; `settings` become environment variables. `code` is what it runs, with the bundle as its argument."""
    with bound_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    given = {f"RECSYS_{name.upper()}": str(value) for name, value in {"drain_seconds": 0, **settings}.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **given}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(port=port), str(bundle)],
            stdout=output,
            stderr=output,
            env=environment,
        )
    service = Running(port, process, log)
    try:
        _wait_until_ready(service)
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(service: Running) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{service.address}/health/ready"):
                return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise RecsysError(f"the service did not start: {service.log.read_text(encoding='utf-8')}")


def _status(pid: int, name: str) -> float:
    """MiB of one line of /proc's status."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
