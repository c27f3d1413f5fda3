"""Tuning speed and memory, in one run: `python benchmarks/finetune.py [--shape NAME] [--task NAME] [--peft]`.

Ours beside the plain loop around transformers' models: full tuning, LoRA (rank 8 on c_attn), LoRA over an int8 base.
Every contestant is a process of its own that makes the same steps on the same weights and rows (of 1/4 to 4/4 of the
context, rows of like length in a batch), in fp32, AdamW, no dropout; the first losses must agree. They take turns, a
few steps each, so that the machine's moods fall on all. Medians of the turns; tokens are those of the rows, without
padding. `--peft` adds peft's LoRA.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import dataclasses
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2
    from gpt2kit.training.rows import Row, RowBatches

TURNS, FIRST = 7, 10  # turns that count; steps before them, in which the widths of batches are met that come again
BETAS, DECAY, CLIP = (0.9, 0.999), 0.01, 1.0
LABELS = ("no", "yes")
CONTESTANTS = ("full", "lora", "int8-lora", "transformers")
PEFT = "peft-lora"
WANTED = {"transformers": 1.25, "lora": 1.3, "memory": 0.6}


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_head: int
    n_embd: int
    context: int
    vocab_size: int
    batch: int
    steps: int  # in one turn


SHAPES = {
    "4x256": Shape(4, 4, 256, 256, 8192, 16, 4),
    "6x256": Shape(6, 4, 256, 512, 8192, 16, 2),  # that of the models in docs/results.md
    "small": Shape(12, 12, 768, 256, 50257, 4, 1),
}
TASKS = ("classify", "completion")


def batches(shape: Shape, task: str) -> RowBatches:
    """Random rows; half of each is a completion, or it has one of two labels. Id 0 is for padding."""
    import numpy as np

    from gpt2kit.training.rows import POOL, Row, RowBatches, on_grid

    rng = np.random.default_rng(0)
    rows = []
    for length in rng.integers(shape.context // 4, shape.context + 1, 2 * POOL * shape.batch):
        ids = rng.integers(1, shape.vocab_size, length + (task == "completion"))
        rows.append(Row(ids, len(ids) // 2, (int(rng.integers(2)),)))
    return RowBatches(on_grid(rows), shape.batch, 0)


def network(shape: Shape, task: str) -> GPT2:
    """The same weights for all."""
    import torch

    from gpt2kit.model.gpt2 import GPT2, GPT2Config

    config = GPT2Config(
        shape.vocab_size, shape.context + 1, shape.n_embd, shape.n_layer, shape.n_head, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, labels=LABELS if task == "classify" else (),
    )  # fmt: skip
    return GPT2(config, torch.Generator().manual_seed(0))


def ours(name: str, shape: Shape, task: str, threads: int) -> Callable[[Sequence[Row]], float]:
    import torch

    from gpt2kit import peft, runtime
    from gpt2kit.training import fast, optim, plan
    from gpt2kit.training.config import TrainConfig
    from gpt2kit.training.loop import Gradients
    from gpt2kit.training.rows import Classes, Completions

    model = network(shape, task)
    precision = runtime.choose_precision("fp32")
    if name.startswith("int8"):
        peft.quantise_base(model, precision.backend)
    if name.endswith("lora"):
        peft.inject(model, peft.method("lora"))
    workers = plan.choose_workers(model.config.parameters, shape.batch, threads)
    config = TrainConfig(
        batch=shape.batch, context=shape.context, optimizer="adamw", weight_decay=DECAY, beta2=BETAS[1],
        learning_rate=1e-4, workers=workers,
    )  # fmt: skip
    micro = plan.choose_micro_batch(config, workers, adapter=name.endswith("lora"))
    config = dataclasses.replace(config, micro_batch=micro)
    fast.accelerate(model.train(), 0, 0.0, 0.0, precision.backend)
    optimizers = optim.build(model, config)
    objective = Classes() if task == "classify" else Completions()
    gradients = Gradients(model, objective, config, precision, torch.device("cpu"))

    def step(rows: Sequence[Row]) -> float:
        total, count = gradients(rows, 0)
        optim.update(optimizers, 1.0, count, CLIP)
        return total / count

    return step


def theirs(name: str, shape: Shape, task: str) -> Callable[[Sequence[Row]], float]:
    """The loop that transformers' users write."""
    import torch

    from gpt2kit.training.rows import pad

    model = _transformers(network(shape, task), shape, task)
    if name == PEFT:
        import peft

        kind = "SEQ_CLS" if task == "classify" else "CAUSAL_LM"
        model = peft.get_peft_model(model, peft.LoraConfig(
            task_type=kind, r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True,
        ))  # fmt: skip
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=BETAS, weight_decay=DECAY)

    def step(rows: Sequence[Row]) -> float:
        ids, lengths = (torch.from_numpy(array) for array in pad(rows))
        place = torch.arange(ids.shape[1])
        mask = place < lengths[:, None]
        if task == "classify":
            labels = torch.tensor([row.labels[0] for row in rows])
        else:
            starts = torch.tensor([row.start for row in rows])
            labels = ids.masked_fill(~mask | (place < starts[:, None]), -100)
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        return float(loss.detach())

    return step


def _transformers(model: GPT2, shape: Shape, task: str) -> Any:
    import torch
    import transformers

    from gpt2kit.model.headers import HEADS, is_transposed

    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context + 1, n_embd=shape.n_embd, n_layer=shape.n_layer,
        n_head=shape.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, pad_token_id=0, num_labels=len(LABELS),
    )  # fmt: skip
    kind = transformers.GPT2ForSequenceClassification if task == "classify" else transformers.GPT2LMHeadModel
    other = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            target = other.get_parameter(name if name in HEADS else f"transformer.{name}")
            target.copy_(parameter.t() if is_transposed(name) else parameter)
    return other


def serve(name: str, shape: Shape, task: str, threads: int | None) -> None:
    """Say the first loss; then answer "N" with the seconds and the tokens of N steps, and the peak memory in bytes."""
    from gpt2kit import runtime

    runtime.calm_spinning()  # for all, as the command line does it: on a busy machine, spinning is all one would time
    import torch

    threads = runtime.set_threads(threads)
    torch.set_num_threads(threads)  # once more: numba's OpenMP, where it starts, sets it to all cores
    if not name.startswith(("transformers", "peft")):
        runtime.tune_allocator()
    given = batches(shape, task)
    step = theirs(name, shape, task) if name in ("transformers", PEFT) else ours(name, shape, task, threads)
    losses = [step(given.at(i)) for i in range(FIRST)]
    print(losses[0], flush=True)
    done = FIRST
    for line in sys.stdin:
        rows = [given.at(done + i) for i in range(int(line))]
        start = time.perf_counter()
        for batch in rows:
            step(batch)
        seconds = time.perf_counter() - start
        done += len(rows)
        print(seconds, sum(len(row) for batch in rows for row in batch), runtime.peak_memory(), flush=True)


@dataclass
class Contestant:
    name: str
    process: subprocess.Popen[str]
    speeds: list[float] = field(default_factory=list)  # tokens/s, a turn each
    peak: int = 0

    @classmethod
    def start(cls, name: str, shape: str, task: str, threads: int | None) -> Contestant:
        command = [sys.executable, __file__, "--worker", name, "--shape", shape, "--task", task]
        command += [] if threads is None else ["--threads", str(threads)]
        log = None if os.environ.get("LOUD") else subprocess.DEVNULL
        return cls(
            name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        )

    def read(self) -> list[float]:
        assert self.process.stdout is not None
        return [float(word) for word in self.process.stdout.readline().split()]

    def turn(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds, tokens, peak = self.read()
        self.speeds.append(tokens / seconds)
        self.peak = int(peak)


def race(shape_name: str, task: str, names: Sequence[str], threads: int | None) -> None:
    from gpt2kit import peft

    shape = SHAPES[shape_name]
    entered = []
    for name in names:  # one after another: building them takes memory, and the first step compiles
        one = Contestant.start(name, shape_name, task, threads)
        (loss,) = one.read()
        entered.append((one, loss))
    reference = entered[0][1]
    for one, loss in entered:  # int8 rounds the weights
        assert abs(loss - reference) < (0.05 if one.name.startswith("int8") else 1e-4) * reference, (one.name, loss)
    for _ in range(TURNS):
        for one, _ in entered:
            one.turn(shape.steps)
    medians = {one.name: statistics.median(one.speeds) for one, _ in entered}
    peaks = {one.name: one.peak for one, _ in entered}
    model = network(shape, task).config
    share = peft.trainable_parameters(model, peft.method("lora")) / model.parameters
    print(f"\n{task}, {shape_name}: {shape.n_layer} layers x {shape.n_embd}, vocabulary {shape.vocab_size:,}, "
          f"{shape.batch} rows of at most {shape.context} tokens; LoRA trains {share:.2%}")  # fmt: skip
    for one, _ in entered:
        ratio = medians[one.name] / medians["full"]
        print(f"  {one.name:<14}{medians[one.name]:>9,.0f} tokens/s  {ratio:>5.2f} x full   "
              f"peak {one.peak / 1e9:.2f} GB  {one.peak / peaks['full']:.2f} of full")  # fmt: skip
        one.process.communicate()
    over = medians["full"] / medians["transformers"]
    verdicts = {
        f"full over transformers {over:.2f} (wanted {WANTED['transformers']})": over >= WANTED["transformers"],
        f"LoRA over full {medians['lora'] / medians['full']:.2f} (wanted {WANTED['lora']})":
            medians["lora"] / medians["full"] >= WANTED["lora"],
        f"LoRA's memory {peaks['lora'] / peaks['full']:.2f} of full's (wanted {WANTED['memory']})":
            peaks["lora"] / peaks["full"] <= WANTED["memory"],
    }  # fmt: skip
    for verdict, good in verdicts.items():
        print(f"  {'reached' if good else 'MISSED ':<8}{verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="only this one")
    parser.add_argument("--task", choices=TASKS, help="only this one")
    parser.add_argument("--peft", action="store_true", help="with peft's LoRA")
    parser.add_argument("--threads", type=int, help="cores to use; all of them where not given")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, SHAPES[arguments.shape], arguments.task, arguments.threads)
        return
    names = (*CONTESTANTS, *([PEFT] if arguments.peft else []))
    for shape in [arguments.shape] if arguments.shape else SHAPES:
        for task in [arguments.task] if arguments.task else TASKS:
            race(shape, task, names, arguments.threads)


if __name__ == "__main__":
    main()
