"""transformers on torch: "fp32" or "bf16". A plain greedy loop around the model, which is faster than `generate`."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from worker import Generate, Timeline, run


def load(folder: Path, variant: str, threads: int) -> Generate:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[variant]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int, timeline: Timeline, beams: int = 1) -> None:
        if beams > 1:
            asked = {"num_beams": beams, "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            timeline.whole(
                model.generate(torch.tensor(prompts), pad_token_id=0, **asked)[0, len(prompts[0]) :].tolist()
            )
            return
        ids, cache = torch.tensor(prompts), None
        for _ in range(tokens):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            timeline.step(ids[:, 0].tolist())

    return generate


if __name__ == "__main__":
    run(load)
