"""What a circuit will cost: runs beside the study's own, memory beside what the kernel saw."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from resval_lens.analyses.circuits import cost, running
from resval_lens.analyses.circuits.cost import CircuitCost, Speed, circuit_cost, duration
from resval_lens.analyses.circuits.eap import numbers_per_token
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.search import most_runs
from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.load import load_config, load_model
from resval_lens.models.language_models import language_model_config
from tests.helpers import tiny_config, tiny_model
from tests.test_circuit_runs import tiny_pairs
from tests.test_lm_cli import run

SPEED = Speed(scoring=0.2, step=0.1, run=0.08, dots=1e9, sums=5e8)


def test_seconds_are_led_from_two_layers_to_all_and_from_edges_to_their_number() -> None:
    cfg = tiny_config(n_layers=6)
    found = circuit_cost(cfg, prompts=5, length=7, steps=3, max_tokens=14, speed=SPEED)
    assert found.at_once == (2, 2)
    calls, edges = 3, len(Graph(cfg))
    work, logits = 2 * edges * 16 * 7, 2 * 16 * cfg.d_vocab / 1e9
    scoring = calls * 3 * (0.2 + 2 * 0.1) + 5 * (3 * work / 1e9 + 8 * logits)
    once = calls * 3 * 0.08 + 5 * (work / 5e8 + logits)
    by_name = {step.what.split(" (")[0]: step for step in found.steps}
    assert by_name["scoring edges by eap-ig"].seconds == pytest.approx(scoring)
    assert by_name["circuits by size"].seconds == pytest.approx(10 * once)
    assert by_name["minimality"].seconds == pytest.approx(128 * once)
    assert found.seconds == pytest.approx(sum(step.seconds for step in found.steps))


def test_a_study_takes_no_more_runs_than_planned() -> None:
    for layers in (2, 6):  # every size is tried, or few
        model = tiny_model("v", n_layers=layers, dtype=torch.float64)
        found = circuit_cost(model.cfg, prompts=3, length=7, speed=SPEED)
        study = circuit_study(model, tiny_pairs(model), min_faithfulness=0.6)
        of_all_prompts = [step for step in found.steps if "scoring" not in step.what]
        assert study.runs <= sum(step.runs for step in of_all_prompts)
        searched = next(step.runs for step in found.steps if step.what == cost.SEARCH)
        assert study.search.sizes is not None
        assert len(study.search.sizes) <= searched
    assert searched == most_runs(len(Graph(model.cfg)))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 40},
        {"n_layers": 1, "use_local_attn": True, "window_size": 3, "attn_types": ["local"]},
    ],
)
def test_measuring_takes_two_layers_of_the_width(changes: dict[str, Any]) -> None:
    cfg = tiny_config(**changes)  # which seeds the generators
    before = torch.get_rng_state()
    found = cost.measured(cfg, 7, 2, 2)
    assert all(math.isfinite(value) and value > 0 for value in vars(found).values())
    assert torch.get_rng_state().equal(before)


def test_what_is_measured_is_run_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit that was run before is remembered: nothing of it would be measured."""
    made, ran = running.CircuitRun.__init__, []

    def counted(self: Any, *given: Any) -> None:
        ran.append(given)
        made(self, *given)

    def few_times(work: Callable[[], object]) -> float:
        for _ in range(4):
            work()
        return 1.0

    monkeypatch.setattr(running.CircuitRun, "__init__", counted)
    monkeypatch.setattr(cost, "seconds", few_times)
    cost.measured(tiny_config(n_heads=1, d_head=4, attn_only=True), 7, 2, 2)  # of 13 edges
    assert len(ran) == 4


def test_no_more_edges_are_left_out_than_there_are() -> None:
    found = circuit_cost(tiny_config(n_layers=1, attn_only=True), speed=SPEED)
    edges = len(Graph(tiny_config(n_layers=1, attn_only=True)))
    assert next(step.runs for step in found.steps if step.what == cost.MINIMALITY) == edges < 256


PEAK = """
import gc, re, sys, torch
from pathlib import Path
from resval_lens import ResValConfig, ResValTransformer
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks.prompts import PromptPairs, logit_difference
torch.set_num_threads(1)

def resident(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(work):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before

cfg = ResValConfig(n_layers=12, d_model=256, n_heads=8, d_head=32, d_mlp=1024, n_ctx=64,
                   d_vocab=512, act_fn="gelu", streams="v", seed=0)
model = ResValTransformer(cfg)
clean, corrupted = torch.randint(512, (2, 12, 40))
pairs = PromptPairs(clean, corrupted, logit_difference, torch.randint(512, (12, 2)))
score_edges(model, pairs.rows([0]), "eap")
if sys.argv[1] == "scoring":
    print(peak(lambda: score_edges(model, pairs, "eap", max_tokens=int(sys.argv[2]))))
else:
    def work():
        runs = EdgeRuns(model, pairs, max_tokens=int(sys.argv[2]))
        runs.values(torch.rand(3, len(runs.graph)) < 0.5)
    print(peak(work))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak")
@pytest.mark.parametrize("what", ["scoring", "running"])
def test_memory_is_what_is_planned(what: str) -> None:
    """The most that a fresh process takes; a part of it is the allocator's."""
    cfg = tiny_config(
        n_layers=12, d_model=256, n_heads=8, d_head=32, d_mlp=1024, n_ctx=64, d_vocab=512
    ).with_streams("v")
    for max_tokens in (40, 480):
        planned = circuit_cost(cfg, prompts=12, length=40, max_tokens=max_tokens, speed=SPEED)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, what, str(max_tokens)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        taken, stated = int(done.stdout.split()[-1]), getattr(planned, what)
        assert 0.2 * stated < taken < 1.3 * stated + 20e6


def test_what_is_held_of_a_token_are_writers_activations_and_one_layers_readers() -> None:
    cfg = tiny_config(n_layers=3)  # 4 heads and an MLP a layer
    assert numbers_per_token(Graph(cfg)) == 16 * (16 + 6 * 14) + 3 * (16 * 16 + 5 * cfg.d_mlp)


def test_a_config_is_enough(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(**settings, intermediate_size=96, vocab_size=50, num_key_value_heads=2)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    cfg = load_config(tmp_path, torch.bfloat16)
    assert (cfg.n_layers, cfg.d_model, cfg.n_key_value_heads, cfg.dtype) == (
        3,
        64,
        2,
        torch.bfloat16,
    )
    model = tiny_model("v")
    model.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").unlink()
    assert load_config(tmp_path / "own").streams == model.cfg.streams
    assert (
        load_config("stories-small-values").to_dict()
        == load_model("stories-small-values").model.cfg.to_dict()
    )


def test_the_command_tells_steps_memory_and_what_is_dearest(tmp_path: Path) -> None:
    done = run("plan", "circuit", "stories-small-values", "--prompts", "4", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in (
        "A circuit among 491 edges: 4 prompts of 20 tokens",
        "minimality",
        "GB",
        "Most time",
    ):
        assert words in done.stdout
    found = CircuitCost.from_dict(json.loads((tmp_path / "plan.json").read_text()))
    assert found.edges == 491
    refused = run("plan", "circuit", "stories-small-values", "--method", "exact")
    assert refused.returncode == 1
    assert "plans are for eap and eap-ig; exact runs the model for every edge" in refused.stderr
    refused = run("plan", "circuit", "stories-small-values", "--device", "auto")
    assert refused.returncode == 1
    assert refused.stderr == (
        "resval-lens: plans are for one device: cpu, cuda, cuda:1, mps; got 'auto'\n"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": 0}, "prompts and length must be 1 or more; got 0 and 20"),
        ({"method": "eap", "steps": 3}, "does not average over runs"),
        ({"method": "acdc"}, "plans are for eap and eap-ig"),
        ({"most_edges": -4}, "minimality must be 0 or more; got -4"),
        ({"most_nodes": -1}, "completeness must be 0 or more; got -1"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        circuit_cost(language_model_config("stories-small"), speed=SPEED, **changes)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "< 1 s"), (3.2, "3 s"), (89, "89 s"), (91, "2 min"), (7300, "2.0 h"), (2e5, "2.3 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
