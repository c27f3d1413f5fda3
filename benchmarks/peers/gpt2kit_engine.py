"""gpt2kit's engine: "int8" or "fp32". Options: `speculate`, off unless asked for; `beams`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from worker import Generate, Timeline, run

from gpt2kit.engine import Engine
from gpt2kit.engine.engine import Request
from gpt2kit.model.sampling import SamplingSettings


def load(folder: Path, variant: str, threads: int) -> Generate:
    engine = Engine.load(folder, precision=variant, threads=threads)

    def generate(
        prompts: list[list[int]], tokens: int, timeline: Timeline, speculate: bool = False, beams: int = 1
    ) -> None:
        settings = SamplingSettings(max_tokens=tokens, temperature=0.0, ignore_eos=True, num_beams=beams)
        if beams > 1:
            timeline.whole(list(engine.generate(prompts, settings)[0].token_ids))
            return
        moments: list[list[float]] = [[] for _ in prompts]

        def note(stream: int) -> None:
            moments[stream].append(time.perf_counter())

        handles = [
            engine.submit(Request(prompt, settings, speculate=speculate), notify=partial(note, stream))
            for stream, prompt in enumerate(prompts)
        ]
        for stream, handle in enumerate(handles):
            for token, when in zip(handle.result()[0].token_ids, moments[stream], strict=False):
                timeline.add(stream, token, when)

    return generate


if __name__ == "__main__":
    run(load)
