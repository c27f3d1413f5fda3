"""Training speed and memory beside transformers and nanoGPT, in one run: `python benchmarks/train.py [--nanogpt DIR]`.

Every contestant is a process of its own; they take turns, a few steps each, so that the machine's moods fall on all.
First each peer's four modes (fp32, bf16 autocast, each eager and compiled) are timed alone; the fastest then races
ours, beside the peers' default (fp32, eager). Medians of five turns; ratios are theirs over ours. `--only
throughput|import|loss` runs a part; "loss" is the time to a validation loss of 1.88 (see time_to_loss.py).
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import json
import os
import statistics
import subprocess
import time
from dataclasses import dataclass

TURNS = 5
MODES = ("", "-bf16", "-compiled", "-bf16-compiled")


@dataclass
class Contestant:
    name: str
    process: subprocess.Popen[str]
    seconds: list[float]
    peak: int = 0

    @classmethod
    def start(cls, name: str, shape: str, nanogpt: str | None) -> Contestant:
        command = [sys.executable, __file__, "--worker", name, "--shape", shape]
        command += ["--nanogpt", nanogpt] if nanogpt else []
        log = subprocess.DEVNULL if os.environ.get("QUIET") else None
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        return cls(name, process, [])

    def ready(self) -> bool:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() == "ready"

    def turn(self, steps: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds, peak = self.process.stdout.readline().split()
        self.seconds.append(float(seconds) / steps)
        self.peak = int(peak)

    def stop(self) -> None:
        self.process.communicate()


def throughput(nanogpt: str | None, only: str | None) -> None:
    from contestants import SHAPES

    from gpt2kit import runtime
    from gpt2kit.model.gpt2 import GPT2Config
    from gpt2kit.training.plan import operations_per_token

    limit = max(runtime.matmul_speed(d, b) for d, b in (("fp32", "aten"), ("fp32", "onednn"), ("bf16", "aten")))
    print(f"the best matrix product here: {limit / 1e9:,.0f} GFLOP/s\n", flush=True)
    for shape_name, shape in SHAPES.items():
        if only not in (None, shape_name):
            continue
        steps = 4 if shape.vocab_size < 1000 else 1
        best = {}
        for library in ("transformers", *(["nanogpt"] if nanogpt else [])):
            alone = {}
            for mode in MODES:
                one = Contestant.start(library + mode, shape_name, nanogpt)
                if one.ready():
                    for _ in range(3):
                        one.turn(steps)
                    alone[one.name] = statistics.median(one.seconds)
                one.stop()
                print(
                    f"  {library + mode}: {shape.tokens / alone.get(one.name, float('nan')):,.0f} tokens/s", flush=True
                )
            best[library] = min(alone, key=lambda name: alone[name])
        names = list(dict.fromkeys(["ours", *best.values(), *best]))
        race = []
        for name in names:  # one at a time: ours times two products at its start, and chooses
            race.append(Contestant.start(name, shape_name, nanogpt))
            assert race[-1].ready(), name
        for _ in range(TURNS):
            for one in race:
                one.turn(steps)
        print(f"\n{shape_name}")
        ours = statistics.median(race[0].seconds)
        model = GPT2Config(shape.vocab_size, shape.context, shape.n_embd, shape.n_layer, shape.n_head)
        reached = operations_per_token(model, shape.context) * shape.tokens / ours / limit
        for one in race:
            median = statistics.median(one.seconds)
            note = (
                f"{reached:.0%} of the product's limit"
                if one.name == "ours"
                else f"{median / ours:.2f} x slower than ours"
            )
            memory = f"peak {one.peak / 1e9:.2f} GB ({one.peak / race[0].peak:.2f})"
            print(f"  {one.name:<28}{shape.tokens / median:>8,.0f} tokens/s   {note:<28}{memory}", flush=True)
            one.stop()
        print(flush=True)


def imports() -> None:
    """Process start to finish, less the interpreter's own."""
    commands = {
        "python": ["-c", "pass"],
        "import gpt2kit": ["-c", "import gpt2kit"],
        "gpt2kit --help": ["-m", "gpt2kit.cli", "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TURNS + 1):
        for name, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{name:<16}{statistics.median(values[1:]):.3f} s")


def main() -> None:
    from contestants import SHAPES, serve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--only", choices=("throughput", "import", "loss"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help="only this one")
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, SHAPES[arguments.shape], arguments.nanogpt)
        return
    print(json.dumps({"python": sys.version.split()[0], "platform": sys.platform}), flush=True)
    if arguments.only in (None, "import"):
        imports()
    if arguments.only in (None, "throughput"):
        throughput(arguments.nanogpt, arguments.shape)
    if arguments.only in (None, "loss"):
        import time_to_loss

        time_to_loss.main(arguments.nanogpt)


if __name__ == "__main__":
    main()
