"""``compare --lm-runs`` of models that were trained on other text than generated stories."""

import shutil
from pathlib import Path

from resval_lens.analyses.comparison.circuit_compare import (
    check_models,
    compared_models,
    ioi_circuits,
)
from resval_lens.analyses.comparison.lm_compare import compare_language_models
from resval_lens.analyses.studies.ioi import ioi_scores
from resval_lens.analyses.tasks.pairs import draw_ioi
from resval_lens.tasks.ioi import encode
from resval_lens.tasks.leading import leading_token
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import SHIPPED, load_run, write_record


def test_they_are_given_general_prompts(tmp_path: Path) -> None:
    """The shipped runs, as if their text were another: no prompts of stories were evaluated."""
    for name in ("stories-small-classic-seed0", "stories-small-v-raw-seed0"):
        shipped = load_run(SHIPPED / "lm" / name, LMRun)
        lines = [
            {**line, "ioi": {"paper": line["ioi"]["paper"]}} if "ioi" in line else line
            for line in shipped.metrics
        ]
        write_record(tmp_path / name, shipped.run.to_dict(), shipped.starts, lines)
        shutil.copytree(shipped.folder / "model", tmp_path / name / "model")
    models = compared_models(tmp_path)
    assert [each.general for each in models] == [True, True]
    model = models[1].model
    drawn = models[1].prompts(24, 3)
    assert drawn == draw_ioi(model.tokenizer, 24, 3, "general").prompts
    assert drawn != compared_models()[1].prompts(24, 3)
    check_models(models, 24, 3)
    found = compare_language_models(models, 24, 3)
    scores = ioi_scores(model, encode(drawn, model.tokenizer, leading_token(model)))
    assert found.scores[models[1].name].scores == scores
    assert found.links[models[1].name].study.story_loss is None
    circuit = ioi_circuits(models[1:], 24, 3)[0].study.circuit
    assert circuit.faithfulness is not None
    assert circuit.faithfulness >= 0.85


def test_shipped_models_are_given_stories() -> None:
    drawn = ioi_prompts(6, 3, "unseen", "unseen", "unseen")
    assert compared_models()[1].prompts(6, 3) == drawn
