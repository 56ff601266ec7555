"""ONNX graphs opened for serving."""

from pathlib import Path
from typing import TYPE_CHECKING

from recsys.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime


def graph_session(path: Path) -> "onnxruntime.InferenceSession":
    """A graph that computes in the caller's thread alone; a `BundleError` where it cannot be loaded."""
    import onnxruntime  # no part of the core install, with which bundles without a ranker are opened

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes share no other base
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: ONNX Runtime cannot load it ({reason}); export the run again.") from None
