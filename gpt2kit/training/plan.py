"""What a run will cost, said before it starts: parameters, memory, operations, time; and a choice of shape for a time.

Formulas count float32 bytes of what autograd keeps; `tests/training/test_plan.py` holds them to within 15 % of measured
peaks.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpt2kit import runtime
from gpt2kit.errors import UserError, unknown
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training import fast, losses, optim
from gpt2kit.training.config import TrainConfig

PROCESS_BYTES = 440_000_000  # Python, torch and Numba, their code, and what the allocator holds back
WORKER_BYTES = 110_000_000  # of a further worker: its own heap
KEPT_PER_CHANNEL = 10  # floats a block keeps for the backward pass, per token and channel, besides the MLP's
FROZEN_PER_CHANNEL = 16  # the same where the weights are frozen and an adapter on every Linear is trained; fitted
BF16_SHARE = 0.93  # of fp32's activations: the Linears' inputs are kept in bf16, the rest in fp32
EFFICIENCY = 0.6  # of the matrix-product speed that a whole step reaches
WORKER_PARAMETERS = 12_000_000  # up to here each core takes a slice of the batch; above, each operation takes all cores
MICRO_TOKENS = 4096  # of one forward pass where the micro-batch is ours to choose
ADAPTER_MICRO_TOKENS = 1536  # the same with frozen weights: 2,048 is as fast and needs a quarter more memory
FILLED_PER_TOKEN = 2  # parameters, besides embeddings, that one token of different text can fill
RATES = {"sgd": 0.1, "rmsprop": 1e-3}  # peaks of optimisers that the presets' rates do not suit
NARROW, NARROW_RATE = 256, 0.03  # Muon's peak for narrow models (LOG.md: 1.859 against 1.907 at 0.02)
SAFE_SHARE = 0.9  # of the free memory that a plan may take
TRAINING_SHARE = 0.95  # of the minutes given; evaluations and checkpoints take the rest


@dataclass(frozen=True)
class Preset:
    """A shape and the training settings that suit it."""

    n_layer: int
    n_head: int
    n_embd: int
    context: int
    batch: int
    learning_rate: float
    matrix_learning_rate: float


PRESETS = {
    "tiny": Preset(4, 4, 128, 128, 32, 4e-3, 0.03),
    "mini": Preset(6, 6, 384, 256, 24, 3e-3, 0.02),
    "small": Preset(12, 12, 768, 1024, 32, 6e-4, 0.01),
    "medium": Preset(24, 16, 1024, 1024, 32, 4e-4, 0.01),
    "large": Preset(36, 20, 1280, 1024, 32, 3e-4, 0.008),
    "xl": Preset(48, 25, 1600, 1024, 32, 2e-4, 0.006),
}


def preset(name: str) -> Preset:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True)
class Plan:
    """The costs of a run. Bytes are of the whole process at its peak."""

    parameters: int
    memory: int
    operations: float  # floating-point operations of the whole run
    tokens: int
    epochs: float
    seconds: float
    reasons: tuple[str, ...] = ()

    def check_memory(self) -> None:
        """Refuse a plan that does not fit, with the flags that change it."""
        check_memory(self.memory)


SMALLER = "use a smaller --preset (or --n-embd, --n-layer), a smaller --context, or --micro-batch 1"


def check_memory(needed: int, hint: str = SMALLER) -> None:
    """Refuse what needs more bytes than are free; `hint` says how to need fewer."""
    available = runtime.available_memory()
    if needed > available * SAFE_SHARE:
        raise UserError(
            f"training needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free", hint=hint
        )


def activation_bytes(model: GPT2Config, context: int, micro_batch: int, bf16: bool) -> int:
    """What one forward pass keeps for the backward pass.

    A block keeps, per token: two LayerNorm inputs and outputs (4C), qkv (3C), attention's output twice (as computed
    and as c_proj's input, 2C), GELU's input and output (2 x inner); about a C is in flight.
    """
    C, inner = model.n_embd, model.inner_size
    per_token = model.n_layer * (KEPT_PER_CHANNEL * C + 2 * inner) + 4 * C
    return int(4 * context * micro_batch * per_token * (BF16_SHARE if bf16 else 1.0))


def memory(model: GPT2Config, config: TrainConfig, bf16: bool = False) -> int:
    """Peak bytes of the process while it trains: the end of a forward pass, with the head's gradient just made."""
    P, V, C = model.parameters, model.vocab_size, model.n_embd
    matrices = model.n_layer * (4 * C**2 + 2 * C * model.inner_size)
    moments = {"adamw": 2 * P, "adam": 2 * P, "sgd": P, "rmsprop": 2 * P, "muon": 2 * P - matrices}
    workers = max(1, config.workers)
    share = -(-config.batch // workers)
    micro = min(config.micro_batch or share, share)
    rows = min(max(1, losses.LOGITS_BYTES // (4 * V)), micro * config.context)
    forward = workers * (activation_bytes(model, config.context, micro, bf16) + 4 * V * (rows + C))
    if workers > 1:  # each worker's gradients live until all are added; with micro-batches its sum and the newest
        forward += 4 * P * workers * (2 if micro < share else 1)
    elif micro < share:  # the sum so far, and the embedding's next gradient
        forward += 4 * (P + V * C)
    process = PROCESS_BYTES + (workers - 1) * WORKER_BYTES
    return process + 4 * (P + moments[config.optimizer]) + max(forward, 4 * (P + V * C))


def adapter_memory(
    model: GPT2Config, config: TrainConfig, trained: int, bf16: bool = False, int8_base: bool = False
) -> int:
    """Peak bytes of a process that trains `trained` parameters beside frozen weights: at most, for any adapter.

    A frozen Linear keeps nothing: of a block there remain, per token, what the LayerNorms, the adapter and attention
    read and give (FROZEN_PER_CHANNEL) and GELU's input. int8 takes a byte for each weight of the blocks' Linears.
    """
    P, V, C, inner = model.parameters, model.vocab_size, model.n_embd, model.inner_size
    matrices = model.n_layer * (4 * C**2 + 2 * C * inner)
    weights = 4 * P - 3 * matrices + 4 * C * inner if int8_base else 4 * P
    workers = max(1, config.workers)
    share = -(-config.batch // workers)
    micro = min(config.micro_batch or share, share)
    per_token = model.n_layer * (FROZEN_PER_CHANNEL * C + inner) + 4 * C
    kept = 4 * config.context * micro * per_token * (BF16_SHARE if bf16 else 1.0)
    rows = 0 if model.labels else min(max(1, losses.LOGITS_BYTES // (4 * V)), micro * config.context)
    process = PROCESS_BYTES + (workers - 1) * WORKER_BYTES
    return int(process + weights + 16 * trained + workers * (kept + 4 * V * rows))


def keeping_memory(model: GPT2Config, config: TrainConfig, trained: int, ewc: bool, lwf: bool) -> int:
    """Bytes that training/continual.py's penalties add, at most.

    EWC: where each trained weight was, what it matters, how far it has moved, and its gradient. Learning without
    forgetting: the model before, and of a chunk of logits the two distributions and what the backward pass keeps.
    """
    chunks = max(1, config.workers) * 3 * losses.LOGITS_BYTES
    teacher = 4 * (model.parameters + model.vocab_size * model.n_embd) + chunks
    return ewc * 16 * trained + lwf * teacher


def operations_per_token(model: GPT2Config, context: int) -> float:
    """Forward and backward: 6 a weight, and attention's two products over half the context."""
    weights = model.parameters - model.n_positions * model.n_embd
    return 6 * weights + 6 * model.n_layer * model.n_embd * context


def choose_workers(parameters: int, batch: int, cores: int) -> int:
    """Threads that slice the batch: all cores for small models, one caller for large ones."""
    return min(cores, batch) if parameters <= WORKER_PARAMETERS else 1


def choose_micro_batch(config: TrainConfig, workers: int, adapter: bool = False) -> int:
    """Sequences in a forward pass: about MICRO_TOKENS tokens, so that activations stay small; fewer for an adapter."""
    share = -(-config.batch // max(1, workers))
    return min(share, max(1, (ADAPTER_MICRO_TOKENS if adapter else MICRO_TOKENS) // config.context))


def tokens_per_second(
    model: GPT2Config, config: TrainConfig, precision: runtime.Precision, seconds: float = 1.5
) -> float:
    """Measure real steps of this shape on random tokens (the compilation of the kernels is not counted)."""
    from gpt2kit.training.loop import Gradients
    from gpt2kit.training.objectives import TextObjective

    check_memory(memory(model, config, precision.dtype == "bf16"))
    device = runtime.device()
    generator = torch.Generator().manual_seed(0)
    network = GPT2(model, generator).to(device)
    fast.accelerate(network, 0, config.dropout, config.attention_dropout, precision.backend)
    network.train()
    optimizers = optim.build(network, config)
    objective = TextObjective(dataclasses.replace(config, objective="next"), model.vocab_size, None)
    gradients = Gradients(network, objective, config, precision, device)
    gradients.share_with(optimizers)
    batch = torch.randint(model.vocab_size, (config.batch, config.context + 1), generator=generator).numpy()
    times: list[float] = []
    try:
        while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
            start = time.perf_counter()
            _, count = gradients(batch, len(times))
            optim.update(optimizers, 1.0, count, config.clip)
            times.append(time.perf_counter() - start)
    finally:
        gradients.close()
    return config.batch * config.context / sorted(times[1:])[(len(times) - 1) // 2]


def make(
    model: GPT2Config, config: TrainConfig, precision: runtime.Precision, train_tokens: int,
    speed: float | None = None, reasons: tuple[str, ...] = (),
) -> Plan:  # fmt: skip
    """The plan of a run. `speed` in tokens/s where it was measured; else from a matrix product on this machine."""
    operations = operations_per_token(model, config.context) * config.tokens
    if speed is None:
        product = runtime.matmul_speed(precision.dtype, precision.backend)
        speed = EFFICIENCY * product / operations_per_token(model, config.context)
    return Plan(
        model.parameters,
        memory(model, config, precision.dtype == "bf16"),
        operations,
        config.tokens,
        config.tokens / max(1, train_tokens),
        config.tokens / speed,
        reasons,
    )


def optimizer_settings(name: str | None) -> dict[str, float]:
    """What the older optimisers need instead of Muon's and AdamW's: their weight decay is L2, so it is off."""
    if name in (None, "muon", "adamw"):
        return {}
    return {"weight_decay": 0.0} | ({"learning_rate": RATES[name]} if name in RATES else {})


def steps_for(minutes: float, speed: float, config: TrainConfig) -> int:
    """Steps that fit into `minutes` at `speed` tokens/s; the loop corrects it as it goes."""
    return max(3, int(speed * minutes * 60 * TRAINING_SHARE / (config.batch * config.context)))


@dataclass(frozen=True)
class Candidate:
    """A shape that `for_minutes` considers."""

    n_layer: int
    n_embd: int
    context: int
    batch: int

    @property
    def n_head(self) -> int:
        return max(1, self.n_embd // 64) if self.n_embd >= 256 else max(1, self.n_embd // 32)


LADDER = (
    Candidate(3, 96, 64, 32),
    Candidate(4, 128, 128, 16),
    Candidate(4, 192, 128, 16),
    Candidate(6, 256, 128, 16),
    Candidate(6, 384, 256, 12),
    Candidate(8, 512, 256, 16),
    Candidate(12, 768, 512, 16),
)


def expected_loss(parameters: int, tokens: float, epochs: float) -> float:
    """A score to rank shapes by, not a forecast: Hoffmann et al. 2022's form, its constants set for this ladder.

    `parameters` without embeddings. Repeated tokens count less and less, and so do parameters beyond what the text can
    fill (the forms and half-lives of Muennighoff et al. 2023: 15 and 5.3).
    """
    unique = tokens / max(1.0, epochs)
    seen = unique * (1 + 15.4 * (1 - math.exp(-(max(1.0, epochs) - 1) / 15.4)))
    filled = FILLED_PER_TOKEN * unique
    excess = max(0.0, parameters / filled - 1)
    useful = min(parameters, filled) + filled * 5.3 * (1 - math.exp(-excess / 5.3))
    return float((2.0e4 / useful) ** 0.35 + (2.5e5 / seen) ** 0.45)


def choose_dropout(epochs: float) -> float:
    """None while the text is new; more the more often it is repeated."""
    return next((rate for limit, rate in ((3, 0.0), (10, 0.1)) if epochs <= limit), 0.2)


def for_minutes(
    minutes: float,
    build: Callable[[Candidate], tuple[GPT2Config, TrainConfig]],
    precision: runtime.Precision,
    train_tokens: int,
    n_head: int | None = None,
) -> tuple[GPT2Config, TrainConfig, float, tuple[str, ...]]:
    """The shape with the lowest expected loss after `minutes`: (model, config with steps, tokens/s, reasons).

    Measures upwards from the smallest shape and stops when the score gets no better.
    """
    best: tuple[float, Candidate, GPT2Config, TrainConfig, float] | None = None
    tried = []
    shapes = [one for one in LADDER if n_head is None or one.n_embd % n_head == 0]
    if not shapes:
        raise UserError(
            f"{n_head} heads divide the width of no shape that is tried", hint="give --n-embd, or no --n-head"
        )
    for candidate in shapes:
        model, config = build(candidate)
        if train_tokens <= config.context:
            continue
        if memory(model, config, precision.dtype == "bf16") > runtime.available_memory() * SAFE_SHARE:
            tried.append(f"{candidate.n_layer} layers x {candidate.n_embd}: does not fit in memory")
            break
        speed = tokens_per_second(model, config, precision, seconds=min(1.5, 0.6 * minutes))
        tokens = speed * minutes * 60 * TRAINING_SHARE
        inner = model.parameters - (model.vocab_size + model.n_positions) * model.n_embd
        score = expected_loss(inner, tokens, tokens / max(1, train_tokens))
        tried.append(f"{candidate.n_layer} layers x {candidate.n_embd}: {speed:,.0f} tokens/s, score {score:.3f}")
        if best is not None and score > 0.99 * best[0]:  # a larger shape must be worth its memory and its speed
            break
        best = (score, candidate, model, config, speed)
    if best is None and tried:
        raise UserError(f"not even {tried[0]}", hint="close other programs, or give a smaller --context or --batch")
    if best is None:
        raise UserError(f"{train_tokens:,} training tokens are too few", hint="take more text")
    _, candidate, model, config, speed = best
    config = dataclasses.replace(config, steps=steps_for(minutes, speed, config))
    reason = f"{candidate.n_layer} layers x {candidate.n_embd} scored best of: " + "; ".join(tried)
    return model, config, speed, (reason,)
