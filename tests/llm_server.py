"""A language model's server on a real socket, with faults to order: what drivers are tested against.

Answers are a function of the prompt alone, so that a table made through faults can be compared with one made without.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD = re.compile(r"\w+|[^\w\s]+")
TEMPLATE_TOKENS = 5
"""What this server's chat template puts around each message."""


def count_tokens(text: str) -> int:
    """Words, and signs in a row, as the tokeniser `Whitespace` has them."""
    return len(WORD.findall(text))


@dataclass(frozen=True)
class Reply:
    """What goes over the wire. `body` None: the connection is dropped; `seconds`: it comes so late."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    raw: bytes | None = None


def chat_reply(text: str, messages: list[dict[str, str]], finish: str = "stop", model: str = "served") -> Reply:
    """A chat completion with its usage."""
    prompt = sum(TEMPLATE_TOKENS + count_tokens(message["content"]) for message in messages)
    output = count_tokens(text)
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply({"model": model, "choices": [choice], "usage": usage})


def letters(text: str, width: int = 5) -> list[float]:
    """A vector that says which text it is of."""
    return [float(len(text)), *(1.0 / (1 + text.count(letter)) for letter in "abcdefgh")][:width]


def embedding(path: str, body: dict[str, Any], _: int) -> Reply:
    """Vectors in reverse order, as the API allows."""
    assert path == "/v1/embeddings"
    width = body.get("dimensions", 5)
    rows = [{"index": place, "embedding": letters(text, width)} for place, text in enumerate(body["input"])]
    return Reply({"data": rows[::-1], "usage": {"total_tokens": 7}})


Handler = Callable[[str, dict[str, Any], int], Reply]
"""(path, request, how many times this request came before) -> reply."""


@dataclass
class Server:
    """Counts what it is asked."""

    handler: Handler
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    exchanges: list[tuple[dict[str, Any], Reply]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def prompts(self) -> list[str]:
        """The first user message of each request, in order."""
        return [next(turn["content"] for turn in body["messages"] if turn["role"] == "user") for body in self.requests]

    @property
    def replies(self) -> list[Reply]:
        """In the order in which they were made."""
        return [reply for _, reply in self.exchanges]

    @property
    def answered(self) -> list[tuple[dict[str, Any], dict[str, int]]]:
        """Requests that got an answer, and its usage."""
        return [(body, reply.body["usage"]) for body, reply in self.exchanges if "usage" in (reply.body or {})]

    def reply(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        """Of the handler, with records."""
        name = path + json.dumps(body, sort_keys=True)
        with self.lock:
            before = self.times[name]
            self.times[name] += 1
            self.requests.append(body)
            self.headers.append(headers)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = self.handler(path, body, before)
            with self.lock:
                self.exchanges.append((body, reply))
            time.sleep(reply.seconds)
        finally:
            with self.lock:
                self.in_flight -= 1
        return reply


@contextmanager
def serving(handler: Handler) -> Iterator[Server]:
    """Serves on a free port of this machine while the block runs."""
    server = Server(handler)

    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = server.reply(self.path, body, dict(self.headers.items()))
            if reply.body is None and reply.raw is None:
                self.close_connection = True
                return
            content = json.dumps(reply.body).encode() if reply.raw is None else reply.raw
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Silent."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    listener = Listener(("127.0.0.1", 0), Connection)
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
