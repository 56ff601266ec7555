"""Times as rows of a table: logarithmic buckets of seconds; timestamps are microseconds."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Int
from torch import Tensor

MICROSECONDS = 1_000_000


def interval_buckets(timestamps: Int[Tensor, "B L"], num_buckets: int) -> Int[Tensor, "B L"]:
    """Bucket of the time since the event before: 1 + log2(1 + seconds), rounded down, at most the last bucket.

    Bucket 0 is an unknown time: that of a window's first event, which would change with the window.
    """
    seconds = torch.diff(timestamps).clamp(min=0) // MICROSECONDS
    return F.pad(log_buckets(seconds, num_buckets), (1, 0))


def log_buckets(seconds: Int[Tensor, "*N"], num_buckets: int) -> Int[Tensor, "*N"]:
    """1 + log2(1 + seconds), rounded down, at most `num_buckets` - 1."""
    return (1 + torch.log2(1 + seconds.double()).long()).clamp(max=num_buckets - 1)
