"""One server of the OpenAI API over HTTP: retries, circuit breaker, limits; the key is read and never written down."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from recsys.errors import ConfigError, EndpointError
from recsys.llm.breaker import CircuitBreaker
from recsys.llm.calls import Permit, Refused
from recsys.llm.clock import Clock
from recsys.llm.limits import Limits
from recsys.llm.retries import Backoff, may_pass, retry_after

API_KEY = "RECSYS_LLM_API_KEY"
MOST_OF_A_MESSAGE = 300
UNAUTHORISED = frozenset({401, 403})
OF_THE_REQUEST = frozenset({400, 413, 422})
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Where the server is and how it may be asked.

    `url`: up to and with the version, such as http://127.0.0.1:8000/v1. `api_key_env`: the environment variable that
    holds the key; one that is not set is no key. `longest_wait`: what Retry-After may ask for at most.
    """

    url: str
    api_key_env: str = API_KEY
    timeout: float = 120.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    backoff: Backoff = field(default_factory=Backoff)
    longest_wait: float = 600.0
    breaker_failures: int = 20
    breaker_seconds: float = 30.0

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ConfigError(f"endpoint {self.url!r}: is no address; give one such as http://127.0.0.1:8000/v1.")
        if address.username or address.password or address.query:
            raise ConfigError(
                f"endpoint at {address.hostname}: its address holds a user, a password or a query, which would be "
                f"written into manifests; put the key into the environment variable {self.api_key_env}."
            )
        positive = ("timeout", "concurrency", "longest_wait", "breaker_failures", "breaker_seconds")
        for name in (*positive, "requests_per_minute", "tokens_per_minute"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"endpoint {self.url}: {name}={value} must be above 0.")


class MalformedReply(ValueError):  # noqa: N818 - read as a noun where it is raised
    """A reply with status 200 that is not what the API describes."""


class _Fault(Exception):  # noqa: N818 - not raised out of this module
    """An attempt that failed and may be repeated."""

    def __init__(self, what: str, *, lost: bool = False, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(what)
        self.lost, self.wait, self.busy = lost, wait, busy


class Endpoint:
    """Posts JSON; several threads share one."""

    def __init__(self, config: EndpointConfig, clock: Clock | None = None) -> None:
        self.config, self.clock = config, clock or Clock()
        self.url = config.url.rstrip("/")
        self._key = SecretStr(os.environ.get(config.api_key_env, "").strip())
        self._limits = Limits(config.requests_per_minute, config.tokens_per_minute, self.clock)
        self.breaker = CircuitBreaker(config.breaker_failures, config.breaker_seconds, self.clock)
        secret = self._key.get_secret_value()
        if not (secret.isascii() and secret.isprintable()):
            raise ConfigError(
                f"environment variable {config.api_key_env}: holds a character that no key has (a line break, or one "
                "beyond ASCII); set it to one key."
            )
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            timeout=config.timeout,
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )

    def post(self, path: str, body: Mapping[str, Any], permit: Permit, parsed: Callable[[Any], T]) -> T:
        """What `parsed` makes of the reply; it raises `MalformedReply` where that is not a reply.

        Faults that may pass are tried again (`Backoff`); `Refused` is a fault of this request alone, `EndpointError`
        one that would meet every request.
        """
        retries = self.config.backoff.retries
        for retry in range(retries + 1):
            try:
                return self._attempt(path, body, permit, parsed)
            except _Fault as fault:
                if retry == retries:
                    raise EndpointError(
                        f"{self.url}: gave no answer in {retries + 1} attempts (the last: {fault}); see that the "
                        "server runs, then run again: what was answered is kept."
                    ) from None
                permit.again(fault.lost)
                self._rest(fault, retry)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def _rest(self, fault: _Fault, retry: int) -> None:
        """Before the next attempt: as long as the server says, for all threads, or else by chance."""
        if fault.wait is None:
            self.clock.sleep(self.config.backoff.seconds(retry, self.clock.chance()))
        elif fault.wait > self.config.longest_wait:
            raise EndpointError(
                f"{self.url}: asks to wait {fault.wait:.0f} s ({fault}), more than {self.config.longest_wait:.0f}; "
                "run again later: what was answered is kept."
            )
        else:
            self._limits.pause(fault.wait)

    def _attempt(self, path: str, body: Mapping[str, Any], permit: Permit, parsed: Callable[[Any], T]) -> T:
        """One attempt, of which limits and breaker learn how it went."""
        self._limits.wait(permit.tokens)
        self.breaker.enter()
        try:
            content = self._sent(path, body)
            result = parsed(content)
        except Refused:
            self.breaker.succeeded()
            raise
        except MalformedReply as error:
            self.breaker.failed()
            raise _Fault(f"a reply that cannot be read: {error}", lost=True) from None
        except _Fault as fault:
            (self.breaker.succeeded if fault.busy else self.breaker.failed)()
            raise
        except BaseException:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        self._limits.give_back(max(0, permit.tokens - _tokens_used(content, permit.tokens)))
        return result

    def _sent(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a reply with status 200."""
        try:
            response = self._client.post(f"{self.url}/{path}", json=dict(body))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Fault(f"no connection: {self._told(str(error))}") from None
        except httpx.TimeoutException:
            raise _Fault(f"no answer within {self.config.timeout:g} s", lost=True) from None
        except httpx.TransportError as error:
            raise _Fault(f"the connection broke: {self._told(str(error))}", lost=True) from None
        if response.status_code != httpx.codes.OK:
            self._raise(response)
        try:
            return response.json()
        except ValueError:
            raise MalformedReply("no JSON") from None

    def _raise(self, response: httpx.Response) -> None:
        status, told = response.status_code, self._told(response.text)
        if may_pass(status):
            wait = retry_after(response.headers.get("retry-after"), self.clock.now())
            raise _Fault(f"status {status}: {told}", wait=wait, busy=status == httpx.codes.TOO_MANY_REQUESTS)
        if status in UNAUTHORISED:
            raise EndpointError(
                f"{self.url}: status {status} ({told}); put a key that is valid there into the environment variable "
                f"{self.config.api_key_env}."
            )
        if status in OF_THE_REQUEST:
            raise Refused(f"status {status}: {told}")
        raise EndpointError(
            f"{self.url}: status {status} ({told}); check the address (it ends with the version, as in .../v1) and the "
            "name of the model."
        )

    def _told(self, text: str) -> str:
        """The beginning of what a server says, on one line; the key is never repeated, even if the server does."""
        secret = self._key.get_secret_value()
        return " ".join((text.replace(secret, "***") if secret else text).split())[:MOST_OF_A_MESSAGE]


def _tokens_used(reply: Any, otherwise: int) -> int:
    """What the reply says of all tokens."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) else otherwise
