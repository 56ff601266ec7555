"""Probabilities of titles: they sum to 1, and titles with the same beginning are told apart."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.title_trie import answer_probabilities, steps_to_read

END = 9
TITLES = st.sets(st.lists(st.integers(0, 3), min_size=0, max_size=4).map(tuple), min_size=1, max_size=6)


def logits_of(answers: list[tuple[int, ...]], steps: int, seed: int) -> tuple[torch.Tensor, dict]:
    """Random logits that depend on what has been said alone, as a model's do; rows of the module's shape."""
    rng = np.random.default_rng(seed)
    by_prefix: dict[tuple[int, ...], np.ndarray] = {}
    rows = [
        [by_prefix.setdefault(answer[:step], rng.normal(size=END + 1) * 3) for step in range(steps)]
        for answer in answers
    ]
    return torch.tensor(np.array(rows).reshape(len(answers), steps, END + 1)), by_prefix


@given(TITLES, st.integers(0, 99))
def test_probabilities_are_those_of_a_walk_down_the_trie(titles: set[tuple[int, ...]], seed: int) -> None:
    answers = sorted((*title, END) for title in titles)
    logits, by_prefix = logits_of(answers, steps_to_read(answers), seed)
    found = answer_probabilities(logits, answers)
    assert abs(float(found.sum()) - 1) < 1e-6
    for answer, probability in zip(answers, found.tolist(), strict=True):
        expected = 1.0
        for step in range(len(answer)):
            choice = {other[step] for other in answers if len(other) > step and other[:step] == answer[:step]}
            if len(choice) > 1:
                own = by_prefix[answer[:step]]
                expected *= np.exp(own[answer[step]]) / sum(np.exp(own[token]) for token in choice)
        assert abs(probability - expected) < 1e-9


def test_titles_with_the_same_first_token_are_told_apart() -> None:
    """By the first token alone, as the released code has it, both would be equally odd."""
    answers = [(1, 2, END), (1, 3, END), (4, END)]
    logits = torch.zeros(3, steps_to_read(answers), END + 1)
    logits[0, 1, 2] = logits[1, 1, 2] = 4.0
    found = answer_probabilities(logits, answers)
    by_first_token = [float(logits[row, 0].log_softmax(dim=0)[answer[0]]) for row, answer in enumerate(answers)]
    assert by_first_token[0] == by_first_token[1]
    assert abs(float(found[0] / found[1]) - np.exp(4)) < 1e-6
    assert float(found[2]) == 0.5


def test_no_more_tokens_are_read_than_tell_titles_apart() -> None:
    assert steps_to_read([(1, 2, END), (3, 2, END)]) == 1
    assert steps_to_read([(1, 2, END), (1, END), (1, 2, 3, END)]) == 3
    assert steps_to_read([(1, 2, END)]) == 0
