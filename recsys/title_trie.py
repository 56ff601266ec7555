"""Probabilities of a window's titles, read from a language model's logits so that they sum to 1.

At every step the model's distribution is renormalised over the tokens that continue one of the titles: a walk down the
trie of their tokens. Two titles with the same beginning are told apart where they part; by the first token alone, as
the released code of LLM4DSR has it, they could not be. Dimensions: A answers, K steps, V tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Answer = tuple[int, ...]


def steps_to_read(answers: Sequence[Answer]) -> int:
    """K: tokens after which no two different answers share their beginning, so that nothing is left to tell."""
    depth = 0
    while len({answer[:depth] for answer in answers}) < len(set(answers)):
        depth += 1
    return depth


def continuations(answers: Sequence[Answer], prefix: Answer) -> list[int]:
    """The tokens that may follow a beginning, ascending."""
    depth = len(prefix)
    return sorted({answer[depth] for answer in answers if answer[:depth] == prefix and len(answer) > depth})


def answer_probabilities(logits: Float[Tensor, "A K V"], answers: Sequence[Answer]) -> Float[Tensor, " A"]:
    """Of different answers, none the beginning of another; `logits[a, k]` are those after k tokens of answer a."""
    result = torch.zeros(len(answers), dtype=torch.float64)
    for row, answer in enumerate(answers):
        for step in range(logits.shape[1]):
            choice = continuations(answers, answer[:step])
            if len(choice) > 1:
                known = logits[row, step, choice].double().log_softmax(dim=0)
                result[row] += known[choice.index(answer[step])].cpu()
    return result.exp()
