"""A plain PyTorch GPT with `F.scaled_dot_product_attention`, in the style of nanoGPT.

Pre-norm LayerNorm, exact GELU, learned positions, biases everywhere but in the readout; dropout of
the embeddings, the attention pattern and what each layer adds.
The default sizes are those of the toy language model of arXiv 2412.15113 section 4.1.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class GPTConfig:
    """Sizes of a `GPT`; d_head is d_model // n_head."""

    n_layer: int = 8
    n_head: int = 16
    d_model: int = 256
    n_ctx: int = 256
    vocab: int = 50257
    tied: bool = False  # readout matrix is the embedding
    stream: str = ""  # "v": each layer adds the values of the layer before
    dropout: float = 0.0


class Attention(nn.Module):
    """Causal multi-head attention, scores divided by sqrt(d_head)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, passed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output [batch, position, d_model] and own values [batch, head, position, d_head].

        passed: values to add to the own ones, head by head, or None.
        """
        batch, length, d_model = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.n_head, d_model // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [batch, head, position, d_head]
        total = v if passed is None else v + passed
        dropout = self.dropout if self.training else 0.0
        z = F.scaled_dot_product_attention(q, k, total, dropout_p=dropout, is_causal=True)
        added = self.out(z.transpose(1, 2).reshape(batch, length, d_model))
        return F.dropout(added, self.dropout, self.training), v


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.d_model)
        self.mlp = nn.Sequential(
            nn.Linear(config.d_model, 4 * config.d_model),
            nn.GELU(),
            nn.Linear(4 * config.d_model, config.d_model),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, passed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Residual stream [batch, position, d_model] and the attention's own values."""
        added, v = self.attn(self.ln_1(x), passed)
        x = x + added
        return x + self.mlp(self.ln_2(x)), v


class GPT(nn.Module):
    """Tokens and targets in, mean cross entropy out.

    With stream "v", layer l attends with v_l + v_{l-1}, where v_l = W_v ln_1(x_l) + b_v is the own,
    un-summed values of layer l (raw carry), the same head of the layer before.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.stream not in ("", "v"):
            raise ValueError(f"stream={config.stream!r}: expected '' or 'v'")
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.d_model)
        self.pos_embed = nn.Embedding(config.n_ctx, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model)
        self.readout = nn.Linear(config.d_model, config.vocab, bias=False)
        if config.tied:
            self.readout.weight = self.embed.weight
        self.apply(_init)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of ``targets``, [batch, position] as the tokens."""
        logits = self.readout(self.hidden(tokens))  # [batch, position, vocab]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the readout reads: the final residual stream, normalised, [batch, position, d]."""
        x = self.dropout(self.embed(tokens) + self.pos_embed.weight[: tokens.shape[1]])
        passed = None
        for block in self.blocks:
            x, v = block(x, passed)
            passed = v if self.config.stream == "v" else None
        return self.ln_f(x)


def _init(module: nn.Module) -> None:
    """Weights N(0, 0.02²), biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
