"""Histories to vectors by ONNX Runtime: the one place that knows it."""

from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime

from recsys.errors import BundleError
from recsys.index import FloatArray
from recsys.sequences import IntArray

INPUTS = {"items", "lengths"}


class Encoder:
    """A bundle's graph; `encode` may be called from many threads, and computes in the caller's thread alone.

    `most_steps` is how far its model reasons, 0 for one that does not.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own classes share no other base
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path}: ONNX Runtime cannot load it ({reason}); export the run again.") from None
        outputs = {entry.name: entry.shape for entry in self._session.get_outputs()}
        self.most_steps: int = outputs["answers"][0] - 1 if "answers" in outputs else 0
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        if unknown := sorted(set(self._inputs) - INPUTS):
            raise BundleError(
                f"{path}: asks for {', '.join(unknown)}, and this version feeds items and lengths only; "
                "serve the bundle with the recsys version that exported it."
            )

    def encode(self, items: IntArray, lengths: np.ndarray, steps: int | None = None) -> FloatArray:
        """Vectors [B, D] of right-padded histories `items` [B, L] with `lengths` [B] >= 1.

        A model that reasons answers after all its steps, or after the given number of them.
        """
        given = {"items": items, "lengths": lengths.astype(np.int32)}
        inputs = {name: given[name] for name in self._inputs}
        if steps is None or not self.most_steps:
            return cast("FloatArray", self._session.run(["vectors"], inputs)[0])
        return cast("FloatArray", self._session.run(["answers"], inputs)[0][steps])

    def encode_one(self, rows: IntArray, steps: int | None = None) -> FloatArray:
        """Vector [1, D] of one history of item rows."""
        return self.encode(rows[None], np.array([len(rows)]), steps)
