"""The servers that benchmarks/serve.py compares: how each is started, and a process that runs only in its turn."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import inference
import load

PEERS = Path(__file__).with_name("peers")
MODEL = "bench"  # what every server calls the model
STREAMS = 32  # that every server may compute together
READY = 600.0  # seconds that a server gets to start
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Command = Callable[[Path, Path, int, int], list[str | Path]]  # (environment's bin folder, model, port, threads)


@dataclass(frozen=True)
class Server:
    name: str
    contestant: str  # of inference.CONTESTANTS: whose model file it reads
    environment: str | None  # None: this interpreter
    command: Command
    variables: tuple[tuple[str, str], ...] = ()


def _ours(bin: Path, model: Path, port: int, threads: int) -> list[str | Path]:
    flags = ["--port", str(port), "--threads", str(threads), "--max-batch", str(STREAMS), "--precision", "int8"]
    return [bin / "python", "-m", "gpt2kit", "serve", f"{MODEL}={model}", *flags]


def _llama(bin: Path, model: Path, port: int, threads: int) -> list[str | Path]:
    """It has one slot; without the last flag a new request would break off the one that runs."""
    flags = ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx", "1024", "--port", str(port)]
    module: list[str | Path] = [bin / "python", "-m", "llama_cpp.server", "--model", model, "--model_alias", MODEL]
    return [*module, *flags, "--interrupt_requests", "false"]


def _openvino(bin: Path, model: Path, port: int, threads: int) -> list[str | Path]:
    return [bin / "python", PEERS / "openvino_server.py", model, str(port), str(threads), str(STREAMS)]


def _vllm(bin: Path, model: Path, port: int, threads: int) -> list[str | Path]:
    flags = ["--dtype", "bfloat16", "--max-num-seqs", str(STREAMS), "--no-enable-prefix-caching", "--port", str(port)]
    module: list[str | Path] = [bin / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [*module, "--served-model-name", MODEL, "--disable-log-stats", *flags]


SERVERS = (
    Server("gpt2kit int8", inference.OURS, None, _ours),
    Server("llama-cpp-python Q8_0", "llama.cpp Q8_0", "llama", _llama),
    Server("OpenVINO int8", "OpenVINO int8", "openvino", _openvino),
    Server("vLLM bf16", "vLLM bf16", "vllm", _vllm, (("VLLM_CPU_KVCACHE_SPACE", "2"),)),
)
OURS = SERVERS[0].name


class Running:
    """A server's process. It is stopped whenever it is not its turn, so that its threads cannot spin."""

    def __init__(self, name: str, command: list[str | Path], port: int, log: Path, variables: dict[str, str]) -> None:
        """Start it and wait until it answers. Raises ChildProcessError."""
        self.name, self.port, self.log = name, port, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=_environment() | variables,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ChildProcessError(f"{self.name} has ended; its last words are in {self.log}")
            try:
                with NO_PROXY.open(f"http://{load.HOST}:{self.port}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError as error:
                if getattr(error, "code", 0) == 404:  # it answers, and has no such route
                    return
            time.sleep(0.2)
        raise ChildProcessError(f"{self.name} does not answer; its last words are in {self.log}")

    def __enter__(self) -> Running:
        self._signal(signal.SIGCONT)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGKILL)  # it keeps nothing, and a stopped process would not hear of less
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


def start(server: Server, envs: Path, work: Path, threads: int) -> Running:
    """A server with GPT-2 small, ready and stopped. Raises ChildProcessError."""
    bin = Path(sys.executable).parent if server.environment is None else envs / server.environment / "bin"
    contestant = next(peer for peer in inference.CONTESTANTS if peer.name == server.contestant)
    model, port = inference.prepare(contestant, "small", envs, work), free_port()
    variables = {"OMP_NUM_THREADS": str(threads), **dict(server.variables)}
    log = work / "logs" / "serve" / f"{server.name}.log"
    with Running(server.name, server.command(bin, model, port, threads), port, log, variables) as one:
        return one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((load.HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS_", "GPT2KIT_"))}
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    return kept | quiet | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
