"""Histories to vectors by ONNX Runtime: the one place that knows it."""

from pathlib import Path

import numpy as np
import onnxruntime

from recsys.errors import BundleError
from recsys.index import FloatArray
from recsys.sequences import IntArray

INPUTS = {"items", "lengths"}


class Encoder:
    """A bundle's graph; `encode` may be called from many threads, and computes in the caller's thread alone."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own classes share no other base
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path}: ONNX Runtime cannot load it ({reason}); export the run again.") from None
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        if unknown := sorted(set(self._inputs) - INPUTS):
            raise BundleError(
                f"{path}: asks for {', '.join(unknown)}, and this version feeds items and lengths only; "
                "serve the bundle with the recsys version that exported it."
            )

    def encode(self, items: IntArray, lengths: np.ndarray) -> FloatArray:
        """Vectors [B, D] of right-padded histories `items` [B, L] with `lengths` [B] >= 1."""
        given = {"items": items, "lengths": lengths.astype(np.int32)}
        vectors: FloatArray = self._session.run(["vectors"], {name: given[name] for name in self._inputs})[0]
        return vectors

    def encode_one(self, rows: IntArray) -> FloatArray:
        """Vector [1, D] of one history of item rows."""
        return self.encode(rows[None], np.array([len(rows)]))
