"""Results on public data, each beside its baselines:

    python benchmarks/results.py --data DIR --models DIR --out DIR [NAME ...]

First `python benchmarks/public_data.py DIR` writes the splits, and `gpt2kit train` the models to start from: DIR/en,
DIR/en-small, DIR/zh, and DIR/modern, which is zh trained further without poems (docs/results.md has the commands). Each
experiment is made of the commands that a user would type; what was made is kept in --out and not made again, so that a
run which was stopped goes on. Prints one Markdown table an experiment and writes OUT/<name>.json.

Baselines: TF-IDF with logistic regression for classes (words and pairs of words; in Chinese characters, pairs and
triples), the nearest training example's completion for texts, and the same GPT-2 without any pre-training. A class's
model is tuned by transformers too, from the same weights on the same rows in the same order.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from public_data import VERSES

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """How a set is learnt. `flags` go to `gpt2kit finetune`; `shown` are the scores of the table.

    `adapters` are methods that are tuned beside all weights, each with its own flags after these. `data` is the set's
    folder where it has another name.
    """

    task: str
    base: str
    flags: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("accuracy", "macro_f1")
    adapters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    data: str = ""

    @property
    def language(self) -> str:
        return "en" if self.base.startswith("en") else "zh"


EXPERIMENTS = {
    "imdb": Experiment(
        "classify",
        "en",
        ("--context", "512", "--epochs", "2", "--evaluate-every", "700"),
        ("accuracy", "macro_f1", "auroc"),
        {"lora": ("--dropout", "0.1")},
    ),
    "imdb-small": Experiment(
        "classify",
        "en-small",
        ("--context", "256", "--epochs", "1", "--evaluate-every", "470"),
        ("accuracy", "macro_f1", "auroc"),
        {"lora": ("--epochs", "3", "--evaluate-every", "469", "--learning-rate", "0.001")},
        data="imdb",
    ),
    "sst2": Experiment("classify", "en", ("--epochs", "2", "--batch", "64")),
    "agnews": Experiment("classify", "en", ("--epochs", "3")),
    "waimai": Experiment(
        "classify", "modern", ("--epochs", "2", "--dropout", "0.2"), ("accuracy", "macro_f1", "auroc")
    ),
    "thucnews": Experiment("classify", "modern", ("--epochs", "2", "--dropout", "0.2")),
    "translation": Experiment("translate", "modern", ("--epochs", "4"), ("bleu", "chrf")),
    "correction": Experiment(
        "correct",
        "modern",
        ("--epochs", "2", "--augment", "noise", "--augment-times", "2"),
        ("detection_f1", "correction_f1", "false_positive_rate"),
    ),
    "cmrc": Experiment("answer", "modern", ("--epochs", "3"), ("exact_match", "token_f1")),
    "chat-en": Experiment("chat", "en", ("--epochs", "5"), ("bleu", "chrf", "rougeL")),
    "chat-zh": Experiment("chat", "modern", ("--epochs", "5"), ("bleu", "chrf", "rougeL")),
    "poems": Experiment("instruct", "zh", ("--epochs", "1"), ("bleu", "chrf")),
}


@dataclass(frozen=True)
class Place:
    data: Path
    models: Path
    out: Path

    def folder(self, name: str) -> Path:
        return self.data / (EXPERIMENTS[name].data or name)

    def rows(self, name: str, part: str) -> list[Row]:
        with (self.folder(name) / f"{part}.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def file(self, name: str, part: str) -> str:
        folder = self.folder(name)
        return str(next(path for path in (folder / f"{part}.jsonl", folder / f"{part}.json") if path.exists()))


def gpt2kit(*arguments: str) -> str:
    """Run a verb; what it says of its progress goes to standard error."""
    print("$ gpt2kit", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "gpt2kit", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def tuned(place: Place, name: str, base: Path, out: Path, experiment: Experiment, more: Sequence[str] = ()) -> float:
    """Tune, or go on tuning, and return the seconds that training has taken over all sittings."""
    if not (out / "gpt2kit.json").exists():
        if (out / "run.json").exists():
            gpt2kit("finetune", "--resume", str(out))
        else:
            gpt2kit(
                *("finetune", place.file(name, "train"), "--from", str(base), "--task", experiment.task),
                *("--out", str(out), *experiment.flags, *more),
            )
    states = sorted((out / "checkpoints").glob("step-*/training_state.json"))
    return float(json.loads(states[-1].read_text(encoding="utf-8"))["seconds"])


def scored(place: Place, name: str, folder: Path) -> Row:
    """{"metrics": …} of the test part, kept beside the model."""
    kept = folder / "test.json"
    if not kept.exists():
        kept.write_text(gpt2kit("evaluate", str(folder), place.file(name, "test"), "--json"), encoding="utf-8")
    found: Row = json.loads(kept.read_text(encoding="utf-8"))
    return found


def untrained(base: Path, out: Path) -> Path:
    """A model folder of the base's shape and tokenizer with the weights that a seed draws."""
    import torch

    from gpt2kit.model import folder
    from gpt2kit.model.gpt2 import GPT2

    if not out.exists():
        model, tokenizer = folder.load(base)
        folder.save(out, GPT2(model.config, torch.Generator().manual_seed(0)), tokenizer, {"name": out.name})
    return out


# ------------------------------------------------------------------------------------------------ baselines


def vectorizer(language: str) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    cut: Row = {"ngram_range": (1, 2)} if language == "en" else {"analyzer": "char", "ngram_range": (1, 3)}
    return TfidfVectorizer(sublinear_tf=True, min_df=2, **cut)


def regression(place: Place, name: str, language: str) -> Row:
    """TF-IDF and logistic regression, C chosen on a tenth of the training part; scored as the models are."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from gpt2kit.scores.classification import classification

    train, test = place.rows(name, "train"), place.rows(name, "test")
    held = np.random.default_rng(0).permutation(len(train))
    cut = len(train) // 10

    def fitted(strength: float, chosen: Any) -> Any:
        model = make_pipeline(vectorizer(language), LogisticRegression(C=strength, max_iter=2000))
        return model.fit([train[i]["text"] for i in chosen], [train[i]["label"] for i in chosen])

    def accuracy(model: Any) -> float:
        rows = [train[i] for i in held[:cut]]
        return float(model.score([row["text"] for row in rows], [row["label"] for row in rows]))

    strengths = (1.0, 4.0, 16.0, 64.0)
    best = max(strengths, key=lambda strength: accuracy(fitted(strength, held[cut:])))
    model = fitted(best, held)
    texts = [row["text"] for row in test]
    shares = model.predict_proba(texts)
    found = classification(
        [row["label"] for row in test], model.predict(texts).tolist(), shares, list(model.classes_), texts
    )
    return {"C": best, **found.to_dict()}


def nearest(place: Place, name: str, language: str, task: str) -> Row:
    """The completion of the training example whose prompt is most like the test's, scored as the task does.

    Of a correction: the sentence as it was.
    """
    from gpt2kit.data.examples import read_examples
    from gpt2kit.tasks import task_from_data
    from gpt2kit.tasks.task import Answer

    train = read_examples([place.file(name, "train")], task)
    test = read_examples([place.file(name, "test")], task)
    if task == "correct":  # leaving every sentence as it is
        return task_from_data(task, train, {}).score(test.rows, [Answer(row.key, {}) for row in test.rows]).to_dict()
    cut = vectorizer(language)
    known = cut.fit_transform([row.key for row in train.rows])
    places = (cut.transform([row.key for row in test.rows]) @ known.T).argmax(axis=1).A1
    answers = [Answer(train.rows[int(i)].target, {}) for i in places]
    return task_from_data(task, train, {}).score(test.rows, answers).to_dict()


# ------------------------------------------------------------------------------------- the same, by transformers


def in_batches(logits: Callable[[Any], Any], ids: Sequence[Sequence[int]]) -> list[Any]:
    """The logits of each text, those of like length computed together."""
    import numpy as np

    from gpt2kit.training.rows import Row, pad

    found: list[Any] = [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for a in range(0, len(order), 64):
        places = order[a : a + 64]
        rows = [Row(np.array(ids[i], np.int64)) for i in places]
        for i, scores in zip(places, logits(pad(rows)).numpy(), strict=True):
            found[i] = scores
    return found


def by_transformers(place: Place, name: str, base: Path, ours: Path) -> Row:
    """GPT2ForSequenceClassification from `base` in a plain loop: the rows, order and settings of the run in `ours`."""
    import torch
    import transformers

    from gpt2kit.data.examples import read_examples
    from gpt2kit.tasks import task_of
    from gpt2kit.tasks.classify import Classify
    from gpt2kit.text.tokenizer import Tokenizer
    from gpt2kit.training import optim
    from gpt2kit.training.config import TrainConfig
    from gpt2kit.training.rows import RowBatches, on_grid, pad
    from gpt2kit.training.stored_rows import load_rows

    record = json.loads((ours / "run.json").read_text(encoding="utf-8"))
    config, task, rows = TrainConfig.from_dict(record["settings"]), task_of(record), load_rows(ours / "rows")
    assert isinstance(task, Classify)
    test = read_examples([place.file(name, "test")], "classify")
    tokenizer = Tokenizer.load(base)
    ids, _ = task.ids(test.rows, tokenizer, config.context)  # type: ignore[arg-type]
    seen = {int(token) for row in rows["train"] for token in row.ids}.union(*ids)
    unseen = next(token for token in range(tokenizer.vocab_size) if token not in seen)  # they look for the last other

    torch.manual_seed(config.seed)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(
        base, num_labels=len(task.labels), pad_token_id=unseen, embd_pdrop=config.dropout,
        resid_pdrop=config.dropout, attn_pdrop=config.attention_dropout,
    ).train()  # fmt: skip

    def logits(given: Any) -> Any:
        padded, lengths = (torch.from_numpy(array) for array in given)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return model(input_ids=padded.masked_fill(~mask, unseen), attention_mask=mask.long()).logits

    groups: tuple[list[Any], list[Any]] = ([], [])
    for parameter in model.parameters():
        groups[parameter.ndim >= 2].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[1], "weight_decay": config.weight_decay}, {"params": groups[0], "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(config.beta1, config.beta2),
    )  # fmt: skip
    start = time.monotonic()
    for step, batch in enumerate(
        RowBatches(on_grid(rows["train"]), config.batch, config.seed).prefetch(0, config.steps)
    ):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * optim.rate(config, step, config.steps)
        labels = torch.tensor([row.labels[0] for row in batch])
        loss = torch.nn.functional.cross_entropy(logits(pad(batch)), labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
    minutes = (time.monotonic() - start) / 60

    model.eval()
    with torch.no_grad():
        scores = in_batches(logits, ids)
    answers = [task.read(one) for one in scores]
    return {"minutes": minutes, **task.score(test.rows, answers).to_dict()}


# ---------------------------------------------------------------------------------------------- experiments


def run(place: Place, name: str) -> list[tuple[str, Row]]:
    """(who, metrics) of a set's baselines and models."""
    experiment, base = EXPERIMENTS[name], place.models / EXPERIMENTS[name].base
    language = experiment.language
    found: list[tuple[str, Row]] = []
    if experiment.task == "classify":
        found.append(("TF-IDF + logistic regression", regression(place, name, language)))
    elif experiment.task != "answer":
        who = "nothing changed" if experiment.task == "correct" else "nearest training example"
        found.append((who, nearest(place, name, language, experiment.task)))
    nothing = untrained(base, place.out / f"untrained-{base.name}")
    for who, parent in (("GPT-2, untrained, tuned", nothing), ("GPT-2, pre-trained, tuned", base)):
        out = place.out / name / parent.name
        seconds = tuned(place, name, parent, out, experiment)
        found.append((who, {"minutes": seconds / 60, **scored(place, name, out)}))
    for method, flags in experiment.adapters.items():
        out = place.out / name / f"{base.name}-{method}"
        seconds = tuned(place, name, base, out, experiment, ("--method", method, *flags))
        found.append((f"GPT-2, pre-trained, {method}", {"minutes": seconds / 60, **scored(place, name, out)}))
    if experiment.task == "classify":
        kept = place.out / name / "transformers.json"
        if not kept.exists():
            kept.write_text(json.dumps(by_transformers(place, name, base, place.out / name / base.name)))
        found.append(("transformers from the same weights", json.loads(kept.read_text(encoding="utf-8"))))
    if name == "poems":
        found[-1][1]["form"] = form(place, place.out / name / base.name)
    return found


def form(place: Place, folder: Path) -> Row:
    """The share of poems whose verses have the right number and length."""
    kept, prompts = folder / "poems.txt", folder / "prompts.txt"
    asked = [row["prompt"] for row in place.rows("poems", "test")][:400]
    if not kept.exists():
        prompts.write_text("\n".join(asked) + "\n", encoding="utf-8")
        kept.write_text(gpt2kit("run", "instruct", str(folder), str(prompts)), encoding="utf-8")
    wanted = {"五言律": (8, 5), "七言律": (8, 7), "五言絕": (4, 5), "七言絕": (4, 7)}
    right = []
    for prompt, poem in zip(asked, kept.read_text(encoding="utf-8").splitlines(), strict=True):
        verses = [verse for verse in VERSES.split(poem) if verse]
        number, length = wanted[prompt[:3]]
        right.append(len(verses) == number and {len(verse) for verse in verses} == {length})
    return {"poems": len(right), "right": sum(right) / len(right)}


def shown(name: str, found: list[tuple[str, Row]]) -> str:
    names = EXPERIMENTS[name].shown
    lines = [f"| {name} | " + " | ".join(names) + " | minutes |", "|---" * (len(names) + 2) + "|"]
    for who, row in found:
        cells = [
            f"{metric['value']:.4f} ({metric['low']:.4f}–{metric['high']:.4f})"
            for metric in (row["metrics"][one] for one in names)
        ]
        minutes = f"{row['minutes']:.0f}" if "minutes" in row else ""
        lines.append(f"| {who} | " + " | ".join(cells) + f" | {minutes} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*EXPERIMENTS, []], metavar="NAME", help="; none: all of them")
    parser.add_argument("--data", type=Path, required=True, help="made by public_data.py")
    parser.add_argument("--models", type=Path, required=True, help="holds en, en-small, zh and modern")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    place = Place(arguments.data, arguments.models, arguments.out)
    place.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or EXPERIMENTS:
        start = time.monotonic()
        found = run(place, name)
        (place.out / f"{name}.json").write_text(json.dumps(dict(found), indent=1) + "\n", encoding="utf-8")
        print(f"{shown(name, found)}\n\n{(time.monotonic() - start) / 60:.0f} minutes in all\n", flush=True)


if __name__ == "__main__":
    main()
