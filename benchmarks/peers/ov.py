"""OpenVINO GenAI: "int8" or "int4" weights, compressed by `optimum-cli export` with its defaults."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from worker import Generate, Timeline, run


def export(folder: Path, target: Path, variant: str) -> None:
    command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", folder]
    subprocess.run([*command, "--task", "text-generation-with-past", "--weight-format", variant, target], check=True)


def load(folder: Path, variant: str, threads: int) -> Generate:
    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def generate(prompts: list[list[int]], tokens: int, timeline: Timeline, beams: int = 1) -> None:
        settings = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        settings.num_beams = beams
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        result = pipeline.generate(inputs, settings)
        if beams > 1:
            timeline.whole(result.tokens[0])
            return
        end = time.perf_counter()
        moments = result.perf_metrics.raw_metrics.m_new_token_times  # milliseconds, one a step of the whole batch
        for step, moment in enumerate(moments):
            timeline.step([found[step] for found in result.tokens], end - (moments[-1] - moment) / 1e3)

    return generate


if __name__ == "__main__":
    run(load, export)
