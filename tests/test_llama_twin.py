"""A small twin of llama-1b through training, saving, evaluation: same shapes of family, streams."""

from pathlib import Path

import pytest
import torch

from resval_lens import ResValTransformer
from resval_lens.analyses.comparison.ioi_cells import four_cells
from resval_lens.analyses.studies.harness import HarnessLM
from resval_lens.analyses.studies.ioi import ioi_scores
from resval_lens.lens.generation import stream_tokens
from resval_lens.models.language_models import language_model_config, preset
from resval_lens.tasks import stories
from resval_lens.tasks.ioi import encode
from resval_lens.tasks.text import PackedRows, write_token_files
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_run import LMRun
from resval_lens.training.run_folder import read_metrics
from tests.test_harness import requests

TWIN = {"n_layers": 3, "d_model": 64, "n_heads": 8, "d_head": 8, "n_key_value_heads": 2,
        "d_mlp": 128, "n_ctx": 64, "d_vocab": 2048, "rotary_dim": 8}  # fmt: skip


def run_of(streams: str) -> LMRun:
    """As the preset trains (bf16, cosine with cool-down, recomputed blocks), only shorter."""
    training = preset("llama-1b").training | {
        "steps": 40, "batch": 8, "warmup": 4, "cooldown": 8, "lr": 3e-3, "snapshot_every": 16,
    }  # fmt: skip
    config = language_model_config("llama-1b", streams, carry="raw", **TWIN)
    return LMRun(f"twin-{streams or 'classic'}", config.to_json(), "stories", **training)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    texts = [text for _, text in zip(range(400), stories.stories(seed=0), strict=False)]
    words = stories.load_tokenizer()
    rows = PackedRows(write_token_files(texts, words, folder / "tokens"), TWIN["n_ctx"])
    found = {}
    for streams in ("", "v"):
        run = run_of(streams)
        asked = iter(range(100))
        stopped = train_lm(
            run, rows, folder / run.name, should_stop=lambda asked=asked: next(asked) == 20
        )
        assert stopped is None
        train_lm(run, rows, folder / run.name, tokenizer_json=words.to_str())
        assert read_metrics(folder / run.name)[-1]["train_loss"] < 6.8  # log(2048) = 7.62
        found[streams] = folder / run.name / "model"
    return found


@pytest.mark.parametrize("streams", ["", "v"])
def test_a_twin_is_evaluated_as_any_model(trained: dict[str, Path], streams: str) -> None:
    model = ResValTransformer.from_pretrained(trained[streams])
    assert model.cfg.dtype == torch.float32  # weights stay in 32 bits
    frozen = [x for name, x in model.named_parameters() if ".b_" in name or "._b_" in name]
    assert frozen
    assert not any(x.any() or x.requires_grad for x in frozen)  # the family has no biases
    batch = encode(stories.ioi_prompts(20, 0, "seen", "seen", "seen"), model.tokenizer, 0)
    scores = ioi_scores(model, batch)
    assert 0 < scores.p_io < 1
    ((total, _),) = HarnessLM(model, quiet=True).loglikelihood(
        requests("loglikelihood", ("Once upon a time", " there were"))
    )
    assert -40 < total < 0
    tokens = torch.tensor([[0, 5, 9]])
    for new in stream_tokens(model, tokens, 5, temperature=0):
        assert torch.equal(new, model(tokens, padding_side="right")[:, -1].argmax(-1))
        tokens = torch.cat((tokens, new[:, None]), 1)


def test_twins_have_four_cells(trained: dict[str, Path]) -> None:
    models = [ResValTransformer.from_pretrained(trained[streams]) for streams in ("", "v")]
    batch = encode(
        stories.ioi_prompts(20, 0, "seen", "seen", "seen"), stories.load_tokenizer(), 0
    )  # fmt: skip
    cells = four_cells(*models, batch).cells
    assert len({scores.logit_difference for scores in cells.by_way().values()}) == 4
