"""What models compute, against what they computed under TransformerLens 3.9; models saved there."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from resval_lens import ResValConfig, ResValTransformer
from tests.helpers import tiny_tokens
from tests.oracle import MODELS, SHIPPED, computed, differences, kept, made, main, read

SAVED = SHIPPED.parent / "tables"
"""``made("tables").save_pretrained``, under TransformerLens 3.9."""
ROUNDING = 1e-5
"""On one machine 0 between versions and 4e-7 with more threads; others have other kernels."""


@pytest.fixture(scope="module")
def shipped() -> dict[str, torch.Tensor]:
    return read(SHIPPED)[0]


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_what_they_did(name: str, shipped: dict[str, torch.Tensor]) -> None:
    found = {f"{name}/{at}": x for at, x in computed(made(name)).items()}
    wanted = {at: x for at, x in shipped.items() if at.startswith(f"{name}/")}
    apart = differences(wanted, found)
    kinds = {"logits", "activations", "gradients", "generated", "cached logits", "patching",
             "edges", "processed"}  # fmt: skip
    assert set(apart) == kinds | ({"cut links"} if name != "plain" else set())
    assert not {kind: x for kind, x in apart.items() if not x <= ROUNDING}


def test_the_numbers_are_of_the_older_version() -> None:
    assert read(SHIPPED)[1]["transformer-lens"].startswith("3.9.")


def test_a_model_saved_there_is_loaded(shipped: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = ResValTransformer.from_pretrained(SAVED)
    assert model.cfg == made("tables").cfg
    with torch.no_grad():
        logits = model(tiny_tokens(2, 7))
    torch.testing.assert_close(kept(logits), shipped["tables/logits"], atol=ROUNDING, rtol=0)
    model.save_pretrained(tmp_path / "again")
    one, other = (folder / "model.safetensors" for folder in (SAVED, tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()
    one, other = (
        json.loads((folder / "config.json").read_text())["config"]
        for folder in (SAVED, tmp_path / "again")
    )
    assert one == other


def test_every_version_has_the_same_settings() -> None:
    """What one has and the other has not, the other would refuse to load."""
    saved = json.loads((SAVED / "config.json").read_text())["config"]
    assert {each.name for each in fields(ResValConfig) if each.init} == set(saved)


# How it is compared


def test_a_difference_is_seen_by_its_kind() -> None:
    one = {"plain/logits": torch.tensor([1.0, 8.0]), "plain/edges/eap": torch.tensor([0.5])}
    other = {"plain/logits": torch.tensor([1.0, 8.8]), "plain/edges/eap": torch.tensor([0.25])}
    assert differences(one, one) == {"logits": 0.0, "edges": 0.0}
    assert differences(one, other) == pytest.approx({"logits": 0.1, "edges": 0.25})
    lacking = {"plain/logits": torch.tensor([1.0])}
    assert differences(one, lacking) == {"logits": float("inf"), "edges": float("inf")}
    nothing = {"plain/logits": torch.tensor([1.0, float("nan")])}
    assert differences(nothing, nothing) == {"logits": float("inf")}


def test_entries_that_are_kept_lie_all_over_the_tensor() -> None:
    x = torch.arange(1000.0).view(10, 100)
    found = kept(x)
    assert len(found.unique()) == 64
    assert found.equal(kept(x.clone()))
    assert found.min() < 100 < 900 < found.max()
    assert kept(x[0, :9]).equal(x[0, :9])


def test_two_files_are_compared_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--compare", str(SHIPPED), str(SHIPPED)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.split()[-1] == "0" for line in lines[1:])
    with pytest.raises(SystemExit, match=r"python -m tests.oracle --compare A B"):
        main(["--compare", str(SHIPPED)])
