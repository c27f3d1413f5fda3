"""Proofs that the model, its cache and its padding are GPT-2's, on tiny random models.

Each proof takes nothing, returns a sentence with what was found, and raises `Failed` naming the likely
mistake. The code under test is looked up in its module when the proof runs, never before.

Tolerances: 1e-9 in float64 (only rounding of another summation order), 2e-5 in float32, relative to the
largest value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.doctor import oracle

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.model.gpt2 import GPT2

TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")  # nn.Linear [out, in] here, [in, out] in the file format
UNTIED = "untied head: the logits do not follow the token embedding wte"
DROPOUT = "dropout left on: two passes of one input differ in evaluation mode"
CACHE = "cache off by one: its length, its positions or the mask over it"
COUNTS = {
    "gpt2_small": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
}
REPORT = "this installation computes wrongly: reinstall gpt2kit and torch; if it stays, report this line"


class Failed(Exception):  # noqa: N818 - a result, not a fault of the program
    """A proof that did not hold: what was found, and what to do."""

    def __init__(self, detail: str, hint: str = REPORT) -> None:
        super().__init__(detail)
        self.detail, self.hint = detail, hint


# ---------------------------------------------------------------- tiny models


def tiny(dtype: str = "float64", seed: int = 0, **fields: Any) -> GPT2:
    """A random model in evaluation mode: 3 heads of 5, so that no two sizes are equal and nothing hides in
    symmetry.

    Weights are large, and gains and biases random, so that every part moves the logits.
    """
    import torch

    from gpt2kit.model import gpt2
    from gpt2kit.model.config import GPT2Config

    shape = {"vocab_size": 23, "n_positions": 16, "n_embd": 15, "n_layer": 2, "n_head": 3}
    model = gpt2.GPT2(GPT2Config(**(shape | fields)))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = 0.4 * rng.standard_normal(parameter.shape)
            values += 1.0 if re.search(r"ln_\w+\.weight$", name) else 0.0
            parameter.copy_(torch.from_numpy(values))
    return model.to(getattr(torch, dtype)).eval()


def weights_of(model: GPT2) -> dict[str, oracle.Array]:
    """The model's weights as the checkpoint names and lays them out; a tied model has no lm_head, whatever it
    holds.
    """
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return {name: value.T if TRANSPOSED.search(name) else value for name, value in weights.items()}


def shape_of(config: Any) -> oracle.Shape:
    return oracle.Shape(
        config.n_head,
        config.activation_function,
        config.layer_norm_epsilon,
        config.scale_attn_weights,
        config.scale_attn_by_inverse_layer_idx,
    )


def random_ids(model: GPT2, *shape: int, seed: int = 1) -> Tensor:
    import torch

    return torch.from_numpy(np.random.default_rng(seed).integers(model.config.vocab_size, size=shape))


def run(model: GPT2, *args: Any, **kwargs: Any) -> oracle.Array:
    """The model's logits as a float64 array."""
    import torch

    with torch.no_grad():
        scores: oracle.Array = model(*args, **kwargs).double().numpy()
    return scores


def require(observed: oracle.Array, expected: oracle.Array, dtype: str, what: str, otherwise: str = "") -> float:
    """The relative error, or Failed with `what` and the likely mistake `otherwise`."""
    found = oracle.error(observed, expected)
    if not found <= TOLERANCE[dtype]:
        likely = f": {otherwise}" if otherwise else ""
        raise Failed(f"{what} differ by {found:.1e} ({dtype}, allowed {TOLERANCE[dtype]:.0e}){likely}")
    return found


# ---------------------------------------------------------------- the forward pass


def prove_logits() -> str:
    """The model file against the oracle: two sizes, every activation and switch of the config, both
    precisions.
    """
    from gpt2kit.model import gpt2

    variants: list[dict[str, Any]] = [{}, {"n_head": 5, "n_layer": 3}, {"n_head": 1, "n_inner": 7}]
    variants += [{"activation_function": name} for name in gpt2.ACTIVATIONS if name != "gelu_new"]
    variants += [{"tie_word_embeddings": False}, {"scale_attn_weights": False}, {"layer_norm_epsilon": 0.1}]
    variants += [{"scale_attn_by_inverse_layer_idx": True}]
    worst = {"float64": 0.0, "float32": 0.0}
    for dtype in worst:
        for fields in variants:
            model = tiny(dtype, **fields)
            ids = random_ids(model, 2, 9)
            observed, weights, shape = run(model, ids), weights_of(model), shape_of(model.config)
            for row in range(2):
                expected = oracle.logits(weights, ids[row].tolist(), shape)
                if not oracle.close(observed[row], expected, TOLERANCE[dtype]):
                    raise Failed(explain(model, ids[row], observed[row], dtype, fields))
                worst[dtype] = max(worst[dtype], oracle.error(observed[row], expected))
    figures = ", ".join(f"{value:.0e} in {dtype}" for dtype, value in worst.items())
    return f"{len(variants)} models agree with the formulas in numpy; largest error {figures}"


def explain(model: GPT2, ids: Tensor, observed: oracle.Array, dtype: str, fields: dict[str, Any]) -> str:
    """Why these logits are wrong, as far as it can be told."""
    weights, shape = weights_of(model), shape_of(model.config)
    expected = oracle.logits(weights, ids.tolist(), shape)
    found = oracle.error(observed, expected)
    where = f"the logits differ from the formulas by {found:.1e} ({dtype}, {fields or 'default'})"
    if not np.array_equal(run(model, ids[None]), run(model, ids[None])):
        return f"{where}: {DROPOUT}"
    if (mistake := oracle.diagnose(observed, weights, ids.tolist(), shape, TOLERANCE[dtype])) is not None:
        return f"{where}; they are those of a model with this mistake: {mistake}"
    if model.config.tie_word_embeddings and not follows_embedding(model, ids):
        return f"{where}: {UNTIED}"
    return f"{where}; {oracle.UNKNOWN}"


def follows_embedding(model: GPT2, ids: Tensor) -> bool:
    """Whether moving the embedding of a token that is not in `ids` moves its logit, and no other."""
    import torch

    unseen = next(t for t in range(model.config.vocab_size) if t not in ids.tolist())
    before = run(model, ids[None])
    with torch.no_grad():
        model.wte.weight[unseen] += 1.0
        after = run(model, ids[None])
        model.wte.weight[unseen] -= 1.0
    moved = np.abs(after - before).max(axis=(0, 1)) > 1e-6
    return bool(moved[unseen]) and int(moved.sum()) == 1


def prove_head() -> str:
    """The head is wte itself: logits follow wte, and a gradient reaches tokens that are not in the input."""
    model = tiny()
    ids = random_ids(model, 8)
    if not follows_embedding(model, ids):
        raise Failed(UNTIED)
    model(ids[None]).sum().backward()
    gradient = model.wte.weight.grad
    if gradient is None or not bool((gradient != 0).any(dim=1).all()):
        raise Failed(f"{UNTIED} (no gradient reaches the rows of wte through it)")
    return "the output matrix is wte, in value and in gradient"


def prove_counts() -> str:
    """The published sizes, by formula and by counting the parameters of a model without storage."""
    import torch

    from gpt2kit.model import config as shapes
    from gpt2kit.model import gpt2

    for name, expected in COUNTS.items():
        config = getattr(shapes, name)()
        if config.parameters != expected:
            raise Failed(f"{name} has {config.parameters:,} parameters by formula, OpenAI's has {expected:,}")
        with torch.device("meta"):
            counted = sum(p.numel() for p in gpt2.GPT2(config).parameters())
        if counted != expected:
            extra = counted - expected == config.vocab_size * config.n_embd
            raise Failed(f"{name} has {counted:,} parameters, OpenAI's has {expected:,}{extra * (': ' + UNTIED)}")
    return ", ".join(f"{name.removeprefix('gpt2_')} {count:,}" for name, count in COUNTS.items())


def prove_causality() -> str:
    """Identity 1: another token t leaves every logit before t bit-equal, and moves those from t on."""
    model = tiny("float32")
    ids = random_ids(model, 1, 9)
    before = run(model, ids)
    for t in range(9):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % model.config.vocab_size
        after = run(model, changed)
        if not np.array_equal(after[0, :t], before[0, :t]):
            raise Failed(f"changing token {t} changes logits before it: {oracle.MISTAKES['no_mask']}")
        if np.array_equal(after[0, t], before[0, t]):
            raise Failed(f"changing token {t} does not change its own logits")
        lifted = [run(model, i, causal=False)[0, 0] for i in (ids, changed)]
        if np.array_equal(*lifted):
            raise Failed(f"with the mask lifted, token 0 does not see token {t}")
    return "logits before a changed token are bit-equal, at each of 9 places"


def prove_no_dropout() -> str:
    """Identity 13: evaluation has no dropout, and each of the three dropouts works in training."""
    import torch

    rates = ("embd_pdrop", "resid_pdrop", "attn_pdrop")
    fields: dict[str, Any] = dict.fromkeys(rates, 0.5)
    model = tiny(**fields)
    ids = random_ids(model, 1, 9)
    if not np.array_equal(run(model, ids), run(model, ids)):
        raise Failed(DROPOUT)
    for rate in rates:
        fields = {**dict.fromkeys(rates, 0.0), rate: 0.5}
        model = tiny(**fields).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if np.array_equal(run(model, ids), run(model, ids)):
                raise Failed(f"{rate} has no effect in training mode")
    return "evaluation is deterministic; all three dropouts act in training"


def prove_heads() -> str:
    """Identity 6: permuting heads in c_attn with the matching columns of c_proj changes nothing."""
    import torch

    model = tiny()
    ids = random_ids(model, 2, 9)
    before = run(model, ids)
    H, D, C = model.config.n_head, model.config.head_size, model.config.n_embd
    order = torch.tensor([2, 0, 1])
    for block in model.h:
        attention: Any = block.attn
        with torch.no_grad():
            weight, bias = attention.c_attn.weight, attention.c_attn.bias
            weight.copy_(weight.view(3, H, D, C)[:, order].reshape(3 * C, C))
            bias.copy_(bias.view(3, H, D)[:, order].reshape(3 * C))
            out = attention.c_proj.weight
            out.copy_(out.view(C, H, D)[:, order].reshape(C, C))
    found = require(
        run(model, ids),
        before,
        "float64",
        "logits after permuting heads",
        oracle.MISTAKES["split_transposed"],
    )
    return f"three heads permuted, logits equal to {found:.0e}"


# ---------------------------------------------------------------- cache and padding


def prove_cache() -> str:
    """Identity 2: token by token, in uneven pieces and in batches, the cached logits are those of one full
    pass.
    """
    worst = 0.0
    for dtype in TOLERANCE:
        model = tiny(dtype)
        ids = random_ids(model, 2, 11)
        full = run(model, ids)
        for pieces in ([1] * 11, [4, 1, 1, 5], [3, 8], [11]):
            found = cached(model, ids, pieces)
            if not oracle.close(found, full, TOLERANCE[dtype]):
                raise Failed(explain_cache(model, ids, found, full, pieces))
            worst = max(worst, oracle.error(found, full))
    return f"cached logits are those of a full pass in four ways of cutting 11 tokens; largest error {worst:.0e}"


def cached(model: GPT2, ids: Tensor, pieces: list[int], positions: Tensor | None = None) -> oracle.Array:
    """The logits of `ids` [B, T], read in `pieces` through one cache."""
    from gpt2kit.model import gpt2

    cache = gpt2.KVCache(model.config, ids.shape[0], ids.shape[1], dtype=model.wte.weight.dtype)
    found, begin = [], 0
    for piece in pieces:
        part = slice(begin, begin + piece)
        at = None if positions is None else positions[:, part]
        found.append(run(model, ids[:, part], cache=cache, positions=at))
        begin += piece
    return np.concatenate(found, axis=1)


def explain_cache(model: GPT2, ids: Tensor, found: oracle.Array, full: oracle.Array, pieces: list[int]) -> str:
    T = ids.shape[1]
    first = next(t for t in range(T) if not oracle.close(found[:, t], full[:, t], TOLERANCE["float32"]))
    where = f"read in pieces of {pieces}, the logits of token {first} differ from a full pass"
    for shift in (-1, 1):
        positions = [0, *(t + shift for t in range(1, T))]
        wrong = oracle.logits(weights_of(model), ids[0].tolist(), shape_of(model.config), positions=positions)
        if oracle.close(found[0], wrong, TOLERANCE["float32"]):
            return f"{where}; they are those of positions {shift:+d}: {CACHE}"
    return f"{where}: {CACHE}"


def prove_padding() -> str:
    """Identity 3: padding of any length and side leaves the real tokens' logits alone, cached or not."""
    import torch

    model = tiny()
    ids = random_ids(model, 1, 6)
    alone = run(model, ids)[0]
    worst = 0.0
    for pad in range(1, 6):
        for left in (pad, 0):
            tokens = torch.zeros(2, 6 + pad, dtype=torch.int64)
            tokens[1] = random_ids(model, 6 + pad, seed=2)  # an unpadded neighbour
            positions = torch.full((2, 6 + pad), -1)
            positions[1] = torch.arange(6 + pad)
            tokens[0, left : left + 6], positions[0, left : left + 6] = ids[0], torch.arange(6)
            for found in (
                run(model, tokens, positions=positions),
                cached(model, tokens, [3 + pad, 1, 2], positions),
                cached(model, tokens, [1] * (6 + pad), positions),
            ):
                side = "left" if left else "right"
                what = f"logits behind {pad} padding tokens on the {side}"
                worst = max(
                    worst,
                    require(found[0, left : left + 6], alone, "float64", what, "padding is attended to"),
                )
                if not np.isfinite(found).all():
                    raise Failed(f"{pad} padding tokens on the {side} give logits that are not finite")
    return f"1 to 5 padding tokens on either side, with and without a cache; largest error {worst:.0e}"


def on_one_thread(proof: Callable[[], str]) -> str:
    """Run a proof on one thread: tiny products gain nothing from more, and busy machines lose much."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return proof()
    finally:
        torch.set_num_threads(before)


PROOFS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("logits equal the formulas", prove_logits),
    ("output head is tied", prove_head),
    ("parameter counts", prove_counts),
    ("the future is masked", prove_causality),
    ("no dropout in evaluation", prove_no_dropout),
    ("heads may be permuted", prove_heads),
    ("cached equals full", prove_cache),
    ("padding changes nothing", prove_padding),
)
