"""lm-evaluation-harness asks `gpt2kit serve`: `python benchmarks/harness.py MODEL --envs DIR --work DIR`.

The task is LAMBADA's last-word prediction on a few passages of the data that GPT2KIT_DATA names; nothing is downloaded.
`python benchmarks/peers/environments.py --envs DIR lm_eval` makes the harness's own environment. It asks the server
with its adapter local-completions (echo, logprobs). The same passages are then scored by the engine without HTTP and
without the harness: accuracy and perplexity must be the same.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import json
import lzma
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import MODEL, Running, free_port

TASK = "gpt2kit_lambada"
SAME = 1e-6  # relative: sums of the same float32 values, written as decimals on the way
Passage = dict[str, str]  # context, word


def passages(data: Path) -> Iterator[Passage]:
    with lzma.open(data / "text" / "lambada-test.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            context, _, word = json.loads(line)["text"].rpartition(" ")
            yield {"context": context, "word": word}


def write_task(folder: Path, rows: list[Passage]) -> None:
    """A task of the harness with its data beside it. JSON is YAML, too."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{TASK}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{word}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
        "metadata": {"version": 1},
    }
    (folder / f"{TASK}.yaml").write_text(json.dumps(task, indent=1), encoding="utf-8")


def by_harness(arguments: argparse.Namespace, one: Running, positions: int) -> dict[str, float]:
    """Accuracy and perplexity. Raises CalledProcessError; what the harness says goes to a log."""
    work, results = arguments.work / "harness", arguments.work / "harness" / "results.json"
    for old in work.glob("results*.json"):
        old.unlink()
    model = {
        "model": MODEL,
        "base_url": f"http://127.0.0.1:{one.port}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": arguments.model,
        "num_concurrent": arguments.concurrent,
        "max_length": positions,
    }
    command = [
        arguments.envs / "lm_eval" / "bin" / "python", "-m", "lm_eval", "run", "--model", "local-completions",
        "--model_args", ",".join(f"{name}={value}" for name, value in model.items()),
        "--tasks", TASK, "--include_path", work, "--output_path", results,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "cache")}
    with one, open(work / "harness.log", "w") as log:
        subprocess.run(command, env=os.environ | offline, stdout=log, stderr=log, check=True)
    (written,) = work.glob("results*.json")
    found = json.loads(written.read_text(encoding="utf-8"))["results"][TASK]
    return {name: found[f"{name},none"] for name in ("acc", "perplexity")}


def by_engine(engine: Any, rows: list[Passage]) -> dict[str, float]:
    """The same by `Engine.score`: a word counts as found where each of its tokens is the likeliest one."""
    texts = [(engine.tokenizer.encode(row["context"]), _whole(engine, row)) for row in rows]
    sums, found = [], 0
    for (context, _), choices in zip(texts, engine.score([whole for _, whole in texts], logprobs=1), strict=True):
        word = choices[len(context) :]
        sums.append(math.fsum(choice.logprob for choice in word))
        found += all(choice.logprob >= choice.alternatives[0][1] for choice in word)
    return {"acc": found / len(rows), "perplexity": math.exp(-math.fsum(sums) / len(rows))}


def _whole(engine: Any, row: Passage) -> list[int]:
    ids: list[int] = engine.tokenizer.encode(f"{row['context']} {row['word']}")
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--envs", type=Path, required=True, help="made by peers/environments.py")
    parser.add_argument("--work", type=Path, required=True, help="the task, the results and logs are kept here")
    parser.add_argument("--limit", type=int, default=200, help="passages")
    parser.add_argument("--concurrent", type=int, default=8, help="requests at a time")
    parser.add_argument("--precision", default="int8", choices=("int8", "fp32"))
    arguments = parser.parse_args()
    arguments.envs, arguments.work = arguments.envs.absolute(), arguments.work.absolute()
    if "GPT2KIT_DATA" not in os.environ:
        sys.exit("GPT2KIT_DATA must name the folder that holds text/lambada-test.jsonl.xz")
    from gpt2kit.engine import Engine

    with Engine.load(arguments.model, precision=arguments.precision) as engine:
        positions = engine.config.n_positions
        fitting = (row for row in passages(Path(os.environ["GPT2KIT_DATA"])) if len(_whole(engine, row)) < positions)
        rows = [row for _, row in zip(range(arguments.limit), fitting, strict=False)]
        expected = by_engine(engine, rows)
    write_task(arguments.work / "harness", rows)
    port, log = free_port(), arguments.work / "logs" / "harness-server.log"
    flags = ["--port", str(port), "--precision", arguments.precision]
    one = Running(
        "gpt2kit", [sys.executable, "-m", "gpt2kit", "serve", f"{MODEL}={arguments.model}", *flags], port, log, {}
    )
    try:
        found = by_harness(arguments, one, positions)
    finally:
        one.close()
    print(f"LAMBADA, {len(rows)} passages of at most {positions - 1} tokens, {arguments.precision}")
    for name, value in found.items():
        print(f"{name:<12} lm-evaluation-harness {value:.6f}, engine {expected[name]:.6f}")
    if not all(math.isclose(value, expected[name], rel_tol=SAME) for name, value in found.items()):
        sys.exit("they differ")


if __name__ == "__main__":
    main()
