"""Who writes the answer: exact shares of a logit difference, links included; and the logit lens.

With the final norm's scale as it was in the run, a logit difference is the sum of what the
embeddings, the heads, the MLPs and the biases write. A head's share is again a sum, over the layers
that its values come from (:mod:`resval_lens.analyses.attribution.values`). With residual mixing
what is written is read with a weight, :meth:`~resval_lens.ResValTransformer.written_weights`.
Nothing is left over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from resval_lens.analyses.attribution.values import Cache, equal, part_name, z_parts
from resval_lens.hooks.answers import right_padding
from resval_lens.hooks.padding import Mask
from resval_lens.hooks.prompts import (
    MAX_TOKENS,
    PromptPairs,
    check_model,
    margin,
    ready,
    wide,
)
from resval_lens.host import LayerNorm, LayerNormPre
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

CACHED = ("hook_embed", "hook_pos_embed", "hook_resid_pre", "hook_resid_embed", "hook_v",
          "hook_v_local", "hook_v_table", "hook_pattern", "hook_mlp_out")  # fmt: skip
"""How the names of the hook points end that :func:`attribute` reads."""


@dataclass(frozen=True)
class Attribution:
    """A logit difference in parts, in logits (nats).

    Attributes:
        components: ``embed``, ``pos_embed`` (normalised or smeared together: ``embed``), ``a2.h1``
            (head 1 of layer 2, its own values), ``a2.h1 from 0`` (what it has of layer 0's values
            along links: those of
            :func:`~resval_lens.analyses.attribution.values.links_of_part`), ``a2.h1 from t`` (what
            it has of its layer's table), ``b_O 2`` (the layer's
            output bias), ``m2`` (an MLP), what the model adds after its layers (``readout_parts``),
            ``ln_final.b``, ``b_U``.
        values: each component's share, [prompt, component].
        total: logit(first label) − logit(best other label) of the run, before a soft cap, [prompt]:
            the shares' sum.
        heads: the heads' shares by the layer their values come from, [prompt, layer, source,
            head]: own on the diagonal of (layer, source), 0 where nothing flows. Where layers have
            tables, these are one source more, the last (``TABLE`` = −1).
    """

    components: tuple[str, ...]
    values: Float[Tensor, "prompt component"]
    total: Float[Tensor, " prompt"]
    heads: Float[Tensor, "prompt layer source head"]

    def __getitem__(self, component: str) -> Float[Tensor, " prompt"]:
        """The share of one component, by its name."""
        if component not in self.components:
            raise ValueError(f"no component {component!r}; there are {', '.join(self.components)}")
        return self.values[:, self.components.index(component)]

    def means(self) -> dict[str, float]:
        """Each component's mean over prompts, largest magnitude first."""
        mean = dict(zip(self.components, self.values.mean(0).tolist(), strict=True))
        return dict(sorted(mean.items(), key=lambda item: -abs(item[1])))


@torch.no_grad()
def attribute(
    model: ResValTransformer,
    tokens: Int[Tensor, "prompt pos"],
    labels: Int[Tensor, "prompt label"],
    last: Int[Tensor, " prompt"] | None = None,
    mask: Mask | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Attribution:
    """Direct logit attribution of logit(first label) − logit(second label), links told apart.

        share(x) = c x · (W_U[:, first] − W_U[:, second]) ∘ w / scale

    for what each component writes at a prompt's answer position, ``scale`` and centering being the
    final norm's in this run; c is 1, or the readout's weight of it with residual mixing. After
    ``process_weights_`` the value biases are in b_O. Where logits are soft-capped the shares are
    those of the logits before their cap, which are sums.

    Args:
        labels: two, or more: then the second is, in each prompt, the one of those after the first
            that has the largest logit in this run, as of
            :func:`~resval_lens.hooks.prompts.margin`.
        last, mask: where prompts of unequal length end, and which tokens are theirs; as of
            :class:`~resval_lens.hooks.prompts.PromptPairs`.
        max_tokens: rows × positions of one model call, one prompt at least.

    Raises:
        ValueError: a readout that is not linear in what the layers write (a classifier's, norms
            after the layers), clipped values, hooks that edit the run,
            or labels, tokens or positions that do not fit.
    """
    _check_linear(model)
    prompts = _prompts(model, tokens, labels, last, mask)
    with evaluating(model):
        parts = [_attribute(model, part) for part in prompts.within(max_tokens)]
    names, *tensors = zip(*parts, strict=True)
    values, total, heads = (torch.cat(part).cpu() for part in tensors)
    for prompt, (found, wanted) in enumerate(zip(values.sum(1), total, strict=True)):
        if not equal(found, wanted, values[prompt].abs().sum(), model.cfg.dtype):
            raise ValueError(
                f"prompt {prompt}: the parts sum to {found.item():.4g} and its logit difference is "
                f"{wanted.item():.4g}: a hook edits what is written; run the model without"
            )
    return Attribution(names[0], values, total, heads)


def _attribute(
    model: ResValTransformer, prompts: PromptPairs
) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """Components, values, total and heads, as in :class:`Attribution`."""
    cfg = model.cfg
    residual, cache = model.run_with_cache(
        prompts.clean,
        stop_at_layer=cfg.n_layers,
        **right_padding(model),
        names_filter=lambda name: name.endswith(CACHED),
    )
    rows, answers = torch.arange(len(residual)), prompts.answers.to(residual.device)
    total, direction, biases = read_direction(model, residual, answers, prompts.labels)

    read = model.written_weights()[-1].to(direction)  # [written]

    def share(name: str, written: int) -> Tensor:
        x = cache[name]
        x = x[rows, answers.to(x.device)].to(direction.device)
        return read[written] * (x * direction).sum(-1)

    if cfg.embedding_norm or cfg.smear_channels:  # of both together
        values = {"embed": share(cfg.input_point, 0)}
    else:
        values = {"embed": share("hook_embed", 0)}
        if cfg.positional_embedding_type == "standard":
            values["pos_embed"] = share("hook_pos_embed", 0)
    sources = cfg.n_layers + any(s.of == "v" and s.source == "tokens" for s in cfg.streams)
    heads = direction.new_zeros(len(residual), cfg.n_layers, sources, cfg.n_heads)
    for layer, parts in enumerate(z_parts(model, cache, answers)):
        with model.blocks[layer].fetched():
            attn = model.blocks[layer].attn
            W_O, b_O = attn.W_O.to(direction), attn.b_O.to(direction)
        for source, z in parts.items():
            written = written_along(W_O, z[:, 0].to(direction.device), direction)
            heads[:, layer, source] = read[layer + 1] * written
            for head in range(cfg.n_heads):
                values[part_name(layer, head, source)] = heads[:, layer, source, head]
        values[f"b_O {layer}"] = read[layer + 1] * (direction @ b_O)
        if not cfg.attn_only:
            values[f"m{layer}"] = share(f"blocks.{layer}.hook_mlp_out", layer + 1)
    for name, x in model.readout_parts(residual[rows, answers][:, None]).items():
        values[name] = (x[:, 0] * direction).sum(-1)
    values |= biases
    return tuple(values), torch.stack(list(values.values()), 1), total, heads


def written_along(
    W_O: Float[Tensor, "head d_head d_model"],
    z: Float[Tensor, "prompt head d_head"],
    direction: Float[Tensor, "prompt d_model"],
) -> Float[Tensor, "prompt head"]:
    """z W_O · direction: what each head writes along a direction of :func:`read_direction`."""
    return (z * torch.einsum("hdm,pm->phd", W_O.to(direction), direction)).sum(-1)


def read_direction(
    model: ResValTransformer, residual: Tensor, answers: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The margin [prompt], what it is the product with [prompt, d_model], its biases."""
    scales: list[Tensor] = []
    norm = None if model.cfg.normalization_type is None else model.ln_final
    look: list[Any] = [("ln_final.hook_scale", lambda x, hook: scales.append(x))]
    with model.hooks(fwd_hooks=[] if norm is None else look):
        logits = model.read_out(residual, answers, capped=False)
    labels = labels.to(logits.device)
    dtype, total = logits.dtype, margin(logits, labels)
    if labels.shape[1] > 2:
        best = logits.gather(1, labels[:, 1:]).argmax(1, keepdim=True)
        labels = torch.cat([labels[:, :1], labels[:, 1:].gather(1, best)], 1)
    first, second = model.unembed.W_U.to(dtype).T[labels].unbind(1)
    direction = first - second
    b_first, b_second = model.unembed.b_U.to(dtype)[labels].unbind(1)
    biases = {"b_U": b_first - b_second}
    if norm is not None:
        own = dict(norm.named_parameters())
        if "b" in own:
            biases = {"ln_final.b": direction @ own["b"].to(dtype), **biases}
        direction = direction * own["w"] if "w" in own else direction
        if isinstance(norm, LayerNorm | LayerNormPre):  # centering is its own transpose
            direction = direction - direction.mean(-1, keepdim=True)
        direction = direction / scales[0][:, 0]
    return total, direction, biases


@dataclass(frozen=True)
class LogitLens:
    """What the readout would say of the residual stream along the way.

    Attributes:
        points: ``embed`` (the embeddings), then ``0``, ``1``, ... (after that layer).
        logit_difference: logit(first label) − max logit of the others, [point, prompt].
        probability: P(first label), [point, prompt].
        rank: tokens whose logit is above the first label's; 0 is the top, [point, prompt].
    """

    points: tuple[str, ...]
    logit_difference: Float[Tensor, "point prompt"]
    probability: Float[Tensor, "point prompt"]
    rank: Int[Tensor, "point prompt"]


@torch.no_grad()
def logit_lens(
    model: ResValTransformer,
    tokens: Tensor,
    labels: Int[Tensor, "prompt label"],
    last: Int[Tensor, " prompt"] | None = None,
    mask: Mask | None = None,
    max_tokens: int = MAX_TOKENS,
) -> LogitLens:
    """The readout (final norm, unembedding) at each prompt's answer, of every layer's residual.

    With residual mixing: of what the readout reads that was written up to there, each with the
    readout's weight of it. After the last layer that is what it does read.

    Args:
        tokens: [prompt, pos], or a classifier's [prompt, pos, d_model]: its whole readout is used.
        last, mask, max_tokens: as in :func:`attribute`.

    Raises:
        ValueError: labels, tokens or positions that do not fit.
    """
    prompts, layers = _prompts(model, tokens, labels, last, mask), range(model.cfg.n_layers)
    cfg, found = model.cfg, []
    names = [cfg.input_point, *(f"blocks.{i}.hook_resid_post" for i in layers)]
    if cfg.residual_mixing:
        names += [f"blocks.{i}.hook_resid_pre" for i in layers]
    with evaluating(model):
        for part in prompts.within(max_tokens):
            _, cache = model.run_with_cache(
                part.clean, stop_at_layer=len(layers), names_filter=names, **right_padding(model)
            )
            looked = [_looked_at(model, x, part) for x in _along(model, cache)]
            found.append([torch.stack(each) for each in zip(*looked, strict=True)])
    points = ("embed", *map(str, layers))
    return LogitLens(points, *(torch.cat(each, 1) for each in zip(*found, strict=True)))


def _along(model: ResValTransformer, cache: Cache) -> Iterator[Tensor]:
    """The residual stream at the embeddings and after each layer, as the readout would read it."""
    cfg = model.cfg
    posts = [f"blocks.{i}.hook_resid_post" for i in range(cfg.n_layers)]
    if not cfg.residual_mixing:
        yield from (cache[name] for name in (cfg.input_point, *posts))
        return
    read = model.written_weights()[-1].tolist()
    so_far = read[0] * cache[cfg.input_point]
    yield so_far
    for layer, post in enumerate(posts):
        after = cache[post]
        written = after - cache[f"blocks.{layer}.hook_resid_pre"]
        so_far = so_far.to(after.device) + read[layer + 1] * written
        yield so_far


def _looked_at(
    model: ResValTransformer, residual: Tensor, part: PromptPairs
) -> tuple[Tensor, Tensor, Tensor]:
    """Logit difference, P(first label) and its rank, [prompt], of one residual stream."""
    logits = wide(model.read_out(residual, part.answers).cpu())
    chosen = part.labels.cpu()
    first = logits.gather(1, chosen[:, :1])
    p = logits.softmax(1).gather(1, chosen[:, :1])[:, 0]
    return margin(logits, chosen), p, (logits > first).sum(1)


def _check_linear(model: ResValTransformer) -> None:
    check_model(model)
    cfg = model.cfg
    if model.answers_last:
        raise ValueError(
            f"{model.kind}'s logits are not a sum of what its heads write: its readout has ReLU "
            "layers; z_parts has the parts of what that readout reads"
        )
    if cfg.use_normalization_before_and_after or (
        cfg.original_architecture in POST_NORM_ARCHITECTURES
    ):
        why = cfg.original_architecture or "use_normalization_before_and_after=True"
        raise ValueError(
            f"this model normalises what attention and MLPs write ({why}): what a head adds is "
            "not a sum of parts"
        )


def _prompts(
    model: ResValTransformer,
    tokens: Tensor,
    labels: Tensor,
    last: Tensor | None,
    mask: Tensor | None,
) -> PromptPairs:
    """The prompts as pairs without corrupted prompts, which knows what fits."""
    check_model(model)
    if labels.ndim != 2 or labels.shape[1] < 2:
        raise ValueError(
            "labels must be two or more for each prompt, what is right and what it is held "
            f"against, [prompt, label]; got {list(labels.shape)}"
        )
    outside = labels[(labels < 0) | (labels >= model.n_outputs)]
    if len(outside):
        raise ValueError(f"labels: {outside[0].item()} is not among 0 to {model.n_outputs - 1}")
    if tokens.ndim != (3 if model.answers_last else 2):
        raise ValueError(f"tokens must be [prompt, pos]; got {list(tokens.shape)}")
    return ready(model, PromptPairs(tokens, tokens, margin, labels, last, mask=mask))
