"""What a job will cost, before it is run; what it has answered already says how far the counts are off."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recsys.llm.calls import Call, Usage
from recsys.llm.job import Job
from recsys.llm.tokens import prompt_tokens


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of the questions that are not answered yet; `measured_on` answered ones tell about the tokens of the others."""

    questions: int
    distinct: int
    answered: int
    to_ask: int
    usage: Usage
    cost: float
    measured_on: int
    counter: str

    def figures(self) -> dict[str, Any]:
        """For people and machines."""
        length = "the most allowed" if not self.measured_on else f"as of {self.measured_on} answers that are there"
        return {
            "questions": self.questions,
            "distinct_questions": self.distinct,
            "answered_already": self.answered,
            "to_ask": self.to_ask,
            "prompt_tokens": self.usage.prompt,
            "output_tokens": self.usage.output,
            "cost": round(self.cost, 6),
            "prompts": self.counter + (", corrected by what was counted" if self.measured_on else ""),
            "answers": length,
        }


def estimate(job: Job, calls: Sequence[Call]) -> Estimate:
    """No call is made. Prompts are counted; prompts of re-asked questions and the length of answers are taken from
    those that are answered already, or else an answer is as long as it may be, and none is asked again."""
    seen: set[bytes] = set()
    used, counted, answered, pending, most_output = Usage(), 0, 0, 0, 0
    to_come = 0
    for call in calls:
        if (key := call.key(job.llm.identity)) in seen:
            continue
        seen.add(key)
        tokens, outcome = prompt_tokens(call, job.counter), job.known(call)
        if outcome is None:
            pending, to_come, most_output = pending + 1, to_come + tokens, most_output + call.sampling.most_output
        else:
            answered += 1
            if outcome.how != "refused":
                used, counted = used + outcome.usage, counted + tokens
    measured = answered if counted else 0
    usage = Usage(prompt=to_come, output=most_output)
    if measured:
        prompt = round(to_come * used.prompt / counted)
        cached = round(prompt * used.cached / max(1, used.prompt))
        usage = Usage(prompt=prompt, cached=cached, output=round(pending * used.output / measured))
    return Estimate(
        questions=len(calls),
        distinct=len(seen),
        answered=answered,
        to_ask=pending,
        usage=usage,
        cost=job.budget.prices.cost(usage),
        measured_on=measured,
        counter=job.counter.name,
    )
