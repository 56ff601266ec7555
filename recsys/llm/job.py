"""Many questions to one model: each asked once, its answer checked, mended or given up, and all of it accounted for.

    strict JSON -> the first valid object in the text -> the question once more, with what was wrong -> no value

What was asked before, by this job or another, comes from the cache. The first call goes alone: a wrong key or address
is met once.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from recsys.errors import EndpointError
from recsys.llm.account import Account
from recsys.llm.budget import Budget
from recsys.llm.cache import AnswerCache, Entry
from recsys.llm.calls import LLM, Answer, Call, Refused, Usage
from recsys.llm.clock import Clock
from recsys.llm.structured import AnswerSchema, Parsed
from recsys.llm.tokens import TokenCounter, most_prompt_tokens, prompt_tokens

DAY = 86_400.0
REFUSALS_IN_A_ROW = 20
How = Literal["strict", "extracted", "asked again", "invalid", "refused"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a question: a valid `value`, or the fallback and the `problem`; `usage` of all its calls."""

    value: Any
    how: How
    problem: str | None = None
    usage: Usage = field(default_factory=Usage, compare=False)

    @property
    def valid(self) -> bool:
        """Whether the model gave the value."""
        return self.how not in {"invalid", "refused"}


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """`fallback`: the value of questions without a valid answer. `keep_failures`: seconds before these are asked again.

    `allow_truncated`: whether an answer that was cut off may do, if it is valid.
    """

    fallback: Any = None
    keep_failures: float = DAY
    allow_truncated: bool = False


class _Stopped(Exception):  # noqa: N818 - ends the thread of a call in a job that is over
    """Another call has ended the job."""


class _Reservation:
    """The permit of one call: its tokens are set aside until it ends."""

    def __init__(self, job: "Job", most: Usage) -> None:
        self.job, self.most = job, most
        self.open = False
        self._reserve()

    @property
    def tokens(self) -> int:
        """At most."""
        return self.most.total

    def again(self, lost: bool) -> None:
        """A lost attempt counts as one that took all it could."""
        if self.job.stopping.is_set():
            raise _Stopped
        self.job.account.add(retries=1, lost=int(lost))
        if lost:
            self.settle(self.most)
            self._reserve()

    def settle(self, used: Usage | None) -> None:
        """Once; later calls do nothing."""
        if self.open:
            self.open = False
            self.job.budget.settle(self.most, used)

    def _reserve(self) -> None:
        self.job.budget.reserve(self.most)
        self.open = True


class Job:
    """Asks `llm` for answers under `schema`, within `budget`."""

    def __init__(
        self,
        llm: LLM,
        schema: AnswerSchema,
        cache: AnswerCache,
        *,
        budget: Budget,
        counter: TokenCounter,
        config: JobConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.llm, self.schema, self.cache, self.budget, self.counter = llm, schema, cache, budget, counter
        self.config, self.clock = config or JobConfig(), clock or Clock()
        self.account = Account()
        self.stopping = threading.Event()
        self._booked: set[bytes] = set()
        self._lock = threading.Lock()
        self._refused_in_a_row = 0

    def known(self, call: Call) -> Outcome | None:
        """From the cache alone; None where a call would have to be made."""
        return self._climb(call, lambda call, _: self._kept(call.key(self.llm.identity)))

    def ask(self, call: Call) -> Outcome:
        """From the cache, or from the model."""
        outcome = self._climb(call, self._answered)
        assert outcome is not None
        return outcome

    def ask_all(self, calls: Sequence[Call], progress: Callable[[int], None] | None = None) -> list[Outcome]:
        """Of each call, in order; equal calls are one. `progress` hears of questions done."""
        done = progress or (lambda _: None)
        keys = [call.key(self.llm.identity) for call in calls]
        repeats = Counter(keys)
        distinct = {key: number for number, key in reversed([*enumerate(keys)])}
        outcomes: dict[bytes, Outcome] = {}
        asked: list[int] = []
        for number in sorted(distinct.values()):
            if (known := self.known(calls[number])) is None:
                asked.append(number)
            else:
                outcomes[keys[number]] = known
                done(repeats[keys[number]])
        for number, outcome in self._answers(calls, asked):
            outcomes[keys[number]] = outcome
            done(repeats[keys[number]])
        return [outcomes[key] for key in keys]

    def close(self) -> None:
        """Ends connections to model and cache."""
        self.llm.close()
        self.cache.close()

    def _answers(self, calls: Sequence[Call], asked: list[int]) -> Iterator[tuple[int, Outcome]]:
        """As they come; the first one alone."""

        errors: list[BaseException] = []

        def work(number: int) -> tuple[int, Outcome]:
            try:
                return number, self.ask(calls[number])
            except _Stopped:
                raise
            except BaseException as error:
                errors.append(error)
                self.stopping.set()
                raise

        if asked:
            yield work(asked[0])
        try:
            yield from in_parallel(work, asked[1:], self.llm.concurrency, self.stopping.set)
        except _Stopped:
            raise errors[0] from None

    def _climb(self, call: Call, look: Callable[[Call, bool], Entry | None]) -> Outcome | None:
        """The ladder; `look` is told whether it is the last rung, and gives None where it must not ask."""
        first = look(call, False)
        if first is None or first.answer is None:
            return None if first is None else self._given_up("refused", first.refusal)
        parsed, usage = self._parsed(call, first.answer), first.answer.usage or Usage()
        if parsed.problem is None:
            return Outcome(value=parsed.value, how=parsed.found, usage=usage)
        second = look(call.corrected(first.answer.text, parsed.problem), True)
        if second is None or second.answer is None:
            return None if second is None else self._given_up("refused", second.refusal, usage)
        again, usage = self._parsed(call, second.answer), usage + (second.answer.usage or Usage())
        if again.problem is None:
            return Outcome(value=again.value, how="asked again", problem=parsed.problem, usage=usage)
        return self._given_up("invalid", again.problem, usage)

    def _given_up(self, how: How, problem: str | None, usage: Usage | None = None) -> Outcome:
        return Outcome(value=self.config.fallback, how=how, problem=problem, usage=usage or Usage())

    def _parsed(self, call: Call, answer: Answer) -> Parsed:
        if answer.truncated and not self.config.allow_truncated:
            return Parsed(problem=f"it was cut off after {call.sampling.most_output} tokens, so be shorter")
        return self.schema.parse(answer.text)

    def _kept(self, key: bytes) -> Entry | None:
        """From the cache; each answer counts once against the budget, whichever run paid it."""
        entry = self.cache.get(key)
        if entry is not None and self._is_new(key) and entry.answer is not None and entry.answer.usage is not None:
            self.budget.spend(entry.answer.usage)
            self.account.found(entry.answer.usage, self.budget.prices)
        return entry

    def _is_new(self, key: bytes) -> bool:
        with self._lock:
            new = key not in self._booked
            self._booked.add(key)
            return new

    def _answered(self, call: Call, last: bool) -> Entry:
        key = call.key(self.llm.identity)
        entry = self._kept(key)
        return self._paid(call, key, last) if entry is None else entry

    def _paid(self, call: Call, key: bytes, last: bool) -> Entry:
        """Asks the model and keeps what it says before anything else."""
        if self.stopping.is_set():
            raise _Stopped
        most = Usage(prompt=most_prompt_tokens(call, self.counter), output=call.sampling.most_output)
        reservation = _Reservation(self, most)
        try:
            answer = self.llm.answer(call, reservation)
            if answer.usage is None:
                answer = replace(answer, usage=self._estimated(call, answer.text))
            failed = last and self._parsed(call, answer).problem is not None
            entry = self._keep(key, Entry(answer=answer), failed)
            reservation.settle(answer.usage)
        except Refused as refusal:
            return self._refused(key, str(refusal))
        finally:
            reservation.settle(None)
        self.account.called(answer.usage or Usage(), self.budget.prices)
        self.account.add(asked_again=int(last))
        with self._lock:
            self._refused_in_a_row = 0
        return entry

    def _refused(self, key: bytes, reason: str) -> Entry:
        self.account.add(refused=1)
        with self._lock:
            self._refused_in_a_row += 1
            in_a_row = self._refused_in_a_row
        if in_a_row >= REFUSALS_IN_A_ROW:
            raise EndpointError(
                f"{self.llm.identity}: {in_a_row} questions in a row were refused ({reason}); change what is sent, "
                "then run again with --forget-failures."
            )
        return self._keep(key, Entry(refusal=reason), failed=True)

    def _keep(self, key: bytes, entry: Entry, failed: bool) -> Entry:
        kept = self.cache.put(key, self.llm.identity, entry, self.config.keep_failures if failed else None)
        self._is_new(key)
        return kept

    def _estimated(self, call: Call, text: str) -> Usage:
        return Usage(prompt=prompt_tokens(call, self.counter), output=self.counter.count(text), estimated=True)


def in_parallel(
    work: Callable[[int], tuple[int, Outcome]], numbers: Sequence[int], workers: int, stop: Callable[[], None]
) -> Iterator[tuple[int, Outcome]]:
    """Results as they come, `workers` at a time. After an error nothing new begins, what is under way ends, and
    `stop` is called."""
    waiting: set[Future[tuple[int, Outcome]]] = set()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number in numbers:
                waiting.add(pool.submit(work, number))
                if len(waiting) >= 2 * workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            stop()
            for future in waiting:
                future.cancel()
            raise
