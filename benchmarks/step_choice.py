"""What a choice among reasoning steps wins without labels: `python -m benchmarks.step_choice RUN… [--out PAGE]`.

RUN…: seeds of models that reason, and of their base for a control. An oracle picks the best of K + 1 answers for each
case; any several rankings that differ have such an oracle, so controls of the same number stand beside it:

    borrowed   the last answer, moved as the steps of another case with equally many events would move it
    disturbed  the last answer, moved as far in a random direction
    dropout    the last answer, computed with dropout on (two copies for a model that does not reason)

Rules (`benchmarks.step_rules`) are learned on one half of the validation users and judged on the other, and on test.
What is slow is kept in --work, a folder for each run and part: a command that was stopped goes on from there.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.step_figures import Measured, first_half, measured
from benchmarks.step_rules import (
    CUTOFF,
    AnswerFigures,
    Gate,
    Judged,
    best_threshold,
    chosen_gains,
    halted,
    judged,
)
from recsys.metrics import FloatArray, IntArray, ndcg_at_k
from recsys.runs import open_run
from recsys.splits import Part

CONTROLS = ("borrowed", "disturbed", "dropout")
HIDDEN = 16

Rule = Callable[[AnswerFigures, IntArray], IntArray]
"""Figures and history lengths [N] to the answer for each case."""


def main() -> None:
    """Measures what is missing, and prints or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs of `recsys train`")
    parser.add_argument("--work", type=Path, default=Path("build/step-choice"), help="where figures are kept")
    parser.add_argument("--out", type=Path, help="page to write (default: print it)")
    arguments = parser.parse_args()
    text = page([measured(open_run(folder), arguments.work) for folder in arguments.runs])
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


def page(runs: Sequence[Measured]) -> str:
    """A section for each model, its seeds pooled."""
    models = defaultdict(list)
    for entry in runs:
        models[entry.run.name.rsplit("-", 1)[0]].append(entry)
    day = datetime.now(UTC).date().isoformat()
    parts = [
        "# Choosing among reasoning steps",
        "Written by `python -m benchmarks.step_choice`; do not edit. NDCG@10 by full ranking of the cases with "
        "a history, seeds pooled; 95 % intervals over users, each resampled with its cases of all seeds. Rules and "
        "controls: `benchmarks/step_choice.py` and `benchmarks/step_rules.py`; what steps cost in time: "
        "[results.md](results.md); what follows from the figures: [decisions/reasoning.md](decisions/reasoning.md). "
        f"{day}.",
        *(section(name, sorted(seeds, key=lambda entry: entry.run.name)) for name, seeds in models.items()),
    ]
    return "\n\n".join(parts) + "\n"


def section(name: str, seeds: Sequence[Measured]) -> str:
    """Fixed numbers of steps, the oracle beside its controls, and the rules, where there is a choice."""
    numbers = ", ".join(str(entry.run.config["seed"]) for entry in seeds)
    settings, cases = seeds[0].run.config["model"], sum(len(entry.parts["test"]["users"]) for entry in seeds)
    reasons = len(seeds[0].figures("test").ranks) > 1
    return "\n".join([
        f"## {name}",
        "",
        f"Seeds {numbers}; {settings['num_items']} items; {cases} test cases in all.",
        *(f"`{name}: {value}`" for name, value in settings.get("reasoning", {}).items()),
        "",
        *([*fixed_table(seeds), ""] if reasons else []),
        *oracle_table(seeds),
        *(["", *rules_table(seeds)] if reasons else []),
    ])


def fixed_table(seeds: Sequence[Measured]) -> list[str]:
    """NDCG@10 after so many steps, the same for every case."""
    parts: tuple[Part, ...] = ("validation", "test")
    means = {part: np.mean([entry.figures(part).gains.mean(axis=1) for entry in seeds], axis=0) for part in parts}
    steps = range(len(means["test"]))
    return [
        "| fixed K | " + " | ".join(map(str, steps)) + " |",
        "|---|" + "---|" * len(steps),
        *(f"| {part} | " + " | ".join(f"{means[part][step]:.4f}" for step in steps) + " |" for part in parts),
    ]


def oracle_table(seeds: Sequence[Measured]) -> list[str]:
    """What the oracle gains over the last answer, with the model's steps and with the controls in their place; test."""
    users = [entry.parts["test"]["users"] for entry in seeds]
    ranks = {"steps": [entry.figures("test").ranks for entry in seeds]}
    known = [name for name in CONTROLS if name in seeds[0].others("test")]
    ranks |= {name: [entry.others("test")[name] for entry in seeds] for name in known}
    gains = {name: [ndcg_at_k(rank, CUTOFF) for rank in held] for name, held in ranks.items()}
    lines = [
        "| oracle picks among | each alone | oracle | over the last | steps' oracle less this one |",
        "|---|---|---|---|---|",
    ]
    steps = [gain.max(axis=0) for gain in gains["steps"]]
    for name, held in gains.items():
        if len(held[0]) == 1:
            continue
        alone = np.mean([gain.mean(axis=1) for gain in held], axis=0)
        best = [gain.max(axis=0) for gain in held]
        mean = float(np.mean([gain.mean() for gain in best]))
        less = interval(judged(best, steps, users)) if name != "steps" and len(gains["steps"][0]) > 1 else "-"
        figures = ", ".join(f"{value:.4f}" for value in alone)
        lines.append(f"| {name} | {figures} | {mean:.4f} | {mean / alone[-1] - 1:+.1%} | {less} |")
    return lines


def rules_table(seeds: Sequence[Measured]) -> list[str]:
    """Each rule beside the fixed step that was best on the learning cases."""
    held_out, test = rows_of(seeds, "validation"), rows_of(seeds, "test")
    return [
        "| rule | other half of validation | of the oracle's gain | test | of the oracle's gain | steps taken |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {interval(held_out[name][0])} | {held_out[name][1]:+.1%} | {interval(test[name][0])} | "
            f"{test[name][1]:+.1%} | {test[name][2]:.2f} |"
            for name in test
        ),
    ]


def rows_of(seeds: Sequence[Measured], part: Part) -> dict[str, tuple[Judged, float, float]]:
    """Of every rule: its difference from the fixed step, its share of the oracle's gain, and the steps it takes."""
    runs = [rule_gains(entry, part) for entry in seeds]
    users = [entry.parts[part]["users"][judging(entry, part)] for entry in seeds]
    fixed = [run["fixed"][0] for run in runs]
    ceiling = judged(fixed, [run["oracle"][0] for run in runs], users).difference
    rows = {}
    for name in runs[0].keys() - {"fixed", "oracle"}:
        result = judged(fixed, [run[name][0] for run in runs], users)
        taken = float(np.mean([run[name][1] for run in runs]))
        rows[name] = (result, result.difference / ceiling if ceiling else 0.0, taken)
    return {name: rows[name] for name in runs[0] if name in rows}


def rule_gains(entry: Measured, part: Part) -> dict[str, tuple[FloatArray, float]]:
    """NDCG@10 [N] of the judged cases by every rule, by the fixed step and by the oracle, and the mean steps taken."""
    learning = np.flatnonzero(first_half(entry.parts["validation"]["users"]))
    known = entry.figures("validation").cases(learning)
    chosen = judging(entry, part)
    figures, lengths = entry.figures(part).cases(chosen), entry.parts[part]["lengths"][chosen]
    gains, last = figures.gains, len(figures.ranks) - 1
    weighted = ndcg_at_k(entry.others(part)["weighted"][0], CUTOFF)[chosen]
    found = {
        "fixed": (gains[int(known.gains.mean(axis=1).argmax())], float(last)),
        "oracle": (gains.max(axis=0), float(last)),
        "one weight a step": (weighted, float(last)),
    }
    for name, rule in rules(known, entry.parts["validation"]["lengths"][learning]).items():
        steps = rule(figures, lengths)
        found[name] = (chosen_gains(gains, steps), float(steps.mean()) if name == "halting" else float(last))
    return found


def judging(entry: Measured, part: Part) -> IntArray:
    """The cases that no rule has learned from."""
    users = entry.parts[part]["users"]
    return np.arange(len(users)) if part == "test" else np.flatnonzero(~first_half(users))


def rules(known: AnswerFigures, lengths: IntArray) -> dict[str, Rule]:
    """By name; learned where there is something to learn."""
    threshold = best_threshold(known.shared(), known.gains)
    features = known.features(lengths)
    linear, deep = (Gate(features, known.gains, hidden) for hidden in (0, HIDDEN))
    return {
        "lowest entropy": lambda figures, _: figures.entropy.argmin(axis=0),
        "highest probability": lambda figures, _: figures.probability.argmax(axis=0),
        "largest margin": lambda figures, _: figures.margin.argmax(axis=0),
        "halting": lambda figures, _: halted(figures.shared(), threshold),
        "linear gate": lambda figures, events: linear.choose(figures.features(events)),
        f"gate, {HIDDEN} hidden": lambda figures, events: deep.choose(figures.features(events)),
    }


def interval(result: Judged) -> str:
    """The difference with its interval."""
    return f"{result.difference:+.5f} ({result.low:+.5f} to {result.high:+.5f})"


if __name__ == "__main__":
    main()
