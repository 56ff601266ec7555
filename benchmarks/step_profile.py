"""Where the time of a training step goes: `python -m benchmarks.step_profile`; prints tables for docs/speed.md.

SASRec (width 64, two blocks, two heads, full softmax) on MovieLens-1M, window 200, batches of 128 windows as an epoch
brings them; torch's profiler, its operators gathered into kinds of work.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from models.sasrec import SASRec, SASRecConfig
from recsys.batches import TrainingWindows
from recsys.memory import keep_freed_memory
from recsys.prepared import open_prepared
from recsys.training import Trainer, TrainingConfig

WARM_UP, STEPS = 3, 8
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention (torch's kernel)": ("aten::_scaled_dot_product",),
    "exponentials": ("aten::exp", "aten::logsumexp"),
    "sums, maxima": ("aten::sum", "aten::amax"),
    "random numbers": ("aten::bernoulli", "aten::native_dropout", "aten::random"),
    "copies and conversions": ("aten::copy", "aten::cat", "aten::index", "aten::gather", "aten::fill", "aten::zero"),
    "norms": ("aten::native_layer_norm",),
    "optimiser": ("aten::_fused_adamw", "aten::linalg_vector_norm", "Optimizer"),
}


def main() -> None:
    """One table a precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="MovieLens-1M as `recsys prepare` wrote it")
    arguments = parser.parse_args()
    keep_freed_memory()
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(arguments.prepared, precision)
        seconds, shares = time_steps(trainer), profile_steps(trainer)
        print(f"\n{precision}: {1000 * seconds:.0f} ms a step, {seconds * trainer.batches_per_epoch:.1f} s an epoch\n")
        print("\n".join(f"| {kind} | {100 * share:.0f} % |" for kind, share in shares.most_common()))


def make_trainer(folder: Path, precision: str) -> Trainer:
    """A trainer before its first step."""
    prepared = open_prepared(folder)
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(num_items=prepared.catalog.num_items))
    windows = TrainingWindows.cut(prepared.split.train_stop, model.window)
    config = TrainingConfig(epochs=2, precision=precision, device="cpu", checkpoint_seconds=1e9)  # type: ignore[arg-type]
    return Trainer(model, prepared.store, windows, config, seed=0, folder=Path(tempfile.mkdtemp()))


def run_steps(trainer: Trainer, count: int) -> None:
    """The first `count` steps of an epoch."""
    batches = trainer.windows.epoch(trainer.config.batch_size, np.random.default_rng(0))
    for number, chosen in zip(range(count), batches, strict=False):
        trainer.step(chosen, number)


def time_steps(trainer: Trainer) -> float:
    """Seconds a step, after some to warm up."""
    run_steps(trainer, WARM_UP)
    began = time.perf_counter()
    run_steps(trainer, STEPS)
    return (time.perf_counter() - began) / STEPS


def profile_steps(trainer: Trainer) -> Counter[str]:
    """Share of each kind of work in the time of all operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run_steps(trainer, STEPS)
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    total = spent.total()
    return Counter({kind: microseconds / total for kind, microseconds in spent.items()})


def kind_of(operator: str) -> str:
    """Which of `KINDS` an operator belongs to."""
    for kind, names in KINDS.items():
        if operator.startswith(names):
            return kind
    return "other elementwise work" if operator.startswith("aten::") else "Python and autograd"


if __name__ == "__main__":
    main()
