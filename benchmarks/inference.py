"""Decoding speed beside the CPU engines that people pick: `python benchmarks/inference.py --envs DIR --work DIR`.

First `python benchmarks/peers/environments.py --envs DIR` makes each peer's environment; a peer without one is left
out. Models are seeded random weights of GPT-2's shapes (peers/model.py), exported to every peer's format under --work
once.

Every contestant is a process of its own that times its own work. They take turns, column by column, all of them
stopped but one, so that the machine's moods fall on all; what is printed are medians. Every turn has prompts that no
contestant has seen, the same for all of them in one round, so that no prefix cache can help. Decoding is greedy, and
tokens are compared with those of transformers in fp32.

Columns: decode-32, decode-512 (tokens/s after a prompt of so many tokens), prefill (tokens/s of a prompt of 1,000),
streams-8, streams-32 (tokens/s of so many streams together, prompts of 32), beams-4 (tokens/s of the best of four
beams, of those who have beam search, with the prompt of 32), start (seconds from the start of the process to the first
token), memory (resident MB after decode-512), speculation (ours with and without, on text that repeats its prompt and
on text that does not). Ratios are ours over the best peer of 8 bits or more, and of 4 bits.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).with_name("peers")
VOCABULARY = 50257
COMMON = 512  # the repeating model's tokens
COLUMNS = ("decode-32", "decode-512", "prefill", "streams-8", "streams-32", "beams-4", "start", "memory", "speculation")
STREAMS = {"decode-32": 1, "decode-512": 1, "prefill": 1, "streams-8": 8, "streams-32": 32, "beams-4": 1}
OPTIONS = {"beams-4": {"beams": 4}}
WITH_BEAMS = ("gpt2kit_engine.py", "hf.py", "ct2.py", "ov.py")
PROMPT = {"decode-512": 512, "prefill": 1000}
REFERENCE = "transformers fp32"
YARDSTICK = "llama.cpp Q8_0"  # of start and memory
STARTS, PATIENCE = 3, 20  # rounds of start and memory; seconds


@dataclass(frozen=True)
class Peer:
    name: str
    file: str
    environment: str | None  # None: this interpreter
    variant: str
    bits: int
    export: str | None = None  # what its export is called; None: it reads the model folder


CONTESTANTS = (
    Peer("gpt2kit int8", "gpt2kit_engine.py", None, "int8", 8),
    Peer("gpt2kit fp32", "gpt2kit_engine.py", None, "fp32", 32),
    Peer(REFERENCE, "hf.py", "transformers", "fp32", 32),
    Peer("transformers bf16", "hf.py", "transformers", "bf16", 16),
    Peer("CTranslate2 int8", "ct2.py", "ctranslate2", "int8", 8, "ctranslate2-int8"),
    Peer(YARDSTICK, "llama.py", "llama", "q8_0", 8, "q8_0.gguf"),
    Peer("llama.cpp Q4_0", "llama.py", "llama", "q4_0", 4, "q4_0.gguf"),
    Peer("llama.cpp Q8_0 plain", "llama.py", "llama", "q8_0-plain", 8, "q8_0.gguf"),
    Peer("llama.cpp Q4_0 plain", "llama.py", "llama", "q4_0-plain", 4, "q4_0.gguf"),
    Peer("ONNX Runtime int8", "ort.py", "onnxruntime", "int8", 8, "onnx-int8"),
    Peer("OpenVINO int8", "ov.py", "openvino", "int8", 8, "openvino-int8"),
    Peer("OpenVINO int4", "ov.py", "openvino", "int4", 4, "openvino-int4"),
    Peer("vLLM bf16", "vllm_cpu.py", "vllm", "bf16", 16),
)
OURS = CONTESTANTS[0].name


@dataclass
class Cell:
    """One shape at one number of threads."""

    shape: str
    threads: int
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # column, contestant, a value a round
    agreeing: dict[str, list[int]] = field(default_factory=dict)  # contestant: leading tokens equal to the reference's

    def add(self, column: str, name: str, value: float) -> None:
        self.values.setdefault(column, {}).setdefault(name, []).append(value)

    def median(self, column: str, name: str) -> float | None:
        values = self.values.get(column, {}).get(name)
        return statistics.median(values) if values else None


class Contestant:
    """A peer's process. It is stopped whenever it is not its turn, so that its threads cannot spin."""

    def __init__(self, peer: Peer, model: Path, threads: int, envs: Path, log: Path) -> None:
        self.peer, self.log = peer, log
        command = [str(_python(envs, peer)), str(PEERS / peer.file), "serve", str(model), peer.variant, str(threads)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            text=True, env=_environment(threads), start_new_session=True)  # fmt: skip

    def ask(self, prompts: list[list[int]], tokens: int, **options: Any) -> dict[str, Any]:
        return self.command({"prompts": prompts, "tokens": tokens, "options": options})

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ChildProcessError(f"{self.peer.name} has ended; its last words are in {self.log}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._signal(signal.SIGKILL)  # it keeps nothing, and a stopped process would not hear of less
        self.process.communicate()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


def _python(envs: Path, peer: Peer) -> Path:
    return Path(sys.executable) if peer.environment is None else envs / peer.environment / "bin" / "python"


def _environment(threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    root = str(Path(__file__).resolve().parent.parent)
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": root,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def prepare(peer: Peer, shape: str, envs: Path, work: Path) -> Path:
    """What the peer loads; exported now where it is not there. Raises CalledProcessError."""
    folder = work / shape
    if peer.export is None:
        return folder / "model"
    target = folder / peer.export
    if not target.exists():
        print(f"  exporting for {peer.name}", file=sys.stderr, flush=True)
        part = folder / f"part-{peer.export}"
        command = [str(_python(envs, peer)), str(PEERS / peer.file), "export", str(folder / "model"), str(part)]
        done = subprocess.run([*command, peer.variant], env=_environment(1), capture_output=True, text=True)
        if done.returncode:
            raise ChildProcessError(f"{peer.name} cannot read the model: {done.stderr[-500:]}")
        part.rename(target)
    return target


def make_models(shape: str, work: Path) -> None:
    sys.path.append(str(PEERS))
    import model

    for name, repeating in (("model", False), ("repeats", True)):
        if not (work / shape / name).exists():
            model.make(work / shape / name, shape, repeating)


def prompts(column: str, turn: int, vocabulary: int = VOCABULARY) -> list[list[int]]:
    drawn = random.Random(f"{column} {turn}")
    length = PROMPT.get(column, 32)
    return [[drawn.randrange(vocabulary) for _ in range(length)] for _ in range(STREAMS.get(column, 1))]


def tokens_of(column: str, tokens: int) -> int:
    return 1 if column == "prefill" else tokens


def race(cell: Cell, found: dict[str, Contestant], columns: list[str], rounds: int, tokens: int) -> None:
    """Rounds of one turn each. The round before the first is short and not counted: it warms up."""
    for turn in range(-1, rounds):
        for column in columns:
            reference: list[int] = []
            options = OPTIONS.get(column, {})
            able = [name for name, one in found.items() if not options or one.peer.file in WITH_BEAMS]
            for name in sorted(able, key=lambda name: name != REFERENCE):
                try:
                    if turn < 0:
                        found[name].ask(prompts(column, turn), min(4, tokens_of(column, tokens)), **options)
                        continue
                    found[name].ask(prompts("wake up", turn), 4)
                    answer = found[name].ask(prompts(column, turn), tokens_of(column, tokens), **options)
                except ChildProcessError as error:
                    print(f"  {error}", file=sys.stderr, flush=True)
                    found.pop(name).close()
                    continue
                if column == "prefill":
                    cell.add(column, name, PROMPT[column] / answer["prefill_seconds"])
                elif answer["decoded"]:
                    cell.add(column, name, answer["decoded"] / answer["decode_seconds"])
                else:  # the first stream had ended before the last one began
                    print(f"  {name}, {column}: needs more --tokens", file=sys.stderr, flush=True)
                if column == "decode-32":
                    reference = answer["tokens"][0] if name == REFERENCE else reference
                    if reference:
                        cell.agreeing.setdefault(name, []).append(_common(reference, answer["tokens"][0]))


def _common(one: list[int], other: list[int]) -> int:
    """How many leading tokens are equal."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def fresh(cell: Cell, peers: dict[Peer, Path], envs: Path, logs: Path, rounds: int, tokens: int) -> None:
    """Start and memory, each in a new process. The first start of each is not counted: it warms the disk.

    Who needs more than PATIENCE seconds starts once, and is counted.
    """
    slow: set[Peer] = set()
    for turn in range(-1, rounds):
        for peer, model in peers.items():
            if peer in slow:
                continue
            begun = time.perf_counter()
            one = Contestant(peer, model, cell.threads, envs, logs / f"{peer.name} start.log")
            try:
                one.ask(prompts("start", turn), 1)
                seconds = time.perf_counter() - begun
                if seconds > PATIENCE:
                    slow.add(peer)
                if turn >= 0 or peer in slow:
                    cell.add("start", peer.name, seconds)
                    one.ask(prompts("decode-512", turn), tokens)
                    cell.add("memory", peer.name, one.command({"memory": True})["bytes"] / 1e6)
            except ChildProcessError as error:
                print(f"  {error}", file=sys.stderr, flush=True)
            finally:
                one.close()


def speculation(cell: Cell, envs: Path, folder: Path, logs: Path, rounds: int, tokens: int) -> None:
    """Ours with and without: `repeats` continues a text of the repeating model's own, `plain` random text."""
    for kind, model in (("repeats", folder / "repeats"), ("plain", folder / "model")):
        one = Contestant(CONTESTANTS[0], model, cell.threads, envs, logs / f"speculation {kind}.log")
        try:
            for turn in range(-1, rounds):
                (prompt,) = prompts(kind, turn, COMMON if kind == "repeats" else VOCABULARY)
                if kind == "repeats":
                    prompt += one.ask([prompt], 480)["tokens"][0]
                answers = {}
                for speculate in (False, True) if turn % 2 else (True, False):
                    name = f"{kind} {'on' if speculate else 'off'}"
                    answers[name] = one.ask([prompt], 2 * tokens, speculate=speculate)
                    if turn >= 0:
                        answer = answers[name]
                        cell.add("speculation", name, answer["decoded"] / answer["decode_seconds"])
                texts = [answer["tokens"] for answer in answers.values()]
                assert texts[0] == texts[1], "speculation changed the text"
        except ChildProcessError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
        finally:
            one.close()


def ratios(cell: Cell) -> dict[str, dict[str, float]]:
    """For each column ours over the best peer: of 8 bits and more, of 4 bits; start as a difference in seconds."""
    found: dict[str, dict[str, float]] = {}
    for column, values in cell.values.items():
        ours, other = cell.median(column, OURS), cell.median(column, YARDSTICK)
        if column == "speculation":
            for kind in ("repeats", "plain"):
                on, off = cell.median(column, f"{kind} on"), cell.median(column, f"{kind} off")
                if on and off:
                    found.setdefault(column, {})[kind] = on / off
        elif ours is None:
            continue
        elif column in ("start", "memory"):
            if other:
                found[column] = {YARDSTICK: ours - other if column == "start" else ours / other}
        else:
            for label, small in (("8 bits or more", False), ("4 bits", True)):
                rivals = [peer.name for peer in CONTESTANTS if peer.environment and (peer.bits < 8) == small]
                best = max((statistics.median(values[name]) for name in rivals if name in values), default=None)
                if best:
                    found.setdefault(column, {})[label] = ours / best
    return found


def show(cell: Cell) -> None:
    columns = [column for column in COLUMNS if column in cell.values and column != "speculation"]
    print(f"\nGPT-2 {cell.shape}, {cell.threads} thread{'s' * (cell.threads > 1)}")
    if columns:
        print(f"{'':<30}" + "".join(f"{column:>12}" for column in columns) + f"{'agrees':>12}")
    for peer in CONTESTANTS:
        medians = [cell.median(column, peer.name) for column in columns]
        if any(medians):
            numbers = "".join(
                f"{'–' if m is None else f'{m:,.2f}' if c == 'start' else f'{m:,.0f}':>12}"
                for c, m in zip(columns, medians, strict=True)
            )
            agreeing = cell.agreeing.get(peer.name)
            print(f"{peer.name:<30}{numbers}{statistics.median_low(agreeing) if agreeing else '–':>12}")
    found = ratios(cell)
    for label, title in (("8 bits or more", "ours / best of 8 bits or more"), ("4 bits", "ours / best of 4 bits")):
        line = [f"{found[c][label]:.2f}" if label in found.get(c, {}) else "" for c in columns]
        if any(line):
            print(f"{title:<30}" + "".join(f"{text:>12}" for text in line))
    for column, unit in (("start", "s more"), ("memory", "times")):
        if column in found:
            print(f"{column}: ours against {YARDSTICK}: {found[column][YARDSTICK]:.2f} {unit}")
    for kind, ratio in found.get("speculation", {}).items():
        rates = " / ".join(f"{cell.median('speculation', f'{kind} {one}'):,.0f}" for one in ("on", "off"))
        text = "repeats its prompt" if kind == "repeats" else "does not repeat"
        print(f"speculation, text that {text}: {rates} tokens/s with and without, {ratio:.2f}")
    sys.stdout.flush()


def run(cell: Cell, peers: list[Peer], arguments: argparse.Namespace) -> None:
    make_models(cell.shape, arguments.work)
    logs = arguments.work / "logs" / f"{cell.shape}-{cell.threads}"
    models = {}
    for peer in peers:
        try:
            models[peer] = prepare(peer, cell.shape, arguments.envs, arguments.work)
        except ChildProcessError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
    columns = [column for column in arguments.columns if column in STREAMS]
    found: dict[str, Contestant] = {}
    try:
        for peer, model in models.items() if columns else ():
            one = found[peer.name] = Contestant(peer, model, cell.threads, arguments.envs, logs / f"{peer.name}.log")
            try:
                one.ask(prompts("load", 0), 1)  # one after the other: loading needs the cores, too
            except ChildProcessError as error:
                print(f"  {error}", file=sys.stderr, flush=True)
                found.pop(peer.name).close()
        race(cell, found, columns, arguments.rounds, arguments.tokens)
    finally:
        for one in found.values():
            one.close()
    if "start" in arguments.columns or "memory" in arguments.columns:
        fresh(cell, models, arguments.envs, logs, min(STARTS, arguments.rounds), arguments.tokens)
    if "speculation" in arguments.columns and CONTESTANTS[0] in models:
        speculation(cell, arguments.envs, arguments.work / cell.shape, logs, arguments.rounds, arguments.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True, help="made by peers/environments.py")
    parser.add_argument("--work", type=Path, required=True, help="models, exports and logs are kept here (5 GB)")
    parser.add_argument("--shape", nargs="+", default=["small", "medium"], choices=("small", "medium"))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--peers", nargs="+", metavar="WORD", help="only contestants whose name holds one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64, help="that every stream decodes")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    arguments.envs, arguments.work = arguments.envs.absolute(), arguments.work.absolute()
    words = [word.lower() for word in arguments.peers or [""]]
    peers = [peer for peer in CONTESTANTS if any(word in peer.name.lower() for word in words)]
    for peer in peers[:]:
        if peer.environment and not (arguments.envs / peer.environment / "complete").exists():
            print(f"{peer.name}: no environment, left out")
            peers.remove(peer)
    written = []
    for shape in arguments.shape:
        for threads in arguments.threads:
            cell = Cell(shape, threads)
            try:
                run(cell, peers, arguments)
            finally:  # also when stopped: what is measured is shown
                show(cell)
                medians = {c: {n: statistics.median(v) for n, v in found.items()} for c, found in cell.values.items()}
                written.append({**vars(cell), "medians": medians, "ratios": ratios(cell)})
                if arguments.out:
                    arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
