"""AMICL, and an induction head written down as memories."""

# --8<-- [start:all]
import torch

from resval_lens.analyses.papers.amicl.model import AMICL, AMICLConfig, PairTask, exact
from resval_lens.analyses.papers.memory.model import (
    MemoryTransformer,
    construct,
    memory_config,
    predict,
)
from resval_lens.analyses.papers.memory.tasks.bigrams import tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask

generator = torch.Generator().manual_seed(0)
trials = PairTask(d=100, length=20).draw(1_000, generator)
amicl = AMICL(AMICLConfig(a=2.0, similarity="dot", separation="argmax"))
out, cache = amicl.run_with_cache(trials.inputs)
print(exact(out, trials).float().mean())  # all of them recalled

bigrams = tiny_shakespeare()
size = {"d_model": 256, "n_ctx": 128, "dtype": torch.float64}
config = memory_config(bigrams.d_vocab, "relative", **size)
model = MemoryTransformer(config, generator=generator)
log_bigrams = bigrams.log_conditional(1e-3)
construct(model, log_bigrams, tau1=8.0, tau2=8.0, tau3=12.0, exact=True)
batch = TriggerTask(bigrams, length=128).batch(16, generator)
logits, cache = model.run_with_cache(batch.inputs)
closed = predict(batch.inputs, log_bigrams, 8.0, 8.0, 12.0)
print((logits - closed.logits).abs().max())  # 1e-12: what the equations say
print((logits.argmax(-1) == batch.targets)[batch.in_context].float().mean())
# --8<-- [end:all]
