"""Which head does what in identifying the indirect object: roles by measurement.

    When Mary and John went to the shops, John gave the bag to
         IO       S1   S1+1                S2              end

After Wang et al. 2022 (arXiv 2211.00593), every head with the numbers that its role is judged by:

    name mover          adds to IO − S directly (share ≥ s), attends end → IO (≥ a, more than to S),
                        copies: attending to it alone, IO is among its top 5 (in half the prompts)
    mover of both       attends end → IO and end → S1 (each ≥ a) and adds directly to both names,
                        each against the name in its place in the corrupted prompt
                        (logit(IO) − logit(IO′) and logit(S) − logit(S′): each ≥ s of the former's
                        clean value): it brings both names, and something else chooses
    negative            takes from IO − S directly (share ≤ −s), attends end → IO
    subject mover       attends end → S2 (≥ a, more than to IO); noising it lowers IO − S by ≥ s of
                        the gap: it tells the end who gave
    subject suppressor  the same attention, and adds to IO − S directly (share ≥ s): it writes
                        *against* the name that it sees
    backup              share ≥ s only once the name movers are knocked out
    S-inhibition        attends end → S2 (≥ a); path patching it into the queries of the name movers
                        and suppressors lowers IO − S (by ≥ s of the gap)
    induction           attends S2 → S1+1 (≥ a)
    duplicate token     attends S2 → S1 (≥ a)
    previous token      attends S1+1 → S1 (≥ a)

An attention weight counts only where it is twice what even attention would give. A share is of the
clean logit difference; the gap is clean − corrupted. Noised or knocked out is a head whose z comes
from the corrupted prompt. A head may have several roles, or none. Movers of both, subject movers
and suppressors are not Wang et al.'s. All but movers of both are judged by IO − S, the same whether
a model would name the two or anything else; so every head has P(IO) with it noised, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.attribution.logits import attribute, read_direction, written_along
from resval_lens.analyses.attribution.weights import ov_paths, own_token_scores
from resval_lens.analyses.circuits.evaluation import Ends
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.hooks.answers import right_padding
from resval_lens.hooks.links import head_name
from resval_lens.hooks.patching import PatchResult, patch_by_metrics
from resval_lens.hooks.path_patching import path_patch_each
from resval_lens.hooks.prompts import (
    MAX_TOKENS,
    PromptPairs,
    check_model,
    probability,
    prompts_within,
    refuse_hooks,
    wide,
)
from resval_lens.notes import Note
from resval_lens.runtime import evaluating
from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.ioi_corruptions import positions
from resval_lens.tasks.leading import AUTO, leading_token
from resval_lens.transformer import ResValTransformer

ATTENTION = 0.2
SHARE = 0.05
ROLES = (
    "name mover", "mover of both", "negative", "subject mover", "subject suppressor", "backup",
    "S-inhibition", "induction", "duplicate token", "previous token",
)  # fmt: skip
WEIGHTS = {
    "end→IO": ("end", "IO"), "end→S1": ("end", "S1"), "end→S2": ("end", "S2"),
    "S2→S1": ("S2", "S1"), "S2→S1+1": ("S2", "S1+1"), "S1+1→S1": ("S1+1", "S1"),
}  # fmt: skip


@dataclass(frozen=True)
class HeadMeasures:
    """What each head was judged by, [layer, head].

    Attributes:
        attention: mean weights, by the names of ``WEIGHTS``.
        even: what each would be if attention were even.
        total: effect on the metric of noising the head, as a share of the gap; below 0 where the
            task needs it.
        p_io: P(IO) with the head noised.
        direct: share of the clean logit difference that the head writes.
        direct_on_io, direct_on_s: what it writes along logit(IO) − logit(IO′) and logit(S) −
            logit(S′), IO′ and S′ being the corrupted prompt's, as shares of the clean value of the
            former.
        copies: share of prompts in whose readout of OV(IO) the name is among the top 5, by the
            head's own values or, if that is more, those of a source layer along links; NaN of heads
            that have no role and could be no name mover.
        direct_along_links: of that, what its values have of earlier layers along links.
        direct_when_movers_are_out: the share with every name mover knocked out.
        into_queries: effect on the metric, as a share of the clean − corrupted gap, of path
            patching the head into the queries of name movers and suppressors; below 0 where they
            need it.
    """

    attention: dict[str, Float[Tensor, "layer head"]]
    even: dict[str, float]
    total: Float[Tensor, "layer head"]
    p_io: Float[Tensor, "layer head"]
    direct: Float[Tensor, "layer head"]
    direct_on_io: Float[Tensor, "layer head"]
    direct_on_s: Float[Tensor, "layer head"]
    copies: Float[Tensor, "layer head"]
    direct_along_links: Float[Tensor, "layer head"]
    direct_when_movers_are_out: Float[Tensor, "layer head"]
    into_queries: Float[Tensor, "layer head"]


@dataclass(frozen=True)
class Head:
    """A head, like ``a1.h2``, with its numbers of :class:`HeadMeasures`."""

    head: str
    total: float
    p_io: float
    direct: float
    direct_on_io: float
    direct_on_s: float
    copies: float
    direct_along_links: float
    direct_when_movers_are_out: float
    into_queries: float
    attention: Mapping[str, float] = field(metadata=FLAT)


@dataclass(frozen=True)
class Criteria:
    """What roles were judged by: least attention and share, kind of corrupted prompts, what links
    did.
    """

    attention: float
    share: float
    corruption: str = "ABC"
    links: str = "frozen"


@dataclass(frozen=True)
class HeadRoles(Result):
    """Every role of ``ROLES`` with its heads, most typical first."""

    logit_difference: Ends
    p_io: Ends
    prompts: int
    criteria: Criteria
    roles: Mapping[str, tuple[Head, ...]]

    def of_heads(self) -> dict[str, list[str]]:
        """The roles of each head that has any, by its name."""
        found: dict[str, list[str]] = {}
        for role, heads in self.roles.items():
            for each in heads:
                found.setdefault(each.head, []).append(role)
        return found


@torch.no_grad()
def head_roles(
    model: ResValTransformer,
    prompts: Sequence[IOIPrompt],
    *,
    attention: float = ATTENTION,
    share: float = SHARE,
    seed: int = 0,
    prepend: str = AUTO,
    note: Note = lambda text: None,
) -> HeadRoles:
    """Every role with its heads.

    Args:
        attention: the least mean attention weight, a.
        share: the least share of the logit difference, s.
        seed: of the corrupted prompts, three unrelated names (``ABC``).
        prepend: what leads each prompt (:func:`~resval_lens.tasks.leading.leading_token`).
        note: called with what is being done.

    Raises:
        ValueError: a threshold that is not above 0; the clean prompts' mean logit difference is
            not above that of the corrupted ones (the model does not know the task).
    """
    for name, value in (("attention", attention), ("share", share)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {value!r}")
    check_model(model)
    refuse_hooks(model)
    pairs = ioi_pairs(model, prompts, "ABC", seed, prepend=prepend)
    note("noising each head")
    noised, naming = patch_by_metrics(
        model,
        pairs,
        "z",
        {"": pairs.metric, "P(IO)": probability},
        by=("layer", "head"),
        direction="noise",
    ).values()
    clean, corrupted = noised.base, noised.source
    if clean <= corrupted or clean <= 0:
        raise ValueError(
            f"the logit difference is {clean:.3g} on the prompts and {corrupted:.3g} on the "
            "corrupted prompts: this model does not identify the indirect object, and no head has "
            "a role in it"
        )
    where = positions(prompts, model.tokenizer, leading_token(model, prepend))
    measured = _measure(model, where, pairs, (noised, naming), (attention, share), note)
    found = _judge(measured, attention, share)
    note("copying")
    told = {place for places in found.values() for place in places}
    _add_copies(model, pairs, where["IO"], measured.copies, told)
    return HeadRoles(
        Ends(clean, corrupted),
        Ends(naming.base, naming.source),
        len(prompts),
        Criteria(attention, share),
        {role: tuple(_numbers(measured, place) for place in found[role]) for role in ROLES},
    )


def _measure(
    model: ResValTransformer,
    where: Mapping[str, Int[Tensor, " prompt"]],
    pairs: PromptPairs,
    noising: tuple[PatchResult, PatchResult],
    least: tuple[float, float],
    note: Note,
) -> HeadMeasures:
    noised, naming = noising
    clean, gap = noised.base, noised.base - noised.source
    note("attention")
    weights, even = _attention(model, pairs, where)
    total = (noised.values.cpu() - clean) / gap
    note("direct attribution")
    written = attribute(model, pairs.clean, pairs.labels, pairs.answers)
    # Of capped logits the shares are those of what they are before.
    whole = written.total.mean() if model.cfg.output_logits_soft_cap > 0 else clean
    shares = written.heads.mean(0) / whole
    direct = shares.sum(1)  # over source layers
    own = torch.stack([shares[layer, layer] for layer in range(len(shares))])
    along, nothing = direct - own, torch.zeros_like(direct)
    copies = torch.full_like(direct, torch.nan)
    sees_io = _sees_io(weights, even, least[0])
    might = [(int(a), int(b)) for a, b in ((direct >= least[1]) & sees_io).nonzero()]
    _add_copies(model, pairs, where["IO"], copies, might)
    on_io, on_s = _direct_on_names(model, pairs, where)
    measured = HeadMeasures(
        attention=weights,
        even=even,
        total=total,
        p_io=naming.values.cpu(),
        direct=direct,
        direct_on_io=on_io,
        direct_on_s=on_s,
        copies=copies,
        direct_along_links=along,
        direct_when_movers_are_out=nothing,
        into_queries=nothing,
    )
    movers = _judge(measured, *least)
    note("direct attribution without the name movers")
    backup = _direct_effects(model, pairs, movers["name mover"]) / clean
    note("path patching into queries")
    readers = movers["name mover"] + movers["subject suppressor"]
    into, last = nothing.clone(), max((layer for layer, _ in readers), default=0)
    if last:  # what a head sends reaches the queries of later layers alone
        heads = [(layer, head) for layer in range(last) for head in range(model.cfg.n_heads)]
        senders, queries = ([head_name(i, h, end) for i, h in several]
                            for several, end in ((heads, ""), (readers, "q")))  # fmt: skip
        effect = path_patch_each(model, pairs, senders, queries).effect
        into[:last] = effect.mean(1).cpu().unflatten(0, (last, -1)) / gap
    return replace(measured, direct_when_movers_are_out=backup, into_queries=into)


def _direct_on_names(
    model: ResValTransformer, pairs: PromptPairs, where: Mapping[str, Int[Tensor, " prompt"]]
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """What each head writes for IO and S, each against the corrupted prompt's name in its place."""
    rows = torch.arange(len(pairs))
    found, clean = [], []
    for name, label in (("IO", 0), ("S1", 1)):
        absent = pairs.corrupted[rows, where[name]]
        labels = torch.stack([pairs.labels[:, label], absent], 1)
        shares = attribute(model, pairs.clean, labels, pairs.answers)
        found.append(shares.heads.mean(0).sum(1))  # over source layers
        clean.append(shares.total.mean())
    return found[0] / clean[0], found[1] / clean[0]


def _attention(
    model: ResValTransformer, pairs: PromptPairs, where: Mapping[str, Int[Tensor, " prompt"]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Mean attention weights [layer, head], and what even attention would give."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    sums = {name: torch.zeros(len(names), model.cfg.n_heads) for name in WEIGHTS}
    with evaluating(model):
        for rows in torch.arange(len(pairs)).split(prompts_within(MAX_TOKENS, pairs.length)):
            at = {name: where[name][rows] for name in where}
            _, cache = model.run_with_cache(
                pairs.clean[rows], names_filter=names, return_type=None, **right_padding(model)
            )
            for name, (query, key) in WEIGHTS.items():
                own = torch.arange(len(rows))
                weights = [cache[each][own, :, at[query], at[key]] for each in names]
                sums[name] += torch.stack([wide(weight).sum(0).cpu() for weight in weights])
    even = {name: (1 / (where[query] + 1)).mean().item() for name, (query, _) in WEIGHTS.items()}
    return {name: summed / len(pairs) for name, summed in sums.items()}, even


def _add_copies(
    model: ResValTransformer,
    pairs: PromptPairs,
    where: Int[Tensor, " prompt"],
    copies: Float[Tensor, "layer head"],
    heads: Iterable[tuple[int, int]],
) -> None:
    """Fills in what is missing of these heads in ``copies``."""
    missing = {place for place in heads if copies[place].isnan()}
    if any(stream.of == "v" and stream.how.is_gated for stream in model.cfg.streams):
        model = model.with_streams("", share_weights=True)  # a gate depends on the token: own only
    which = [path for path in ov_paths(model) if (path.layer, path.head) in missing]
    for path, copied in own_token_scores(model, pairs.clean, where, which=which).items():
        place = path.layer, path.head
        copies[place] = copies[place].nan_to_num(0.0).clamp(min=copied)


def _knocked_out(
    model: ResValTransformer, pairs: PromptPairs, heads: Sequence[tuple[int, int]]
) -> list[Any]:
    """Hooks that give these heads their z of the corrupted run."""
    names = sorted({f"blocks.{layer}.attn.hook_z" for layer, _ in heads})
    with evaluating(model):
        _, cache = model.run_with_cache(
            pairs.corrupted, names_filter=names, return_type=None, **right_padding(model)
        )

    def put(z: Tensor, hook: HookPoint, which: list[int]) -> Tensor:
        edited = z.clone()
        edited[:, :, which] = cache[str(hook.name)][:, :, which]
        return edited

    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    return [
        (f"blocks.{layer}.attn.hook_z", partial(put, which=which))
        for layer, which in by_layer.items()
    ]


def _direct_effects(
    model: ResValTransformer, pairs: PromptPairs, without: Sequence[tuple[int, int]]
) -> Float[Tensor, "layer head"]:
    """What each head writes along IO − S with some heads knocked out, the norm's scale held."""
    summed = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for part in pairs.within(MAX_TOKENS):
        rows, answers = torch.arange(len(part)), part.answers
        with evaluating(model), model.hooks(fwd_hooks=_knocked_out(model, part, without)):
            residual, cache = model.run_with_cache(
                part.clean,
                stop_at_layer=model.cfg.n_layers,
                **right_padding(model),
                names_filter=lambda name: name.endswith("attn.hook_z"),
            )
            _, direction, _ = read_direction(model, residual, answers, part.labels)
        for layer, block in enumerate(model.blocks):
            z = cache[f"blocks.{layer}.attn.hook_z"][rows, answers]  # [prompt, head, d_head]
            with block.fetched():
                summed[layer] += written_along(block.attn.W_O, z, direction).sum(0).cpu()
    return summed / len(pairs)


def _sees_io(
    weights: Mapping[str, Tensor], even: Mapping[str, float], attention: float
) -> Bool[Tensor, "layer head"]:
    """Whether heads attend from the end to IO, and more than to S."""
    least = max(attention, 2 * even["end→IO"])
    to_subject = torch.maximum(weights["end→S1"], weights["end→S2"])
    return (weights["end→IO"] >= least) & (weights["end→IO"] > to_subject)


def _judge(
    measured: HeadMeasures, attention: float, share: float
) -> dict[str, list[tuple[int, int]]]:
    """The heads of each role, most typical first."""
    weights, direct = measured.attention, measured.direct
    least = {name: max(attention, 2 * even) for name, even in measured.even.items()}
    sees = {name: weights[name] >= least[name] for name in WEIGHTS}
    sees_io = _sees_io(weights, measured.even, attention)
    sees_subject = sees["end→S2"] & (weights["end→S2"] > weights["end→IO"])
    mover = (direct >= share) & sees_io & (measured.copies >= 0.5)
    of_both = torch.minimum(measured.direct_on_io, measured.direct_on_s)
    criteria = {
        "name mover": (mover, direct),
        "mover of both": ((of_both >= share) & sees["end→IO"] & sees["end→S1"], of_both),
        "negative": ((direct <= -share) & sees_io, -direct),
        "subject mover": (sees_subject & (measured.total <= -share), -measured.total),
        "subject suppressor": ((direct >= share) & sees_subject, direct),
        "backup": (
            (measured.direct_when_movers_are_out >= share) & (direct < share),
            measured.direct_when_movers_are_out,
        ),
        "S-inhibition": (
            sees["end→S2"] & (measured.into_queries <= -share),
            -measured.into_queries,
        ),
        "induction": (sees["S2→S1+1"], weights["S2→S1+1"]),
        "duplicate token": (sees["S2→S1"], weights["S2→S1"]),
        "previous token": (sees["S1+1→S1"], weights["S1+1→S1"]),
    }
    found: dict[str, list[tuple[int, int]]] = {}
    for role, (holds, strength) in criteria.items():
        places = [(int(layer), int(head)) for layer, head in holds.nonzero()]
        found[role] = sorted(places, key=lambda place: -strength[place].item())
    return found


def _numbers(measured: HeadMeasures, place: tuple[int, int]) -> Head:
    """What one head was judged by."""
    own = {name: x[place].item() for name, x in vars(measured).items() if isinstance(x, Tensor)}
    attention = {name: weight[place].item() for name, weight in measured.attention.items()}
    return Head(head_name(*place), **own, attention=attention)
