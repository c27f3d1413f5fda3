"""What a model folder holds, apart from the weights' values: found, verified, described; without torch.

The layout is in `folder.py`, which loads and saves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2kit import commit
from gpt2kit.errors import UserError, closest, missing_extra
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.config_file import read_config
from gpt2kit.model.headers import INDEX, WEIGHTS, check_headers, read_headers, weight_files
from gpt2kit.wording import command

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

Value = TypeVar("Value")
CONFIG = "config.json"
ADAPTER_RUN = "adapter run"  # the kind of a folder whose weights are those of a base and of its adapter/ together
READ = (  # what loading reads besides the weights, where it is there
    *(CONFIG, "generation_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "encoder.json", "vocab.bpe"),
)
HUB_FILES = [*READ, "model*.safetensors", INDEX, commit.MANIFEST]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
STEP = re.compile(r"step-(\d+)")
ATTEMPTS = 5  # reads of a folder that another process replaces meanwhile; the next holds it off


def read_steadily(
    path: Path, read: Callable[[list[str]], Value], verify: bool = True, weights: bool = True
) -> tuple[Value, list[str]]:
    """`read(notes)` on one whole version of the folder, and the notes; again where another process replaces it.

    `verify` first checks each file that loading reads against gpt2kit.json, `weights` among them or not.
    """

    def once() -> tuple[Value, list[str]]:
        notes: list[str] = []
        if verify:
            names = read_names(path)
            commit.verify(path, names if weights else [name for name in names if name in READ])
        return read(notes), notes

    for _ in range(ATTEMPTS):
        before = _version(path)
        try:
            found = once()
        except (UserError, OSError):
            if before and _version(path) == before:
                raise
            continue
        if _version(path) == before:
            return found
    with commit.held(path):  # who saves without a pause waits for us once
        return once()


def _version(path: Path) -> tuple[int, ...]:
    """Changes when another process replaces the folder or its manifest. Empty: absent, or away between two renames."""
    commit.recover(path)
    numbers: list[int] = []
    for p in (path, path / commit.MANIFEST):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # exists() first would leave a gap
            stat = p.stat()
            numbers += stat.st_ino, stat.st_mtime_ns
    return tuple(numbers)


def read_names(path: Path) -> list[str]:
    """The files that loading reads: those that are there, and those that the manifest says should be."""
    listed = (commit.manifest(path) or {"files": {}})["files"]
    return [name for name in READ if name in listed or (path / name).exists()] + weight_files(path)


def read_head(path: Path, notes: list[str]) -> tuple[GPT2Config, Tokenizer | None]:
    """Config and tokenizer, checked against each other."""
    from gpt2kit.text.tokenizer import Tokenizer

    for name in READ:
        if (path / name).exists():
            commit.inside(path, name)
    if not (path / CONFIG).exists():
        raise UserError(f"{path} has no {CONFIG}", hint="copy the whole model folder")
    values = commit.read_json(path / CONFIG)
    tokenizer = Tokenizer.find(path)
    try:
        config, found = read_config(values, tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from None
    notes += found
    if tokenizer is not None:
        check_vocabulary(tokenizer, config)
        if tokenizer.vocab_size < config.vocab_size:
            notes.append(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
                "the rest are never used"
            )
    return config, tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: GPT2Config) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}",
            hint="use the tokenizer that the model was trained with",
        )


def resolve(folder: str | Path, allow_hub: bool = False) -> tuple[Path, str | None]:
    """The folder to load, and a note where that is not simply `folder`.

    A run without a final model stands for its best checkpoint (`standing`), or else its last.
    Raises UserError where there is no model, with the next command.
    """
    path = Path(folder)
    for _ in range(ATTEMPTS):
        try:
            if "\0" in str(folder):
                raise OSError("a zero byte in the name")
            before = _version(path)
        except OSError as error:
            raise UserError(f"{str(folder)[:80]!r} is no model folder: {error}") from None
        if not before and allow_hub and HUB_NAME.fullmatch(str(folder)):
            return _from_hub(str(folder)), None
        try:
            return _resolve(path)
        except UserError:
            if _version(path) == before:
                raise
    return _resolve(path)


def _resolve(path: Path) -> tuple[Path, str | None]:
    if path.is_file():
        raise UserError(f"{path} is a file, not a model folder", hint="give the folder that holds config.json")
    if not path.exists():
        raise _absent(path)
    if any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX)):
        return path, None
    checkpoint = _best_checkpoint(path)
    if checkpoint is None and (path / "adapter_config.json").is_file():
        over = command("serve", "BASE", "--adapters", f"mine={path}")
        hint = f"{command('merge', path, '--from', 'BASE', '--out', 'runs/merged')}, or over its base: {over}"
        raise UserError(f"{path} is an adapter, not a model", hint=hint)
    if checkpoint is None:
        raise UserError(f"{path} holds no model", hint=f"make one with: {command('train', 'my.txt', '--out', path)}")
    return checkpoint


def _absent(path: Path) -> UserError:
    parent = path.parent
    near = closest(path.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else None
    make = f"make one with: {command('train', 'my.txt', '--out', path)}"
    hint = f"did you mean {parent / near}?" if near else make
    return UserError(f"there is no model folder {path}", hint=hint)


def _best_checkpoint(run: Path) -> tuple[Path, str] | None:
    """The best complete checkpoint of a run that has not finished, and what to tell the user."""
    folders = {int(m[1]): p for p in _checkpoints(run) if (m := STEP.fullmatch(p.name))}
    standings: dict[int, tuple[float, float]] = {}
    damaged = []
    for step, path in sorted(folders.items()):
        try:
            manifest = commit.verify(path, sizes_only=True)
            if manifest is None:
                raise UserError(f"{path} is not complete")
            scores = manifest.get("scores")
            standings[step] = standing(scores if isinstance(scores, dict) else {})
        except UserError:
            damaged.append(path.name)
    if not standings:
        return None
    step = min(sorted(standings, reverse=True), key=lambda step: standings[step])
    mistakes, loss = standings[step]
    reason = "the last one" if math.isinf(loss) else f"validation loss {loss:.4f}, the lowest"
    if not math.isinf(mistakes):
        reason = f"validation accuracy {-mistakes:.4f}, the highest"
    note = f"{run} has no final model: {folders[step].name} is used ({reason})"
    return folders[step], note + (f"; damaged and left out: {', '.join(damaged)}" if damaged else "")


def standing(scores: Mapping[str, Any]) -> tuple[float, float]:
    """Less is better: a checkpoint's validation accuracy, negative, then its loss; infinite where one is not known.

    A classifier grows surer, of its mistakes too, long after these have stopped becoming fewer: its loss rises
    while its accuracy does not fall (docs/results.md: AG News, IMDb), so the loss alone would keep a worse model.
    """
    accuracy, loss = scores.get("validation_accuracy"), scores.get("validation_loss")
    return (
        -accuracy if isinstance(accuracy, float | int) else math.inf,
        loss if isinstance(loss, float | int) else math.inf,
    )


def _checkpoints(run: Path) -> list[Path]:
    place = run / "checkpoints"
    for left in place.glob(f"{commit.REPLACED}step-*"):
        commit.recover(place / left.name.removeprefix(commit.REPLACED))
    return [path for path in place.glob("step-*") if path.is_dir()]


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"downloading {name!r}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # its own errors and those of three HTTP layers below
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name!r} is no folder here, and the Hugging Face hub did not give it: {reason}",
            hint="check the name and the network, or give the path of a model folder",
        ) from None


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}


def lineage(folder: str | Path) -> dict[str, Any]:
    """What gpt2kit.json says of the folder's origin, without the file list; {} for another tool's folder.

    Of a classifier that another tool tuned config.json tells the task.
    """
    path, _ = resolve(folder)
    return _origin(path, commit.manifest(path))


def _origin(path: Path, manifest: dict[str, Any] | None) -> dict[str, Any]:
    found = {key: value for key, value in (manifest or {}).items() if key not in commit.RESERVED}
    if "task" not in found and (path / CONFIG).exists():
        config, _ = read_config(commit.read_json(path / CONFIG))
        if config.labels:
            found["task"] = classifier(config.labels, config.multi_label)
    return found


def classifier(labels: tuple[str, ...], multi_label: bool) -> dict[str, Any]:
    """A task's record for a head that another tool trained: on texts without an end-of-text token behind them."""
    return {"name": "classify", "labels": list(labels), "multi_label": multi_label, "end": False}


def identity(folder: str | Path) -> str:
    """64 hex digits that name the model: SHA-256 over the hashes of config, weights and tokenizer files.

    For a child's lineage: parents=[{"folder": ..., "hash": identity(folder)}]. The model card does not count.
    """
    path, _ = resolve(folder)
    manifest = commit.manifest(path)
    known = {} if manifest is None else manifest["files"]
    hashes = {
        name: known[name]["sha256"] if name in known else commit.sha256_file(commit.inside(path, name))
        for name in read_names(path)
    }
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def describe(folder: str | Path, verify: bool = True, allow_hub: bool = False) -> dict[str, Any]:
    """What `gpt2kit info` shows; the weights are not loaded.

    Keys: folder, kind, parameters, config, dtypes, tokenizer (or None), bytes (of the model's files),
    verified, lineage, scores, notes. Raises UserError as `load` does, for all but the values of the weights.
    """
    path, chosen = resolve(folder, allow_hub)
    notes = [] if chosen is None else [chosen]
    manifest = commit.manifest(path)
    adapted = manifest is not None and manifest.get("kind") == ADAPTER_RUN
    names = list(manifest["files"]) if manifest is not None and adapted else read_names(path)
    if manifest is None:
        notes.append(f"no {commit.MANIFEST}: made by another tool, and not verified")
    elif verify:
        commit.verify(path, names)
        try:
            commit.verify(path, set(manifest["files"]) - set(names))
        except UserError as error:  # the model card, or files of another stage: the model itself is sound
            notes.append(error.message)
    config, tokenizer = read_head(path, notes)
    found = {} if adapted else read_headers(path)
    if adapted:
        notes.append("its weights are an adapter's, over those of its base: gpt2kit run and gpt2kit evaluate use both")
    else:
        check_headers(found, config, path)
    origin = _origin(path, manifest)
    return {
        "folder": str(path),
        "kind": "model" if manifest is None else manifest.get("kind"),
        "parameters": config.parameters,
        "config": dataclasses.asdict(config),
        "dtypes": sorted({stored.dtype for stored in found.values()}),
        "tokenizer": None if tokenizer is None else tokenizer_facts(tokenizer),
        "bytes": sum((path / name).stat().st_size for name in names),
        "verified": verify and manifest is not None,
        "lineage": origin,
        "scores": origin.get("scores", {}),
        "notes": notes,
    }
