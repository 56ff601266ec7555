"""What a computation allocates: its largest tensor and its peak, counted and not timed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701 - torch has no other name for it


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest_tensor(work: Callable[[], object]) -> int:
    """Elements of the largest tensor made within `work`."""
    with LargestTensor() as largest:
        work()
    return largest.elements


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that tensors made within `work` held at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    held = peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
