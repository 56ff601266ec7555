"""One search space per model for `recsys sweep`; see docs/sweeps.md."""
