"""report.json and report.html: complete, harmless, in both languages, the same bytes for the same report."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="needs the extra 'scores'")

from gpt2kit.errors import UserError
from gpt2kit.scores import names, notes, plots
from gpt2kit.scores.classification import classification, confusion, multilabel, per_class, reliability
from gpt2kit.scores.comparison import compare_all
from gpt2kit.scores.correction import correction
from gpt2kit.scores.diversity import diversity
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.likelihood import likelihood
from gpt2kit.scores.markup import clean, folded, marked
from gpt2kit.scores.page import POLICY, render
from gpt2kit.scores.ranking import ranking
from gpt2kit.scores.report import (
    Beside,
    Example,
    LengthBin,
    LossPoint,
    Report,
    by_length,
    losses_of,
    worst,
    write_report,
)
from gpt2kit.scores.result import Score, Scores

FEW = Resampling(resamples=100)
ATTACK = "</dd><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & {{7*7}} \x00\u202e\ud800"
VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """Every element and attribute of a page, and its text; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def full(evil: str = "") -> Report:
    """A report with every part, and `evil` in every text that a user may have written."""
    labels = [f"pos{evil}", f"neg{evil}", f"neu{evil}"]
    rng = np.random.default_rng(0)
    gold = [labels[i] for i in rng.integers(0, 3, 60)]
    p = rng.dirichlet(np.ones(3), 60)
    p[np.arange(60), [labels.index(label) for label in gold]] += 0.2
    p /= p.sum(1, keepdims=True)
    predicted = [labels[i] for i in p.argmax(1)]
    inputs = [f"{'word ' * (i % 20 + 1)}{evil}" for i in range(60)]
    scores = classification(gold, predicted, p, labels, inputs, FEW)
    other = classification(gold, gold[1:] + gold[:1], p, labels, inputs, FEW)
    right = np.array(predicted) == np.array(gold)
    noted = Scores(scores.items, (f"note {evil}",))
    return Report(
        f"IMDb {evil}",
        noted,
        f"classify{evil}",
        beside=(Beside(f"base {evil}", other, compare_all(other, scores, FEW)),),
        confusion=confusion(gold, predicted, labels),
        per_class=per_class(gold, predicted, labels, FEW),
        reliability=tuple(reliability(p.max(1), right)),
        lengths=by_length(inputs, right, resampling=FEW),
        losses=losses_of([{"event": "step", "step": s, "loss": 3 / s} for s in range(1, 30)]
                         + [{"event": "evaluation", "step": s, "validation_loss": 4 / s} for s in (10, 20)]),
        examples=worst(inputs, gold, predicted, p.max(1), 5),
        example_score=f"P({evil})",
        length_score=f"$x{evil}$",
        diff=True,
        settings={f"key{evil}": evil or 1, "nested": {"rate": 0.1, "list": [1, 2], "rows": [{"a": evil}]}},
        lineage={"parents": [{"folder": f"runs/{evil}"}]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report() -> Report:
    return full()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


def test_markup_in_any_text_of_a_user_stays_text(tmp_path: Path) -> None:
    path = write_report(tmp_path, full(ATTACK))
    raw = path.read_text(encoding="utf-8")
    found = Page(raw)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "\u202e" not in raw
    assert "\x00" not in raw
    assert "alert(1)" in found.text  # shown, not run
    assert "⟨U+202E⟩" in found.text
    # The page has no more and no other elements and attributes than that of a harmless report.
    harmless = Page(render(full("x" * len(ATTACK))))
    assert [name for name, _ in found.attributes if name != "class"] == [
        name for name, _ in harmless.attributes if name != "class"
    ]
    assert [tag for tag in found.tags if tag != "mark"] == [tag for tag in harmless.tags if tag != "mark"]


def test_the_page_is_self_contained_and_forbids_scripts(page: str) -> None:
    found = Page(page)
    assert ("content", POLICY) in found.attributes
    assert "default-src 'none'" in POLICY
    addresses = [value for name, value in found.attributes if name in ("src", "href", "action", "srcset")]
    assert all(value.startswith("#") for value in addresses)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "@import" not in page


def test_every_id_is_of_one_element(page: str) -> None:
    ids = Page(page).ids
    assert len(ids) == len(set(ids)) > 10


def test_everything_is_said_in_english_and_in_chinese(page: str) -> None:
    found = Page(page)
    for english, chinese in (
        ("Accuracy", "准确率"), ("Confusion matrix", "混淆矩阵"), ("Calibration", "校准"), ("confidence", "置信度"),
        ("Worst examples", "最差的例子"), ("Each class", "各类别"), ("How it was measured", "测量方法"),
        ("less is better", "越低越好"),
    ):  # fmt: skip
        assert english in found.text
        assert chinese in found.text
    assert page.count('class="en"') == page.count('class="zh"') > 50
    assert 'id="en" aria-label="English" checked' in page
    assert 'id="zh" aria-label="中文" checked' in render(full(), "zh")


def test_phones_and_dark_rooms_are_thought_of(page: str) -> None:
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme:dark" in page
    assert "max-width:34rem" in page
    svg = page[page.index("<svg") : page.rindex("</svg>")]
    assert not re.findall(r"#[0-9a-fA-F]{6}", svg)  # every colour is the page's, which knows day and night
    assert "width=" not in re.findall(r"<svg[^>]*>", svg)[0]


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, full())
    for file in ("report.json", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.json"]


def test_the_json_holds_the_scores_and_what_the_page_shows(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert Scores.from_dict(saved) == report.scores
    assert saved["format"] == 1
    assert saved["confusion"]["labels"] == ["pos", "neg", "neu"]
    assert sum(map(sum, saved["confusion"]["counts"])) == 60
    assert set(saved["per_class"]["pos"]["f1"]) == {"value", "low", "high", "n", "unit"}
    assert saved["beside"][0]["comparisons"][0]["metric"] == "accuracy"
    assert saved["settings"]["nested"]["rate"] == 0.1
    assert len(saved["examples"]) == 5
    assert sum(row["count"] for row in saved["lengths"]) == 60
    assert sum(row["count"] for row in saved["reliability"]) == 60
    assert saved["losses"][9] == {"step": 10, "training": 0.3, "validation": 0.4}


def test_a_report_of_two_figures_has_no_empty_parts(tmp_path: Path) -> None:
    scores = Scores((Score("perplexity", 23.456, None, None, 900, "perplexity per bpe token", {"counted": "tokens"}),
                     Score("bits_per_byte", 1.234567, 1.23, 1.24, 900, "bits per byte")))  # fmt: skip
    page = render(Report("a", scores))
    found = Page(page)
    assert "<svg" not in page
    assert "<table" not in page.replace('<table class="facts', "")
    assert "900 tokens" in found.text
    assert "23.46" in found.text
    assert "no interval" in found.text
    assert "1.235" in found.text  # the interval is narrower than two decimals show
    assert "perplexity per bpe token" in found.text
    Page(render(Report("", Scores(()))))


def test_a_report_of_a_text_shows_the_text_alone() -> None:
    report = Report(
        "a", Scores(()), "text", examples=(Example("春天来了", "", "", 2.5),), example_score="bits_per_byte"
    )
    found = Page(render(report))
    assert "春天来了" in found.text
    assert "reference" not in found.text
    assert "reference" in Page(render(replace(report, task="classify"))).text


def test_what_cannot_be_compared_is_said_with_the_reason() -> None:
    ours = Score("loss", 3.0, None, None, 9, "nats per bpe token")
    beside = Beside.of("base", Scores((replace(ours, unit="nats per char token"),)), Scores((ours,)))
    report = Report("a", Scores((ours,)), beside=(beside,))
    (saved,) = report.to_dict()["beside"]
    assert saved["comparisons"] == []
    assert "different units: 'nats per char token' and 'nats per bpe token'" in saved["refused"]["loss"]
    text = Page(render(report)).text
    assert "different units" in text
    assert "单位不同，为 nats per char token 与 nats per bpe token" in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, report: Report) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, and a report needs a folder"):
        write_report(tmp_path / "file", report)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_worst_come_first_and_shorter_ones_before_longer() -> None:
    found = worst(["long long", "short", "best"], [["a", "b"], "c", 3], ["x", "y", 4], [0.1, 0.1, 0.9], 2)
    assert found == (Example("short", "c", "y", 0.1), Example("long long", "a / b", "x", 0.1))
    with pytest.raises(UserError, match="2 examples need as many finite values"):
        worst(["a", "b"], ["a", "b"], ["a", "b"], [1.0, float("nan")])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=1, max_size=60), st.integers(1, 10))
def test_groups_of_lengths_hold_every_example_once(rows: list[tuple[int, float]], bins: int) -> None:
    groups = by_length(["x" * length for length, _ in rows], [value for _, value in rows], bins, FEW)
    assert sum(group.count for group in groups) == len(rows)
    assert len(groups) <= bins
    for before, after in itertools.pairwise(groups):
        assert before.longest < after.shortest
    for group in groups:
        inside = [value for length, value in rows if group.shortest <= length <= group.longest]
        assert len(inside) == group.count
        assert group.value == pytest.approx(np.mean(inside))
        assert group.low <= group.value <= group.high


def test_losses_are_read_from_the_rows_of_a_run() -> None:
    rows: list[dict[str, Any]] = [
        {"event": "step", "step": 1, "loss": 3.0, "rate": 0.1},
        {"event": "evaluation", "step": 1, "validation_loss": 3.5, "best": True},
        {"event": "checkpoint", "step": 2, "folder": "x"},
        {"event": "step", "step": 3, "loss": float("nan")},
    ]
    assert losses_of(rows) == (LossPoint(1, 3.0, 3.5),)


def test_what_differs_is_marked_in_both_texts() -> None:
    gold, predicted = marked("我去学校。", "我去学笑。")
    assert gold == '我去学<mark class="missing">校</mark>。'
    assert predicted == '我去学<mark class="extra">笑</mark>。'
    assert marked("a new car", "a <b>") == (
        'a <mark class="missing">new car</mark>',
        'a <mark class="extra">&lt;b&gt;</mark>',
    )
    assert marked("", "x")[1] == "x"


def test_long_texts_are_folded_and_what_is_cut_is_said() -> None:
    assert "<details>" in folded("y" * 700)
    assert folded("y" * 700).count("y") >= 700
    assert "80,000 more characters" in folded("y" * 100_000)
    assert folded("y" * 600) == "y" * 600
    assert "empty" in folded(" ")


def test_controls_and_directions_are_seen() -> None:
    assert clean("a\u202eb\x07\n\t\ud83d<") == "a⟨U+202E⟩b⟨U+0007⟩\n\t\ufffd&lt;"


def test_many_classes_are_summed_up(report: Report) -> None:
    gold = [f"c{i % 50:02}" for i in range(200)]
    page = Page(render(replace(report, confusion=confusion(gold, gold[3:] + gold[:3]))))
    assert "31 others" in page.text
    assert "其余 31 类" in page.text


def test_a_words_own_dollar_signs_are_not_mathematics() -> None:
    svg = plots.length_against_score(
        [LengthBin(1, 5, 9, 0.5, 0.4, 0.6), LengthBin(6, 400, 9, 0.6, 0.5, 0.7)], "$\\frac$"
    )
    assert "frac" not in svg
    assert "mean" in svg


def test_every_metric_has_a_name_in_both_languages() -> None:
    gold = ["a", "b", "a", "b"]
    p = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]]
    facts = {"nll": 9.0, "tokens": 9, "bytes": 9, "characters": 9, "unit": "x", "context": 1, "stride": 1,
             "tokenizer_hash": "", "text_hash": "", "lossless": True, "protocol": ""}  # fmt: skip
    found = {score.name for score in (*classification(gold, gold, p, ["a", "b"], resampling=FEW),
                                      *multilabel([["a"], ["b"]], [["a"], ["a"]], resampling=FEW),
                                      *correction(["ab"], ["ab"], ["aa"], resampling=FEW),
                                      *ranking([[1, 0, 0]], [[1, 0, 0]], resampling=FEW),
                                      *likelihood(facts))}  # fmt: skip
    for name in found | {
        "bleu",
        "chrf",
        "rouge1",
        "rougeLsum",
        "distinct_1",
        "rep_4",
        "self_bleu",
        "fluency",
        "token_f1_answerable",
    }:
        metric = names.describe(name)
        assert metric.title != (name, name), name
        assert all(metric.title), name
        assert all(metric.meaning), name
        assert "\\1" not in "".join(metric.title + metric.meaning)
    assert names.describe("hits@5").title == ("Hits at 5", "前 5 命中率")
    assert names.describe("loss").less_is_better
    assert names.describe("bits_per_byte").less_is_better
    assert not names.describe("accuracy").less_is_better
    assert names.describe("mine").title == ("mine", "mine")


def test_every_note_has_its_chinese() -> None:
    p = [[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]]
    found = [
        *classification(["a", "a"], ["a", "b"], p, ["a", "b", "c"], resampling=FEW).notes,
        *classification(["a", "b"], ["a", "a"], p, ["a", "b", "c"], resampling=FEW).notes,
        *multilabel([[]], [[]], ["a"], resampling=FEW).notes,
        *multilabel([["a"]], [["a"]], ["a", "z"], resampling=FEW).notes,
        *correction(["ab"], ["ab"], ["ab"], resampling=FEW).notes,
        *correction(["ab"], ["aa"], ["aa"], resampling=FEW).notes,
        *ranking([[1, 0]], [[1, 0]], resampling=FEW).notes,
        "BLEU is 0: no generated text has four tokens, so there is no 4-gram to match; read chrF",
        "auroc: no results of single examples: the difference has no interval",
        "bits_per_byte: context differs: 256 and 512",
    ]
    if pytest.importorskip("sacrebleu"):
        found += diversity(["a b"], resampling=FEW).notes
        found += diversity(["a", ""], resampling=FEW).notes
    assert len(found) > 20
    for note in found:
        assert re.search("[\u4e00-\u9fff]", notes.chinese(note)), note
    assert notes.chinese("auroc: no results of single examples: the difference has no interval").startswith(
        "auroc: 没有"
    )
    assert notes.chinese("something new") == "something new"
