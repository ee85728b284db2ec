"""A plain PyTorch Llama with `F.scaled_dot_product_attention`, in the style of nanoGPT.

Pre-norm RMSNorm, rotary positions (halves, as published weights have them), SwiGLU, grouped
queries, no biases, a readout of its own.
The default sizes are those of the small language model of arXiv 2412.15113 section 5.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class LlamaConfig:
    """Sizes of a `Llama`; d_head is d_model // n_head."""

    n_layer: int = 16
    n_head: int = 32
    n_kv_head: int = 8
    d_model: int = 2048
    d_mlp: int = 8192
    n_ctx: int = 4096
    vocab: int = 131_072
    rotary_base: float = 500_000
    eps: float = 1e-5
    stream: str = ""  # "v": each layer adds the values of the layer before


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions, scores divided by sqrt(d_head)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.n_head, config.n_kv_head
        self.d_head = config.d_model // config.n_head
        width = (self.heads + 2 * self.kv_heads) * self.d_head
        self.qkv = nn.Linear(config.d_model, width, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], passed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Output [batch, position, d_model] and own values [batch, kv_head, position, d_head].

        passed: values to add to the own ones, head by head, or None.
        """
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, self.d_head).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        total = v if passed is None else v + passed
        q, k = rotated(q, turn), rotated(k, turn)
        z = F.scaled_dot_product_attention(q, k, total, is_causal=True, enable_gqa=True)
        return self.out(z.transpose(1, 2).reshape(batch, length, -1)), v


class Block(nn.Module):
    """x + attention(norm_1(x)), then x + mlp(norm_2(x)): W_out(silu(W_gate y) · W_in y)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.d_model, config.eps)
        self.attn = Attention(config)
        self.norm_2 = nn.RMSNorm(config.d_model, config.eps)
        self.w_gate = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.w_in = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.w_out = nn.Linear(config.d_mlp, config.d_model, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], passed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Residual stream [batch, position, d_model] and the attention's own values."""
        added, v = self.attn(self.norm_1(x), turn, passed)
        x = x + added
        y = self.norm_2(x)
        return x + self.w_out(F.silu(self.w_gate(y)) * self.w_in(y)), v


class Llama(nn.Module):
    """Tokens and targets in, mean cross entropy out.

    With stream "v", layer l attends with v_l + v_{l-1}, where v_l = W_v norm_1(x_l) is the own,
    un-summed values of layer l (raw carry), the same key-value head of the layer before.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        if config.stream not in ("", "v"):
            raise ValueError(f"stream={config.stream!r}: expected '' or 'v'")
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.d_model, config.eps)
        self.readout = nn.Linear(config.d_model, config.vocab, bias=False)
        d_head = config.d_model // config.n_head
        speeds = config.rotary_base ** (-torch.arange(0, d_head, 2) / d_head)
        angles = torch.outer(torch.arange(config.n_ctx).float(), speeds).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # [position, d_head]
        self.register_buffer("sin", angles.sin(), persistent=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of ``targets``, [batch, position] as the tokens."""
        logits = self.readout(self.hidden(tokens))  # [batch, position, vocab]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the readout reads: the final residual stream, normalised, [batch, position, d]."""
        x = self.embed(tokens)
        turn = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        passed = None
        for block in self.blocks:
            x, v = block(x, turn, passed)
            passed = v if self.config.stream == "v" else None
        return self.norm(x)


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs (i, i + d_head / 2) turned by their position's angle; x is [..., position, d_head]."""
    cos, sin = (table.to(x.dtype) for table in turn)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
