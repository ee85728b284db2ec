"""A language model trained from Python."""

# --8<-- [start:train]
from pathlib import Path

from resval_lens.models.language_models import language_model_config
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_data import prepare
from resval_lens.training.lm_run import LMRun

data = prepare("stories", Path("runs/text/stories"))
config = language_model_config("stories-small", "v", carry="raw")
settings = {"steps": 500, "lr": 3e-3, "warmup": 100}
run = LMRun("mine", config.to_json(), "generated stories", **settings)
rows, valid = data.rows("packed", config.n_ctx)
model = train_lm(run, rows, Path("runs/mine"), tokenizer_json=data.tokenizer.to_str())
# --8<-- [end:train]
