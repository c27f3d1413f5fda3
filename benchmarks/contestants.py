"""The training loops that benchmarks/train.py compares: each is built once and then asked for steps.

`ours` is gpt2kit's loop; `transformers-*` a plain loop around GPT2LMHeadModel as its users write it; `nanogpt-*` the
same around nanoGPT's model from a local checkout. Same shape, same AdamW (betas 0.9, 0.95, decay 0.1, clipping at 1),
no dropout.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

RATE, BETAS, DECAY, CLIP = 6e-4, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_head: int
    n_embd: int
    context: int
    vocab_size: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.batch * self.context


SHAPES = {
    "6x384, 12 x 256, 65 symbols": Shape(6, 6, 384, 256, 65, 12),
    "GPT-2 small, 4 x 256": Shape(12, 12, 768, 256, 50257, 4),
    "GPT-2 small, 4 x 512": Shape(12, 12, 768, 512, 50257, 4),
}


def build(name: str, shape: Shape, nanogpt: str | None) -> Callable[[], float]:
    """A function that makes one optimiser step on fixed random tokens and returns its loss."""
    torch.manual_seed(0)
    batch = torch.randint(shape.vocab_size, (shape.batch, shape.context + 1))
    return _ours(shape, batch) if name == "ours" else _peer(name, shape, batch, nanogpt)


def _ours(shape: Shape, batch: torch.Tensor) -> Callable[[], float]:
    from gpt2kit import runtime
    from gpt2kit.model.gpt2 import GPT2, GPT2Config
    from gpt2kit.training import fast, optim, plan
    from gpt2kit.training.config import TrainConfig
    from gpt2kit.training.loop import Gradients
    from gpt2kit.training.objectives import TextObjective

    runtime.set_threads()
    runtime.tune_allocator()
    precision = runtime.choose_precision()
    model_config = GPT2Config(shape.vocab_size, shape.context, shape.n_embd, shape.n_layer, shape.n_head,
                              resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    config = TrainConfig(
        batch=shape.batch, context=shape.context, optimizer="adamw", learning_rate=RATE, weight_decay=DECAY,
        workers=plan.choose_workers(model_config.parameters, shape.batch, runtime.cores()),
    )  # fmt: skip
    model = GPT2(model_config).train()
    fast.accelerate(model, 0, 0.0, 0.0, precision.backend)
    optimizers = optim.build(model, config)
    gradients = Gradients(model, TextObjective(config, shape.vocab_size, None), config, precision, torch.device("cpu"))
    tokens = batch.numpy()

    def step() -> float:
        total, count = gradients(tokens, 0)
        optim.update(optimizers, 1.0, count, CLIP)
        return total / count

    return step


def _peer(name: str, shape: Shape, batch: torch.Tensor, nanogpt: str | None) -> Callable[[], float]:
    library, *modes = name.split("-")
    if library == "transformers":
        import transformers

        transformers.logging.set_verbosity_error()
        model: torch.nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.n_embd, n_layer=shape.n_layer,
            n_head=shape.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
        ))  # fmt: skip
    else:
        assert nanogpt is not None, "nanogpt needs --nanogpt DIR"
        sys.path.insert(0, nanogpt)
        from model import GPT, GPTConfig  # type: ignore[import-not-found]

        with contextlib.redirect_stdout(io.StringIO()):
            model = GPT(GPTConfig(
                block_size=shape.context, vocab_size=shape.vocab_size, n_layer=shape.n_layer, n_head=shape.n_head,
                n_embd=shape.n_embd, dropout=0.0, bias=True,
            ))  # fmt: skip
    model.train()
    call = torch.compile(model) if "compiled" in modes else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in modes):
            loss = call(inputs, labels=inputs).loss if library == "transformers" else call(inputs, targets)[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return step


def serve(name: str, shape: Shape, nanogpt: str | None) -> None:
    """Answer "N" on standard input with the seconds that N steps took, and the peak memory in bytes."""
    from gpt2kit import runtime

    step = build(name, shape, nanogpt)
    step()
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, runtime.peak_memory(), flush=True)
