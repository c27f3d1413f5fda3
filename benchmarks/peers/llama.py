"""llama-cpp-python: "q8_0" or "q4_0". The weights are written as GGUF in float32, then llama.cpp's own quantiser runs.

Its default, flash attention, makes prefill faster and decoding after a long prompt slower (45 tokens/s without, 31 with
it, after 512, one thread of a Sapphire Rapids): "q8_0-plain" and "q4_0-plain" do without it. The loop calls the
library's C interface, which decodes several sequences in one batch and is faster than its class `Llama`.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from worker import Generate, Timeline, run

PARTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def export(folder: Path, target: Path, variant: str) -> None:
    plain = target.with_suffix(".f32")
    _write_gguf(folder, plain)
    settings = llama_cpp.llama_model_quantize_default_params()
    kinds = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
    settings.ftype = kinds[variant.removesuffix("-plain")]
    failed = llama_cpp.llama_model_quantize(str(plain).encode(), str(target).encode(), ctypes.byref(settings))
    plain.unlink()
    assert not failed


def _write_gguf(folder: Path, path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _write_tokenizer(writer, folder, config["vocab_size"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        matrix = name.endswith(tuple(f"{part}.weight" for part in PARTS if "ln" not in part))
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(tensor.T) if matrix else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    name = name.removeprefix("transformer.")
    if not name.startswith("h."):
        return name.replace("wte", "token_embd").replace("wpe", "position_embd").replace("ln_f", "output_norm")
    _, layer, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def _write_tokenizer(writer: Any, folder: Path, size: int) -> None:
    import gguf

    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in stored["added_tokens"]}
    words = sorted((stored["model"]["vocab"] | added).items(), key=lambda item: item[1])
    assert [number for _, number in words] == list(range(size))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([kinds[word in added] for word, _ in words])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(max(added.values()))
    writer.add_eos_token_id(max(added.values()))


def load(path: Path, variant: str, threads: int) -> Generate:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    contexts: dict[int, Any] = {}

    def context(streams: int) -> Any:
        if streams not in contexts:
            settings = llama_cpp.llama_context_default_params()
            settings.n_ctx = 1024 if streams == 1 else 256 * streams
            settings.n_seq_max = streams
            settings.n_batch = 1024
            if variant.endswith("-plain"):
                settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            settings.n_threads = settings.n_threads_batch = threads
            contexts[streams] = llama_cpp.llama_init_from_model(model, settings)
        return contexts[streams]

    def generate(prompts: list[list[int]], tokens: int, timeline: Timeline) -> None:
        state = context(len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        batch = llama_cpp.llama_batch_init(max(1024, len(prompts)), 0, 1)
        rows, start = prompts, 0
        for _ in range(tokens):
            rows = [[token] for token in _decode(state, batch, rows, start, size)]
            start = start + 1 if start else len(prompts[0])
            timeline.step([row[0] for row in rows])
        llama_cpp.llama_batch_free(batch)

    return generate


def _decode(state: Any, batch: Any, rows: list[list[int]], start: int, size: int) -> list[int]:
    """The next token of each sequence, after `rows[sequence]` at positions from `start` on."""
    chosen: list[int] = []
    per_call = max(1, 1024 // len(rows[0]))  # sequences that fit into one batch
    for first in range(0, len(rows), per_call):
        wanted, count = [], 0
        for sequence, row in enumerate(rows[first : first + per_call], first):
            for offset, token in enumerate(row):
                batch.token[count] = token
                batch.pos[count] = start + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = offset + 1 == len(row)
                count += 1
            wanted.append(count - 1)
        batch.n_tokens = count
        assert llama_cpp.llama_decode(state, batch) == 0
        for row_number in wanted:
            logits = llama_cpp.llama_get_logits_ith(state, row_number)
            chosen.append(int(np.ctypeslib.as_array(logits, shape=(size,)).argmax()))
    return chosen


if __name__ == "__main__":
    run(load, export)
