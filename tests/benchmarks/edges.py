"""Edge scores against the published way, a dense table of writers, on the same prompts."""

import torch
from torch import Tensor

from resval_lens import ResValConfig, ResValTransformer
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks.prompts import logit_difference
from resval_lens.host import HookedTransformer, HookedTransformerConfig
from tests.benchmarks.patching import ioi_pairs
from tests.benchmarks.timing import Seconds, timed
from tests.reference.eap import DenseTable


def peers(rounds: int = 5, prompts: int = 64, steps: int = 5) -> Seconds:
    """Seconds of the published way and ours: EAP-IG of a classic model."""
    model = ResValTransformer.from_pretrained("stories-small-classic")
    pairs = ioi_pairs(prompts)
    table = DenseTable(as_stock(model))

    def metric(logits: Tensor) -> Tensor:
        return logit_difference(logits[:, -1], pairs.labels).sum()

    def theirs() -> None:
        table.scores(pairs.clean, pairs.corrupted, metric, steps)

    def ours() -> None:
        score_edges(model, pairs, "eap-ig", steps=steps)

    return timed({"theirs": theirs, "ours": ours}, rounds)


def stock_config(cfg: ResValConfig) -> HookedTransformerConfig:
    """What TransformerLens's own class knows of a configuration."""
    names = HookedTransformerConfig.__dataclass_fields__
    settings = {k: v for k, v in cfg.to_dict().items() if k in names and k != "seed"}
    return HookedTransformerConfig(**{**settings, "tokenizer_name": None})


def as_stock(model: ResValTransformer) -> HookedTransformer:
    """A classic model's weights in TransformerLens's own class."""
    stock = HookedTransformer(stock_config(model.cfg))
    state = {k: v for k, v in model.state_dict().items() if "mixes" not in k}
    state["unembed.W_U"] = model.unembed.W_U.detach().clone()
    state["unembed.b_U"] = torch.zeros(model.cfg.d_vocab)
    stock.load_state_dict(state, strict=False)
    return stock
