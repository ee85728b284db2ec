"""lm-evaluation-harness on any HookedTransformer, with or without streams.

Needs the extra ``harness`` (``pip install 'resval-lens[harness]'``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate as harness_evaluate
from lm_eval.models.utils import (
    Collator,
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm
from yaml import YAMLError

from resval_lens.analyses.studies.harness_scores import HarnessScore
from resval_lens.host import HookedTransformer
from resval_lens.lens.generation import stream_tokens
from resval_lens.runtime import evaluating
from resval_lens.tasks.leading import leading_token

Scored = tuple[float, bool]
"""Sum of log P(token | what is before) in nats, and: is each token the likeliest of all?"""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""(context, continuation) as text if there is one, and as tokens."""


PAPER_TASKS = ("arc_easy", "arc_challenge", "piqa", "openbookqa", "hellaswag")
"""What arXiv 2412.15113, section 5, evaluates, with one and with five examples."""


class HarnessLM(TemplateLM):
    """A model as lm-evaluation-harness asks for one.

    Runs the hooked model, so that hooks and edits of the moment count. Rows of different lengths
    are padded on the right, where causal attention never looks. ``cut`` counts the texts (a
    question with each of its answers is one) that were over n_ctx and lost their beginnings.

    >>> # lm_eval.simple_evaluate(model=HarnessLM(model), tasks=["piqa"], num_fewshot=5)
    """

    def __init__(
        self,
        model: HookedTransformer,
        batch_size: int = 16,
        *,
        prepend: str = "none",
        quiet: bool = False,
    ) -> None:
        """
        Args:
            batch_size: rows run at once.
            prepend: what leads every context
                (:func:`~resval_lens.tasks.leading.leading_token`). An empty one is always led: by
                it, or else by the tokenizer's beginning or end of text.
            quiet: no progress bars.

        Raises:
            ValueError: a model without a tokenizer that knows an end of text, or whose attention
                is not causal; a batch size below 1.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more; got {batch_size}")
        if model.tokenizer is None:
            raise ValueError("the harness gives text, and this model has no tokenizer")
        if model.tokenizer.eos_token_id is None:
            raise ValueError("the model's tokenizer has no end of text (eos_token)")
        if model.cfg.attention_dir != "causal":
            raise ValueError(
                f"the harness needs causal attention; this model's is {model.cfg.attention_dir!r}"
            )
        self.model, self.tokenizer = model, model.tokenizer
        self.batch_size, self.quiet = batch_size, quiet
        self.lead = leading_token(model, prepend)
        self.cut = 0
        self.max_length: int = model.cfg.n_ctx

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        found = (self.lead, self.tokenizer.bos_token_id, self.eot_token_id)
        return next(token for token in found if token is not None)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Tokens of a text; the prefix before them if there is a lead, unless told otherwise."""
        tokens: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        with_prefix = self.lead is not None if add_special_tokens is None else add_special_tokens
        return [self.prefix_token_id, *tokens] if with_prefix else tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Scored]:
        """log P(continuation | context) of each request, and whether greedy decoding says it.

        Raises:
            ValueError: a continuation of no tokens, or of more than n_ctx.
        """
        for request in requests:
            if not request.args[1]:
                raise ValueError(f"nothing to continue {request.args[0]!r} with")
        return super().loglikelihood(requests, disable_tqdm or self.quiet)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[Scored]:
        # A context of white space alone has gone to the continuation.
        requests = [(text, a or [self.prefix_token_id], b) for text, a, b in requests]
        self.cut += sum(len(a) + len(b) > self.max_length + 1 for _, a, b in requests)
        order = Collator(list(requests), lambda request: -len(request[1] + request[2]))
        found: list[Scored] = []
        bar = tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm or self.quiet)
        for chunk in order.get_batched(n=self.batch_size):
            scored = self._score(chunk)
            found += scored
            for (text, _, _), answer in zip(chunk, scored, strict=True):
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answer)
            bar.update(len(chunk))
        bar.close()
        return order.get_original(found)

    @torch.no_grad()
    def _score(self, requests: Sequence[Request]) -> list[Scored]:
        rows: list[list[int]] = []
        for text, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation must have 1 to n_ctx={self.max_length} tokens; "
                    f"{(text or ('', ''))[1]!r} has {len(continuation)}"
                )
            rows.append((context + continuation)[-self.max_length - 1 :])
        width = max(map(len, rows)) - 1
        padded = torch.tensor([row[:-1] + [0] * (width - len(row) + 1) for row in rows])
        with evaluating(self.model):
            logits = self.model(padded.to(self.model.cfg.device), padding_side="right")
        found = []
        for row, (_, _, continuation), own in zip(rows, requests, logits, strict=True):
            end = len(row) - 1
            log_p = own[end - len(continuation) : end].double().log_softmax(-1)
            wanted = torch.tensor(continuation, device=log_p.device)
            total = log_p.gather(-1, wanted[:, None]).sum()
            found.append((float(total), bool((log_p.argmax(-1) == wanted).all())))
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log P of whole texts: each token once, in windows of n_ctx tokens."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            (text,) = request.args
            parts = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False),
                self.prefix_token_id,
                self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(part)) for part in parts]
            windows += own
            counts.append(len(own))
        scored = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, each up to the first of its stop strings or the end of text."""
        # Rows of one length need no padding, whose positions TransformerLens would shift.
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        contexts, settings = [], []
        for i, request in enumerate(requests):
            text, given = request.args
            kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_length // 2))
            room = self.max_length - kwargs["max_gen_toks"]
            if not 1 <= room < self.max_length:
                raise ValueError(
                    f"max_gen_toks must be from 1 to below n_ctx={self.max_length}, to leave room "
                    f"for a context; got {kwargs['max_gen_toks']}"
                )
            tokens = self.tok_encode(text) or [self.prefix_token_id]
            self.cut += len(tokens) > room
            contexts.append(tokens[-room:])
            settings.append(kwargs)
            groups[repr(sorted(kwargs.items(), key=str)), len(contexts[-1])].append(i)
        written = [""] * len(requests)
        bar = tqdm(total=len(requests), desc="generation", disable=disable_tqdm or self.quiet)
        for group in groups.values():
            for first in range(0, len(group), self.batch_size):
                chosen = group[first : first + self.batch_size]
                rows = torch.tensor([contexts[i] for i in chosen])
                for i, text in zip(chosen, self._write(rows, settings[chosen[0]]), strict=True):
                    written[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(chosen))
        bar.close()
        return written

    def _write(self, tokens: Tensor, kwargs: dict[str, Any]) -> Iterable[str]:
        """Continuations of rows of one length."""
        end = self.tokenizer.decode([self.eot_token_id])
        until = handle_stop_sequences(list(kwargs["until"]), end)
        length = tokens.shape[1]
        texts: list[str] = []
        how: dict[str, Any] = {"temperature": 0.0}
        if kwargs["do_sample"]:
            how = {"temperature": kwargs.get("temperature") or 1.0}
            how |= {"top_k": kwargs.get("top_k") or None, "top_p": kwargs.get("top_p")}
        drawn = stream_tokens(self.model, tokens, kwargs["max_gen_toks"], **how)
        for new in drawn:
            tokens = torch.cat((tokens, new[:, None]), 1)
            texts = self.tokenizer.batch_decode(tokens[:, length:])
            if all(any(stop in text for stop in until if stop) for text in texts):
                break
        return [postprocess_generated_text(text, until, None) for text in texts]


def evaluate(
    lm: HarnessLM,
    tasks: Sequence[str] = PAPER_TASKS,
    shots: Sequence[int] = (1, 5),
    limit: int | None = None,
    seed: int = 0,
) -> list[HarnessScore]:
    """A score for each task, number of examples and metric.

    Args:
        tasks: names that lm-evaluation-harness knows (groups too), or YAML files of one's own.
        shots: examples before each question, one evaluation for each number.
        limit: only the first so many questions of each task.
        seed: draws the examples.

    Raises:
        ValueError: no task or one that is not known, or damaged; a limit below 1; a number of
            examples below 0, or above what the task has.
        OSError: the hub, which has the data of the tasks, cannot be reached.
    """
    if not tasks:
        raise ValueError(f"tasks must name one or more, such as {PAPER_TASKS[0]}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more; got {limit}")
    for number in shots:
        if number < 0:
            raise ValueError(f"shots must be 0 or more; got {number}")
    own = all(Path(task).suffix in (".yaml", ".yml") for task in tasks)
    manager = TaskManager(include_defaults=not own)  # reading what all 10,000 are takes seconds
    rows: list[HarnessScore] = []
    for task in tasks:
        try:
            loaded: Any = manager.load([task])
        except KeyError as error:
            raise ValueError(f"task {task!r}: {error.args[0]}") from None
        except (YAMLError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"task {task!r} is not a task of the harness: {reason}") from None
        except OSError as error:
            raise OSError(f"task {task!r}: {error}") from error
        # A task that says "no examples" is asked without, as the harness's own command does.
        free = [part for part in loaded["tasks"].values() if part.get_config("num_fewshot") != 0]
        for number in shots if free else (0,):
            for part in free:
                part.set_config(key="num_fewshot", value=number)
            for part in loaded["tasks"].values():
                part.set_fewshot_seed(seed=seed)
            lm.cut = 0
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                try:
                    found: Any = harness_evaluate(lm, loaded, limit=limit, log_samples=False)
                except AssertionError as error:
                    raise ValueError(f"task {task!r}, {number} examples: {error}") from None
            rows += _rows(found, lm.cut)
    return rows


def _rows(found: dict[str, Any], cut: int) -> Iterator[HarnessScore]:
    for name, scores in found["results"].items():
        for metric, value in scores.items():
            kind, comma, which = metric.partition(",")
            if comma and not kind.endswith("_stderr"):
                stderr = scores.get(f"{kind}_stderr,{which}")
                yield HarnessScore(
                    name, found["n-shot"].get(name), kind, which, float(value),
                    stderr if isinstance(stderr, float) else None,
                    found["n-samples"].get(name, {}).get("effective"), cut,
                )  # fmt: skip
