"""`gpt2kit evaluate --last-word`: what is asked, and that the figures are those of the model file's logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from gpt2kit import cli
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.recipes.last_word import cut, score_last_words

TEXTS = ["red wolf green sheep", "sheep sheep red", "七八红", 'wolf wolf "red."\n', "green  red", " 七 red"]


@pytest.mark.parametrize(
    ("text", "given", "asked"),
    [("the old sea", "the old", " sea"), ("the sea.\n", "the", " sea."), ("春天来", "春天", "来"),
     ("say  so", "say ", " so"), (" sea", " se", "a"), ("春 天", "春", " 天")],
)  # fmt: skip
def test_what_stands_behind_the_last_blank_is_asked_for(text: str, given: str, asked: str) -> None:
    assert cut(text) == (given, asked)


@pytest.mark.parametrize("text", ["", "x", "  x", " \n"])
def test_a_text_of_one_character_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="nothing before its last word"):
        cut(text)


def test_the_figures_are_the_model_files(small: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    model, tokenizer = folder.load(small / "base")
    assert tokenizer is not None
    nats, right = [], []
    for text in TEXTS:
        given, asked = cut(text)
        head, tail = tokenizer.encode(given), tokenizer.encode(asked)
        with torch.no_grad():
            logits = model(torch.tensor([head + tail]))[0, len(head) - 1 : -1].double()
        nats.append(-float(logits.log_softmax(-1)[range(len(tail)), tail].sum()))
        right.append(logits.argmax(-1).tolist() == tail)
    found = score_last_words(small / "base", [str(rows)], precision="fp32")
    assert found["accuracy"].value == pytest.approx(sum(right) / len(right))
    assert found["perplexity"].value == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)


def test_the_command_prints_both_and_names_what_is_idle(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    base = str(small / "base")
    assert cli.main(["evaluate", base, str(rows), "--last-word", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert set(metrics) == {"accuracy", "perplexity"}
    assert metrics["accuracy"]["n"] == len(TEXTS)
    assert cli.main(["evaluate", base, str(rows), "--last-word", "--stride", "4"]) == 2
    assert "--stride says nothing of a last word" in capsys.readouterr().err
    rows.write_text('{"text": "two words"}\n{"text": "x"}\n', encoding="utf-8")
    assert cli.main(["evaluate", base, str(rows), "--last-word"]) == 2
    assert "line 2" in capsys.readouterr().err


def test_a_text_longer_than_the_context_loses_its_beginning(small: Path, tmp_path: Path) -> None:
    rows, notes = tmp_path / "rows.jsonl", list[str]()
    for count, said in ((1, "1 text lost its beginning"), (2, "2 texts lost their beginning")):
        rows.write_text((json.dumps({"text": "wolf sheep " * 60 + "red"}) + "\n") * count, encoding="utf-8")
        score_last_words(small / "base", [str(rows)], note=notes.append)
        assert any(f"{said}: the model has 48 positions" in note for note in notes)


def test_a_long_document_is_asked_once(small: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("wolf sheep. " * 1200 + "red", encoding="utf-8")
    assert score_last_words(small / "base", [str(tmp_path / "long.txt")], precision="fp32")["accuracy"].n == 1
