"""GPT-2, exactly: one stack of pre-LayerNorm blocks, learned positions, a tied head.

Source: Radford et al. 2019; OpenAI's published weights fix what the paper leaves open (tanh GELU, epsilon 1e-5).
Parameter names are the checkpoint's. Linears hold [out, in]; the file format's [in, out] is `weights.py`'s affair.

Shapes: B batch, T time (tokens given now), S all keys (cached + T), C channels, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.config import ACTIVATION_NAMES, GPT2Config

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),  # GPT-2's own
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
assert tuple(ACTIVATIONS) == ACTIVATION_NAMES, "config.py and gpt2.py name other activations"
PADDING = -1  # a position that marks a padding token


class KVCache:
    """Keys and values of the tokens seen so far, preallocated for `capacity` of them.

    `keys[l]` and `values[l]` are [B, H, capacity, D]; the first `length` columns are filled. `padding` [B, capacity]
    is True where a column holds a padding token; None while there has been none.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, config.n_head, capacity, config.head_size)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.capacity = capacity
        self.length = 0
        self.padding: Tensor | None = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, D] behind the filled columns; return all of them, [B, H, S, D]. `advance` moves `length`."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, steps: int) -> None:
        self.length += steps

    def reorder(self, rows: Tensor) -> None:
        """Keep the sequences `rows` [B'], in that order, for beam search and for dropping finished ones."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.padding = None if self.padding is None else self.padding[rows]


class Attention(nn.Module):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)
        self.n_head, self.attn_pdrop, self.layer = config.n_head, config.attn_pdrop, layer
        self.scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x: Tensor, mask: Tensor | None, is_causal: bool, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # each B H T D
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # B H S D
        dropout = self.attn_pdrop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=is_causal, scale=self.scale)  # B H T D
        y = y.transpose(1, 2).reshape(B, T, C)
        out: Tensor = self.dropout(self.c_proj(y))
        return out


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_size)
        self.c_proj = nn.Linear(config.inner_size, config.n_embd)
        self.act = ACTIVATIONS[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(x))))  # B T C
        return out


class Block(nn.Module):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, is_causal: bool, cache: KVCache | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, is_causal, cache)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT2(nn.Module):
    """Token ids to logits. A new model is drawn from `generator` (torch's global one when None)."""

    def __init__(self, config: GPT2Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.labels:
            self.score = nn.Linear(config.n_embd, len(config.labels), bias=False)
        self.reset(generator)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2L)), biases 0, gains 1."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name or name.startswith("ln_f"):
                parameter.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                parameter.normal_(
                    0.0, std / math.sqrt(2 * self.config.n_layer) if residual else std, generator=generator
                )

    @property
    def head(self) -> Tensor:
        """The output matrix [V, C]: the token embedding itself unless the config unties it."""
        return self.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(
        self,
        tokens: Tensor | None = None,
        embeds: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Tokens [B, T] or embeds [B, T, C] -> logits [B, T, V]; logits[:, t] predict token t + 1.

        `positions` [B, T] index wpe (None: they follow the cache); -1 marks padding, which no other token attends to
        and whose own logits mean nothing. `causal=False` lifts the mask, for masked language modelling.
        """
        return F.linear(self.hidden(tokens, embeds, cache, positions, causal), self.head)

    def classify(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Rows [B, T], padded on the right, of `lengths` [B] -> scores [B, labels] of each row's last token.

        Causal attention keeps the padding out of sight, so it may be any token.
        """
        hidden = self.hidden(tokens)  # B T C
        scores: Tensor = self.score(hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1])
        return scores

    def hidden(
        self,
        tokens: Tensor | None = None,
        embeds: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """The last hidden state after ln_f, [B, T, C]; arguments as in `forward`."""
        if (tokens is None) == (embeds is None):
            raise UserError("give either tokens or embeds")
        x: Tensor = self.wte(tokens) if embeds is None else embeds
        T = x.shape[1]
        past = 0 if cache is None else cache.length
        if cache is not None and past + T > cache.capacity:
            raise UserError(f"the cache holds {cache.capacity} tokens, {past} + {T} do not fit")
        mask, is_causal = attention_mask(T, cache, positions, causal, x.device)
        if positions is None:
            if past + T > self.config.n_positions:
                raise UserError(
                    f"{past + T} tokens exceed the model's {self.config.n_positions} positions",
                    hint="cut the input, or generate with a sliding window",
                )
            x = x + self.wpe.weight[past : past + T]
        else:
            if int(positions.max()) >= self.config.n_positions:
                raise UserError(f"position {int(positions.max())} exceeds the model's {self.config.n_positions}")
            x = x + self.wpe(positions.clamp(min=0))
        x = self.drop(x)
        for block in self.h:
            x = block(x, mask, is_causal, cache)
        if cache is not None:
            cache.advance(T)
        out: Tensor = self.ln_f(x)
        return out


def attention_mask(
    T: int, cache: KVCache | None, positions: Tensor | None, causal: bool, device: torch.device
) -> tuple[Tensor | None, bool]:
    """The boolean mask [B or 1, 1, T, S] (True: may attend) that these tokens need, or None, and sdpa's is_causal flag.

    Padding is noted in the cache, so later steps know of it. A padding token attends to itself, which keeps it finite.
    """
    past = 0 if cache is None else cache.length
    padding = None if cache is None else cache.padding
    now = None if positions is None else positions == PADDING  # B T
    if now is not None and bool(now.any()):
        if cache is None:
            padding = now
        elif padding is None:
            padding = cache.padding = torch.zeros(len(now), cache.capacity, dtype=torch.bool, device=device)
    if cache is not None and padding is not None:
        padding[:, past : past + T] = False if now is None else now  # also over what a rewound cache held here
    if padding is None and past == 0:
        return None, causal and T > 1
    if padding is None and (T == 1 or not causal):
        return None, False
    rows = torch.arange(past, past + T, device=device)[:, None]  # T 1
    columns = torch.arange(past + T, device=device)  # S
    mask = (columns <= rows) if causal else torch.ones(T, past + T, dtype=torch.bool, device=device)
    if padding is None:
        return mask[None, None], False
    seen = mask & ~padding[:, None, : past + T] | (columns == rows)  # B T S
    return seen[:, None], False
