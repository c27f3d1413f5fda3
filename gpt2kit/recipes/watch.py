"""What is looked at while a model trains: its loss on validation windows, and a sample of its writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.packed import open_packed, read_report
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training.config import TrainConfig


def validation_windows(packed: Path, config: TrainConfig) -> NDArray[np.int64] | None:
    """[n, T+1] windows that tile the validation split, or its evenly spread part; None where there is too little."""
    held_out = read_report(packed).splits.get("val")
    if held_out is None or not held_out.tokens:
        return None
    tokens = open_packed(packed, "val")
    n = (len(tokens) - 1) // config.context
    if n < 1:
        return None
    limit = n if config.evaluate_tokens == 0 else max(1, min(n, config.evaluate_tokens // config.context))
    starts = [i * n // limit * config.context for i in range(limit)]
    return np.stack([tokens[a : a + config.context + 1].astype(np.int64) for a in starts])


def sample(network: GPT2, tokenizer: Tokenizer, config: TrainConfig, tokens: int = 64) -> str:
    """A short text of the model as it stands, always with the same seed."""
    from gpt2kit.model.generate import generate
    from gpt2kit.model.sampling import SamplingSettings

    settings = SamplingSettings(max_tokens=tokens, temperature=0.8, top_p=0.95, seed=config.seed)
    prompt = [tokenizer.eot_id if tokenizer.eot_id is not None else 0]
    training = network.training
    network.eval()
    text = generate(network, [prompt], settings, tokenizer=tokenizer)[0][0].text or ""
    network.train(training)
    return text
