"""Models saved by the public code of arXiv 2412.15113."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from resval_lens.io.files import MOST_BYTES, check_plain
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.streams import StreamsLike
from resval_lens.tasks.icl import ICLTask

ARRAYS = ("q1", "k1", "v1", "q2", "k2", "v2", "w1", "b1", "w2", "b2", "w3", "b3", "readout")


def load_authors_classifier(path: str | Path, streams: StreamsLike = "") -> ICLClassifier:
    """A two-layer classifier from the authors' ``np.savez`` file of 13 unnamed arrays.

    ``arr_0`` to ``arr_12`` are q1, k1, v1, q2, k2, v2 (attention, [d, d]), w1, b1, w2, b2, w3, b3
    (ReLU layers, [d, d] and one scalar bias each) and the readout [labels, d]; matrices act as
    ``x @ W.T``. The file does not say which stream it was trained with: ``streams`` does.

    Raises:
        ValueError: not such a file, or arrays of other shapes, by name. Pickled content is not
            loaded.
    """
    path = Path(path)
    expected = f"{path}: expected an .npz file with arr_0 to arr_{len(ARRAYS) - 1}"
    check_plain(path, "the authors' saved parameters")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            # Parts of a zip may unfold to any size; their headers may claim more than they hold.
            if sum(part.file_size for part in saved.zip.infolist()) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes")
            arrays = {name: np.asarray(saved[f"arr_{i}"]) for i, name in enumerate(ARRAYS)}
            count = len(saved.files)
    except Exception as error:  # damage has many names here
        raise ValueError(f"{expected} ({error})") from None
    if count != len(ARRAYS):
        raise ValueError(f"{expected}; it holds {count} arrays")
    readout = arrays["readout"]
    labels, d = readout.shape if readout.ndim == 2 else (0, 0)
    positions, least = ICLTask().n_positions, ICLTask().n_distinct
    if labels < least or d <= positions:
        raise ValueError(
            f"{path}: readout (arr_12) must have shape [labels ≥ {least}, d > {positions}]; "
            f"got {list(readout.shape)}"
        )
    for i, (name, array) in enumerate(arrays.items()):
        wanted = [labels, d] if name == "readout" else [d, d]
        if name.startswith("b"):
            array, wanted = array.reshape(-1), [1]
        if list(array.shape) != wanted or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{path}: {name} (arr_{i}) must hold floats of shape {wanted}; "
                f"got {array.dtype} {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} (arr_{i}) holds NaN or infinite numbers")
    task = ICLTask(n_labels=labels, n_classes=16 * labels, n_fresh=4 * labels,
                   content=d - positions)  # fmt: skip
    model = ICLClassifier(classifier_config(streams, "reference", task))
    with torch.no_grad():
        for layer, block in enumerate(model.blocks, 1):
            for name in "qkv":
                weight = torch.from_numpy(arrays[f"{name}{layer}"]).float()
                getattr(block.attn, f"W_{name.upper()}")[0] = weight.T
        for i, relu in enumerate(model.readout.layers, 1):
            relu.W.copy_(torch.from_numpy(arrays[f"w{i}"]).float().T)
            relu.b.copy_(torch.from_numpy(arrays[f"b{i}"].reshape(1)).float())
        model.readout.W_U.copy_(torch.from_numpy(readout).float().T)
    return model
