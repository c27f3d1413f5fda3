"""gpt2kit's engine without its server: what benchmarks/serve.py compares HTTP with.

A command, one line of JSON: {"prompts": [[ids], ...], "tokens": 64}. Its answer: {"seconds": until every stream has its
last token, "first_seconds": until every stream has its first}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpt2kit_engine import load
from worker import Timeline


def main() -> None:
    _, model, variant, threads = sys.argv[1:]  # after the verb: serve
    generate = load(Path(model), variant, int(threads))
    for line in sys.stdin:
        command = json.loads(line)
        timeline = Timeline(len(command["prompts"]))
        generate(command["prompts"], command["tokens"], timeline)
        first, last = (max(times[place] for times in timeline.times) for place in (0, -1))
        print(json.dumps({"seconds": last - timeline.start, "first_seconds": first - timeline.start}), flush=True)


if __name__ == "__main__":
    main()
