"""The model card (README.md of a model folder): only what config and lineage say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gpt2kit.model.config import GPT2Config

HEADER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, gpt2kit]
---
"""
USE = """\
## Use

```sh
gpt2kit generate PATH "Once"
gpt2kit info PATH
```

```python
import gpt2kit

model, tokenizer = gpt2kit.load("PATH")
```

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```

`PATH` is this folder. `gpt2kit.json` holds the same facts for programs, and the SHA-256 of every file.
"""
TITLES = {"data": "Data", "settings": "Settings", "scores": "Scores"}
SHOWN = {"name", "parents", "notes", "seed", "parameters", "tokenizer", "versions"}


def model_card(config: GPT2Config, lineage: Mapping[str, Any]) -> str:
    """Markdown with a Hugging Face header. The same config and lineage give the same text."""
    name = _text(lineage.get("name") or "GPT-2")
    parts = [
        f"{HEADER}\n# {name}\n",
        f"A GPT-2 language model with {config.parameters:,} parameters: {config.n_layer} layers, "
        f"{config.n_embd} wide, {config.n_head} heads, {config.n_positions} positions, "
        f"{config.vocab_size:,} tokens.\n",
    ]
    facts = {key: lineage[key] for key in ("tokenizer", "seed", "parents", "versions") if key in lineage}
    parts += _table("Origin", facts)
    sections = [*TITLES, *(key for key in lineage if key not in SHOWN and key not in TITLES)]
    for key in sections:
        if lineage.get(key) not in (None, {}, []):
            parts += _table(TITLES.get(key, key), {"": lineage[key]})
    notes = lineage.get("notes")
    if isinstance(notes, list) and notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {_text(note)}" for note in notes) + "\n")
    return "\n".join([*parts, USE])


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {_text(key or title)} | {_text(value)} |" for key, value in _rows(values)]
    return [f"## {_text(title)}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"] if rows else []


def _rows(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A nested value as rows: settings.batch -> 12."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _rows(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value, start=1):
            yield from _rows(item, f"{name}.{index}" if name else str(index))
    else:
        yield name, value


def _text(value: Any) -> str:
    """A value on one line of a Markdown table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
