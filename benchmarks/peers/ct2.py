"""CTranslate2: "int8", by its own converter."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
from worker import Generate, Timeline, run


def export(folder: Path, target: Path, variant: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(target), quantization=variant)


def load(folder: Path, variant: str, threads: int) -> Generate:
    generator = ctranslate2.Generator(str(folder), compute_type=variant, intra_threads=threads, inter_threads=1)
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompts: list[list[int]], tokens: int, timeline: Timeline, beams: int = 1) -> None:
        asked = {"max_length": tokens, "min_length": tokens, "include_prompt_in_result": False}
        texts = [[words[token] for token in prompt] for prompt in prompts]
        if beams > 1:
            timeline.whole(generator.generate_batch(texts, beam_size=beams, **asked)[0].sequences_ids[0])
            return

        def note(step: ctranslate2.GenerationStepResult) -> bool:
            timeline.add(step.batch_id, step.token_id)
            return False

        generator.generate_batch(texts, sampling_topk=1, callback=note, **asked)

    return generate


if __name__ == "__main__":
    run(load, export)
