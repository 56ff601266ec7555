"""What a better model must not pay with."""

import math

import pytest

from pipelines.guardrails import GUARDRAILS, Check, Guardrail, checked, with_standard
from recsys.errors import ConfigError


@pytest.mark.parametrize(
    ("allowed", "value", "holds"),
    [(-0.2, 0.8, True), (-0.2, 0.79, False), (-0.2, 5.0, True), (0.1, 1.1, True), (0.1, 1.11, False), (0.1, 0.0, True)],
)
def test_a_figure_may_fall_or_rise_so_far(allowed: float, value: float, holds: bool) -> None:
    assert Check("coverage@10", allowed, 1.0, value).holds is holds


def test_what_is_said_of_a_broken_one() -> None:
    assert Check("coverage@10", -0.2, 0.5, 0.25).sentence() == (
        "coverage@10 is 0.25 against 0.5 (-50.0%; it may fall by 20%)"
    )
    assert Check("popularity_bias@10", 0.1, 0.0, 0.25).sentence().endswith("against 0 (from 0; it may rise by 10%)")
    assert math.isinf(Check("x", 0.1, 0.0, 0.25).change)


def test_own_guardrails_stand_in_for_the_standard_ones() -> None:
    own = Guardrail.parse("coverage@10=-0.5")
    assert own == Guardrail("coverage@10", -0.5)
    assert with_standard([own]) == (*GUARDRAILS[1:], own)
    assert Guardrail.parse("item: warm/ndcg@10=-0.1").figure == "item: warm/ndcg@10"


@pytest.mark.parametrize("text", ["coverage@10", "=-0.1", "coverage@10=much", "coverage@10=nan"])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not FIGURE=CHANGE such as coverage@10=-0\.2"):
        Guardrail.parse(text)


def test_a_figure_that_is_not_there() -> None:
    values = {"coverage@10": 0.5, "item: warm/ndcg@10": 0.1}
    assert [check.figure for check in checked(GUARDRAILS, values, values)] == ["coverage@10"]
    with pytest.raises(ConfigError, match=r"--guard speed: the evaluations have no such figure; they have coverage@10"):
        checked((Guardrail("speed", -0.1),), values, values)
