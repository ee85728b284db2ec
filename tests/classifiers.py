"""Two-layer classifiers for tests, their input, and files as the authors saved them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.streams import AttentionStream
from resval_lens.tasks.icl import ICLTask, ICLWorld
from tests.mixes import UNGATED, stream_of
from tests.reference.classifier_numpy import random_params

MIXES = {
    "": "",
    "q": "q",
    "k": "k",
    "v": "v",
    "qk": "qk",
    "qv": "qv",
    "qkv": "qkv",
    "detached": (AttentionStream("q", detach=True), AttentionStream("v", detach=True)),
    "detached k": AttentionStream("k", detach=True, mix="scalar"),
    "half": AttentionStream("v", mix="pair", own=0.5, carried=0.25),
    "tripled": tuple(AttentionStream(s, carried=3.0) for s in "qkv"),
    **{mix: tuple(stream_of(mix, s) for s in "qkv") for mix in UNGATED},
    "first": AttentionStream("v", source="first", carry="raw"),
    "all": AttentionStream("k", source="all", mix="scalar"),
}


def tokens(batch: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ICLWorld(ICLTask(), generator).batch(batch, generator).inputs


def model_of(streams: Any = "", spec: Any = "reference", seed: int = 0) -> ICLClassifier:
    """A classifier whose mixing weights, too, are no round numbers."""
    generator = torch.Generator().manual_seed(seed)
    model = ICLClassifier(classifier_config(streams, spec), generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mixes." in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def in_double(model: ICLClassifier) -> ICLClassifier:
    return model.to(torch.float64, print_details=False)


def arrays(seed: int = 0, **sizes: int) -> list[np.ndarray]:
    """13 arrays of the authors' file, in numbers that float32 has, too."""
    params = random_params(np.random.default_rng(seed), **sizes)
    return [param.astype(np.float32) for param in params]


def save_arrays(folder: Path, params: list[np.ndarray]) -> Path:
    path = folder / "trained.npz"
    np.savez(path, *params)
    return path


def plain(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def weights_of(model: ICLClassifier) -> dict[str, Tensor]:
    return dict(model.named_parameters())
