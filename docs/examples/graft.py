# ruff: noqa: E402  # sections of pages import what they need
"""A graft on a model, trained from Python."""

# --8<-- [start:train]
from pathlib import Path

from resval_lens.load import load_model
from resval_lens.training.graft import train_graft
from resval_lens.training.graft_run import GraftRun, weights_sha256
from resval_lens.training.lm_data import prepare

base = load_model("stories-small-classic").model
data = prepare(
    "stories", Path("runs/text/graft"), base.tokenizer.backend_tokenizer, n_stories=2_000
)
rows, held_out = data.rows("packed", 128)
known = {"weights": weights_sha256(base), "data": "2,000 stories", "held_out_data": "200 stories"}
run = GraftRun(
    "link", "stories-small-classic", **known, streams="v(mix=head, carried=0)",
    steps=40, length=128, held_out=16,
)  # fmt: skip
model = train_graft(run, base, rows, held_out, Path("runs/link"))
# --8<-- [end:train]

# --8<-- [start:read]
from resval_lens.training.graft import grafted
from resval_lens.training.recorded import load_run

recorded = load_run(Path("runs/link"), GraftRun)
before, after = (line["held_out_losses"] for line in recorded.evaluations)
print(recorded.metrics[-1]["learned"]["blocks.1.attn.mixes.v.carried"])
model = grafted(recorded, base)  # base with what was learned
# --8<-- [end:read]
print(f"{sum(before) / 16:.4f} {sum(after) / 16:.4f}")
