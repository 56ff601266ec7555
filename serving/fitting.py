"""Whether the parts of a bundle, each unaltered, belong together."""

import numpy as np

from recsys.bundle import Bundle
from recsys.errors import BundleError
from serving.encoder import Encoder


def check_fit(bundle: Bundle, encoder: Encoder) -> None:
    """A `BundleError` where they do not; the encoder answers a first history."""
    vector = encoder.encode(np.array([1])).vector()
    num_items = bundle.catalog.num_items
    complaints = {
        f"index.faiss holds {bundle.index.num_items} items": bundle.index.num_items != num_items,
        "approximate.faiss holds other items than index.faiss": bundle.index.approximate is not None
        and (bundle.index.approximate.ntotal, bundle.index.approximate.d) != (num_items, bundle.index.width),
        f"items.parquet has {len(bundle.items)} rows": len(bundle.items) != num_items,
        "items.parquet is not in catalogue order": not bundle.items["item_id"].equals(bundle.catalog.item_ids),
        f"no_history.npy has shape {bundle.no_history.shape}": bundle.no_history.shape != (num_items + 1,),
        f"encoder.onnx gives vectors of shape {vector.shape}": vector.shape != (1, bundle.index.width),
        "step.onnx does not go on from encoder.onnx": encoder.goes_on and not encoder.steps_agree(),
        "sentences.npz has other rows than the catalogue": bundle.sentences is not None
        and len(bundle.sentences.ids) != num_items + 1,
        "features.npy has other rows than the catalogue": bundle.features is not None
        and len(bundle.features) != num_items + 1,
        "ranker.npz has other rows than the catalogue": bundle.ranker is not None
        and bundle.ranker.num_rows != num_items + 1,
        "encoder.onnx gives vectors that are not finite": not np.isfinite(vector).all(),
    }
    if found := [complaint for complaint, holds in complaints.items() if holds]:
        raise BundleError(
            f"{bundle.folder}: {', '.join(found)}, with {num_items} items of width {bundle.index.width} expected; "
            "export the run again."
        )
