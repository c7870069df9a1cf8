"""A pre-norm Transformer with one embedding for sources, targets and outputs, laid out as CTranslate2 computes it.

Parameters have CTranslate2's names ("encoder.layer.0.self_attention.linear.0.weight"), so that export and its
inverse need no table. Sinusoidal positions, ReLU, a final norm on each side.

Sources: Vaswani et al. 2017, "Attention Is All You Need"; Xiong et al. 2020, "On Layer Normalization in the
Transformer Architecture" (pre-norm); Press and Wolf 2017, "Using the Output Embedding to Improve Language Models".
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.recipe.pieces import BOS, EOS
from models.recipe.stream import even

POSITIONS: Final = 512  # dolmetsch reads 200 tokens at most, and writes 400
IGNORED: Final = -100  # by the loss
PAD: Final = EOS  # padding is masked, or ignored by the loss: any id will do


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a network."""

    encoder_layers: int
    decoder_layers: int
    dim: int
    ffn: int
    heads: int
    vocabulary: int


class Norm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta)


class Attention(nn.Module):
    """Attention to itself (queries, keys and values in one matrix), or to the encoder's output."""

    def __init__(self, shape: Shape, cross: bool, dropout: float) -> None:
        super().__init__()
        dim = shape.dim
        self._heads = shape.heads
        self._dropout = dropout
        self.layer_norm = Norm(dim)
        widths = (dim, 2 * dim, dim) if cross else (3 * dim, dim)
        self.linear = nn.ModuleList([nn.Linear(dim, width) for width in widths])

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None, causal: bool = False) -> Tensor:
        h = self.layer_norm(x)
        if memory is None:
            q, k, v = self.linear[0](h).chunk(3, dim=-1)
        else:
            q, (k, v) = self.linear[0](h), self.linear[1](memory).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v), mask, is_causal=causal)
        return x + dropout(self.linear[-1](mixed.transpose(1, 2).flatten(2)), self._dropout, self.training)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self._heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self._dropout = dropout
        self.layer_norm = Norm(shape.dim)
        self.linear_0 = nn.Linear(shape.dim, shape.ffn)
        self.linear_1 = nn.Linear(shape.ffn, shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.linear_0(self.layer_norm(x)))
        return x + dropout(self.linear_1(h), self._dropout, self.training)


class Layer(nn.Module):
    def __init__(self, shape: Shape, decoder: bool, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(shape, cross=False, dropout=dropout)
        self.attention = Attention(shape, cross=True, dropout=dropout) if decoder else None
        self.ffn = FeedForward(shape, dropout)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        """The encoder's layers have no ``memory``; ``mask`` is of the source's padding."""
        if self.attention is None:
            return self.ffn(self.self_attention(x, None, mask))
        x = self.self_attention(x, None, None, causal=True)  # padding stands behind all that is scored
        return self.ffn(self.attention(x, memory, mask))


class Stack(nn.Module):
    def __init__(self, shape: Shape, layers: int, decoder: bool, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(shape, decoder, dropout) for _ in range(layers)])
        self.layer_norm = Norm(shape.dim)
        if decoder:
            self.embeddings = nn.Embedding(shape.vocabulary, shape.dim)
            self.projection = nn.Module()  # its weight is the embedding's
            self.projection.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, memory, mask)
        return self.layer_norm(x)


class Network(nn.Module):
    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self._dropout = dropout
        self.encoder = Stack(shape, shape.encoder_layers, decoder=False, dropout=dropout)
        self.decoder = Stack(shape, shape.decoder_layers, decoder=True, dropout=dropout)
        self.register_buffer("positions", positions(shape.dim), persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith("embeddings.weight"):
                nn.init.normal_(parameter, std=shape.dim**-0.5)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def encode(self, sources: Tensor, mask: Tensor | None) -> Tensor:
        return self.encoder(self._embed(sources), None, mask)

    def decode(self, targets: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of the next token behind each of ``targets``."""
        return self._scores(self.decoder(self._embed(targets), memory, mask))

    def loss(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], smoothing: float) -> Tensor:
        """Cross-entropy, added up over all tokens of ``targets`` behind the start mark."""
        device = self.positions.device
        ids, mask = padded(sources, device)
        given, _ = padded([target[:-1] for target in targets], device)
        wanted, _ = padded([target[1:] for target in targets], device, IGNORED)
        h = self.decoder(self._embed(given), self.encode(ids, mask), mask)
        scores = self._scores(h).flatten(0, 1)
        return F.cross_entropy(
            scores, wanted.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )

    @torch.no_grad()
    def greedy(self, sources: Sequence[Sequence[int]], limit: int = 100) -> list[list[int]]:
        """The most probable next token, again and again: to check an export with, not to be fast."""
        ids, mask = padded(sources, self.positions.device)
        memory = self.encode(ids, mask)
        out = torch.full((len(sources), 1), BOS, device=ids.device)
        for _ in range(limit):
            out = torch.cat([out, self.decode(out, memory, mask)[:, -1:].argmax(-1)], dim=1)
            if (out == EOS).any(dim=1).all():
                break
        rows = out[:, 1:].tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]

    def _scores(self, h: Tensor) -> Tensor:
        return F.linear(h, self.decoder.embeddings.weight, self.decoder.projection.bias)

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.decoder.embeddings(ids) * math.sqrt(self.shape.dim) + self.positions[: ids.shape[1]]
        return dropout(x, self._dropout, self.training)


def positions(dim: int) -> Tensor:
    """Sine and cosine in turn, a row for each position."""
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000) / dim))
    angles = torch.arange(POSITIONS)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def padded(rows: Sequence[Sequence[int]], device: torch.device, filler: int = PAD) -> tuple[Tensor, Tensor | None]:
    """A matrix of ``rows``, and which of it is not padding, shaped for attention (None: all of it)."""
    widest = even(max(map(len, rows)))
    ids = torch.tensor([[*row, *[filler] * (widest - len(row))] for row in rows], device=device)
    if all(len(row) == widest for row in rows):
        return ids, None
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(widest, device=device) < lengths[:, None])[:, None, None, :]


class _Chance(threading.local):
    generator: torch.Generator | None = None  # None: torch's own


_chance = _Chance()


def seed_dropout(seed: int) -> None:
    """Of what this thread computes from now on. What an accelerator draws, any thread's, comes from one source."""
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    _chance.generator = torch.Generator().manual_seed(seed)


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """As torch's, to within 1/256 of the share; on a CPU ten times as fast, with a byte of chance a value."""
    if not training or not share or x.device.type != "cpu":
        return F.dropout(x, share, training)
    chance = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=_chance.generator)
    kept = chance.view(torch.uint8)[: x.numel()].view(x.shape) >= round(256 * share)
    return x * kept.to(x.dtype).mul_(1 / (1 - round(256 * share) / 256))
