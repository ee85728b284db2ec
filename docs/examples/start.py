# ruff: noqa: E402  # sections of pages import what they need
"""Start in five minutes: a model, its link, the link cut."""

# --8<-- [start:model]
from pathlib import Path

from resval_lens.analyses.comparison.icl import accuracies
from resval_lens.hooks import cut_links, links
from resval_lens.training import draw_world
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import SHIPPED, load_run

recorded = load_run(SHIPPED / "icl" / "values-seed0", ICLRun)  # ships with the package
model = recorded.model()  # a HookedTransformer with a value stream
world, tests = draw_world(recorded.run)  # vectors and test sequences of its training
print(model.cfg.n_layers, "layers; links:", *links(model))
# --8<-- [end:model]

# --8<-- [start:cut]
print("as trained:", accuracies(model, tests)["ic"])
with cut_links(model):  # nothing arrives in layer 1; restored afterwards
    print("link cut:  ", accuracies(model, tests)["ic"])
# --8<-- [end:cut]

# --8<-- [start:look]
import torch

logits, cache = model.run_with_cache(tests["ic"].inputs[:1])
own, arriving, total = (cache[name, 1] for name in ("v_local", "v_link", "v"))
assert torch.equal(total, own + arriving)
assert torch.equal(arriving, cache["v", 0])  # layer 0's values, head by head
print("norms at the query:", own[0, -1].norm().item(), arriving[0, -1].norm().item())
# --8<-- [end:look]

# --8<-- [start:see]
from resval_lens.analyses.display import show_attention

tokens = [*(f"{kind}{i}" for i in range(8) for kind in ("object ", "label ")), "query"]
page = show_attention(cache["pattern", 1][0], tokens)  # in a notebook: just `page`
page.save(Path("attention.html"))
# --8<-- [end:see]

# --8<-- [start:train]
from resval_lens.training import ICLRun, train_icl

run = ICLRun("mine", streams="v", seed=0, steps=2_000)
mine = train_icl(run, Path("runs/mine"))
# --8<-- [end:train]

# --8<-- [start:other]
from resval_lens import ResValConfig, ResValTransformer

config = ResValConfig(
    n_layers=4, d_model=64, n_heads=4, d_head=16, d_vocab=100, n_ctx=32,
    act_fn="gelu", streams="v",
)  # fmt: skip
transformer = ResValTransformer(config)
loss = transformer(torch.randint(100, (2, 32)), return_type="loss")
without = transformer.with_streams("")  # the same weights, run without
# --8<-- [end:other]
