"""Language models of the paper, and one that a laptop trains: architecture and training by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from resval_lens.config import ResValConfig
from resval_lens.streams import Carry, StreamsLike, parse_streams


@dataclass(frozen=True)
class LanguageModelPreset:
    """An architecture and how it is trained.

    Attributes:
        about: one line for people.
        model: fields of ResValConfig; ``d_vocab`` here is only for planning, training takes it
            from the tokenizer.
        training: fields of :class:`~resval_lens.training.lm_run.LMRun`.
    """

    about: str
    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


_TINY_STORIES = LanguageModelPreset(
    "the toy language model of arXiv 2412.15113, section 4, as its public code has it",
    {
        "n_layers": 8,
        "d_model": 256,
        "n_heads": 16,
        "d_head": 16,
        "d_mlp": 1024,
        "n_ctx": 256,
        "d_vocab": 50_257,
        "act_fn": "gelu",  # exact
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "use_attn_scale": False,  # the public code does not divide scores by √d_head
        "dropout": 0.1,
        "tied_embedding": True,
        "init_mode": "gpt2",
        "initializer_range": 0.02,
    },
    {
        "rows": "story",
        "batch": 64,
        "steps": 99_000,  # three epochs of TinyStories' 2.12 million stories
        "lr": 1e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.0,
        "clip": None,
        "schedule": "constant",
        "warmup": 0,
    },
)

PRESETS: dict[tuple[str, str], LanguageModelPreset] = {
    ("stories-small", "reference"): LanguageModelPreset(
        "four layers for generated stories; a laptop trains it in under an hour",
        {
            "n_layers": 4,
            "d_model": 128,
            "n_heads": 4,
            "d_head": 32,
            "d_mlp": 512,
            "n_ctx": 128,
            "d_vocab": 2048,
            "act_fn": "gelu",
            "normalization_type": "LN",
            "positional_embedding_type": "standard",
            "tied_embedding": True,
            "init_mode": "gpt2",
            # 0.02 is for wide models: with 128 dimensions names are not copied after 1,500 steps,
            # with 0.08 after 300.
            "initializer_range": 0.08,
        },
        {
            "rows": "packed",
            "batch": 32,
            "steps": 6_000,
            "lr": 3e-3,
            "betas": (0.9, 0.95),
            "weight_decay": 0.1,
            "clip": 1.0,
            "schedule": "cosine",
            "warmup": 200,
        },
    ),
    ("stories-nanochat", "reference"): LanguageModelPreset(
        "six layers for generated stories in the shape of nanochat, without its value embeddings",
        {
            "n_layers": 6,
            "d_model": 128,
            "n_heads": 4,
            "d_head": 32,
            "d_mlp": 512,
            "n_ctx": 128,
            "d_vocab": 2048,
            "act_fn": "relu2",
            "normalization_type": "RMSPre",
            "final_rms": True,
            "eps": 1e-6,
            "positional_embedding_type": "rotary",
            "rotary_base": 10_000,
            "rotary_dim": 32,
            "rotary_adjacent_pairs": False,
            "use_qk_norm": True,
            "qk_norm_after_rotation": True,
            "embedding_norm": True,
            "residual_mixing": "embedding",
            "output_logits_soft_cap": 15.0,
            "init_mode": "gpt2",
            "initializer_range": 0.08,
            "frozen": ("*.b_*", "*_norm.w"),  # it has no biases, and no gains
        },
        {
            "rows": "packed",
            "batch": 32,
            "steps": 1_500,
            "lr": 3e-3,
            "betas": (0.9, 0.95),
            "weight_decay": 0.1,
            "clip": 1.0,
            "schedule": "cosine",
            "warmup": 100,
        },
    ),
    ("tinystories-8m", "reference"): _TINY_STORIES,
    ("tinystories-8m", "paper"): replace(
        _TINY_STORIES,
        about="the toy language model of arXiv 2412.15113, section 4, with its equation 1's scores",
        model=_TINY_STORIES.model | {"use_attn_scale": True},
    ),
    ("llama-1b", "reference"): LanguageModelPreset(
        "the small language model of arXiv 2412.15113, section 5, in the style of Llama 3",
        {
            "n_layers": 16,
            "d_model": 2048,
            "n_heads": 32,
            "d_head": 64,
            "n_key_value_heads": 8,
            "d_mlp": 8192,
            "n_ctx": 4096,
            "d_vocab": 131_072,
            "act_fn": "silu",
            "gated_mlp": True,
            "normalization_type": "RMS",
            "final_rms": True,
            "positional_embedding_type": "rotary",
            "rotary_base": 500_000,
            "rotary_dim": 64,
            "rotary_adjacent_pairs": False,
            "init_mode": "gpt2",
            "initializer_range": 0.02,
            "frozen": ("*.b_*", "*._b_*"),  # this family has no biases
        },
        {
            "rows": "packed",
            "batch": 512,
            "steps": 40_000,
            "lr": 3e-4,
            "betas": (0.9, 0.95),
            "weight_decay": 0.1,
            "clip": 1.0,
            "schedule": "cosine",
            "warmup": 500,
            "cooldown": 5_000,
            "precision": "bf16",
            "checkpoint_blocks": True,
        },
    ),
}


def preset(name: str, spec: str = "reference") -> LanguageModelPreset:
    """The preset ``name`` in one of its specifications.

    Raises:
        ValueError: there is none, naming those there are.
    """
    if (name, spec) in PRESETS:
        return PRESETS[name, spec]
    names = sorted({known for known, _ in PRESETS})
    if name not in names:
        raise ValueError(f"no preset {name!r}; there are {', '.join(names)}")
    specs = [known for preset_name, known in PRESETS if preset_name == name]
    raise ValueError(f"preset {name!r} has the specs {', '.join(specs)}; got {spec!r}")


def resized(model: dict[str, Any], d_model: int) -> dict[str, Any]:
    """What changes in a preset's ``model`` at another width.

    Heads stay as wide as they are, so there are more or fewer of them; the MLP keeps its proportion
    to ``d_model``, and the standard deviation of initial weights its proportion to 1/√d_model, so
    that what they give of an input of norm √d_model stays as large.

    Raises:
        ValueError: a width that heads, or groups of them, do not divide.
    """
    before, heads = model["d_model"], model["n_heads"]
    groups = model.get("n_key_value_heads", heads)
    unit = model["d_head"] * heads // groups
    if d_model < 1 or d_model % unit:
        raise ValueError(
            f"d_model must be a multiple of {unit}, as the preset's heads are; got {d_model}"
        )
    changed = {
        "d_model": d_model,
        "n_heads": heads * d_model // before,
        "d_mlp": model["d_mlp"] * d_model // before,
        "initializer_range": model["initializer_range"] * (before / d_model) ** 0.5,
    }
    if "n_key_value_heads" in model:
        changed["n_key_value_heads"] = groups * d_model // before
    return changed


def language_model_config(
    name: str,
    streams: StreamsLike = "",
    spec: str = "reference",
    carry: Carry | None = None,
    **changes: Any,
) -> ResValConfig:
    """The configuration of a preset.

    Args:
        streams: as in ResValConfig.
        carry: ``"raw"`` (the authors' language-model code) or ``"sum"``, for every stream; where
            ``streams`` is a string, for those that do not say it.
        changes: other fields of ResValConfig (``d_vocab``, ``n_layers``, those of :func:`resized`,
            ...), which win.

    Raises:
        ValueError: an unknown preset, or a setting that ResValConfig refuses.
    """
    settings = preset(name, spec).model | {"device": "cpu"} | changes
    parsed = parse_streams(streams, settings["n_layers"], carry or "sum")
    if carry is not None and not isinstance(streams, str):
        parsed = tuple(replace(stream, carry=carry) for stream in parsed)
    return ResValConfig(**settings, streams=parsed)
