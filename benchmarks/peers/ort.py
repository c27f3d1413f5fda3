"""ONNX Runtime: "int8", exported with keys and values by optimum, then `quantize_dynamic`, a scale a channel.

The loop binds each step's keys and values as the next step's inputs, so that nothing is copied through numpy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from worker import Generate, Timeline, run


def export(folder: Path, target: Path, variant: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from optimum.exporters.onnx import main_export

    assert variant == "int8"
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        main_export(str(folder), work, task="text-generation-with-past", do_validation=False, no_post_process=True)
        plain, prepared = Path(work) / "model.onnx", Path(work) / "prepared.onnx"
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        target.mkdir()
        quantize_dynamic(prepared, target / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)


def load(folder: Path, variant: str, threads: int) -> Generate:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    past = [name for name in shapes if name.startswith("past")]
    present = [value.name for value in session.get_outputs() if value.name != "logits"]

    def generate(prompts: list[list[int]], tokens: int, timeline: Timeline) -> None:
        ids = np.array(prompts, np.int64)
        empty = [np.zeros((len(prompts), shapes[name][1], 0, shapes[name][3]), np.float32) for name in past]
        cache = [onnxruntime.OrtValue.ortvalue_from_numpy(part) for part in empty]
        length = 0
        for _ in range(tokens):
            binding = session.io_binding()
            length += ids.shape[1]
            binding.bind_cpu_input("input_ids", ids)
            if "attention_mask" in shapes:
                binding.bind_cpu_input("attention_mask", np.ones((len(prompts), length), np.int64))
            if "position_ids" in shapes:
                places = np.arange(length - ids.shape[1], length, dtype=np.int64)
                binding.bind_cpu_input("position_ids", np.tile(places, (len(prompts), 1)))
            for name, part in zip(past, cache, strict=True):
                binding.bind_ortvalue_input(name, part)
            for name in ("logits", *present):
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            logits, *cache = binding.get_outputs()
            ids = logits.numpy()[:, -1].argmax(-1)[:, None].astype(np.int64)
            timeline.step(ids[:, 0].tolist())

    return generate


if __name__ == "__main__":
    run(load, export)
