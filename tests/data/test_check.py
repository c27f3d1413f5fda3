"""What `check` says of labelled data: every fault that is planted is found, counted and shown with its place."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2kit.data.check import Finding, Report, check
from gpt2kit.data.examples import (
    AnswerRow,
    ChatRow,
    Examples,
    LabelRow,
    Message,
    PairRow,
    PreferenceRow,
    RankRow,
    Row,
    TextRow,
    Where,
    read_examples,
)
from gpt2kit.errors import UserError

DATA = os.environ.get("GPT2KIT_DATA")
WORDS = ["river", "stone", "lamp", "paper", "winter", "garden", "bridge", "candle", "forest", "harbour"]


def label_rows(texts: list[str], labels: list[str], file: str = "a.csv") -> list[Row]:
    pairs = enumerate(zip(texts, labels, strict=True), 2)
    return [LabelRow(text, (label,), where=Where(file, n)) for n, (text, label) in pairs]


def clean_rows(count: int = 40, file: str = "a.csv", start: int = 0) -> list[Row]:
    texts = [f"{WORDS[n % 10]} number {n}" for n in range(start, start + count)]
    return label_rows(texts, ["neg", "pos"] * (count // 2), file)


def examples(rows: list[Row]) -> Examples:
    return Examples(rows, type(rows[0]))


def found(report: Report, kind: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_clean_data_has_no_findings() -> None:
    report = check(examples(clean_rows()))
    assert report.findings == []
    assert report.usable
    assert report.rows == {"train": 40}
    assert report.labels == {"train": {"neg": 20, "pos": 20}}


def test_the_balance_is_counted_and_the_commonest_label_scored() -> None:
    rows = label_rows([f"{WORDS[n % 10]} {n}" for n in range(40)], ["pos"] * 30 + ["neg"] * 10)
    report = check(examples(rows))
    assert report.labels == {"train": {"neg": 10, "pos": 30}}
    (line,) = [line for line in report.lines() if line.startswith("train: 40 labelled texts")]
    assert line.endswith("neg 10 (25.0 %), pos 30 (75.0 %); always 'pos' would be right in 75.0 %")


def test_lengths_are_in_tokens_against_the_context(tokenizer) -> None:
    rows = label_rows([f"{n:03}" + "x" * n for n in range(100)], ["a", "b"] * 50)
    report = check(examples(rows), tokenizer, context=52)
    lengths = report.lengths["train"]
    assert (lengths.unit, lengths.longest, lengths.longest_at) == ("tokens", 102, "a.csv line 101")
    assert lengths.percentiles == {5: 7, 50: 52, 90: 92, 95: 97, 99: 101}
    assert lengths.mean == 52.5
    assert lengths.over == 50
    message = "train: longer than the context of 52 tokens, they would be cut: 50 of 100 rows (50.0 %)"
    assert found(report, "too-long").message == message


def test_lengths_count_tokens_not_characters(tokenizer) -> None:
    report = check(examples(label_rows(["好" * 10, "ab"], ["a", "b"])), tokenizer)
    assert report.lengths["train"].longest == 30
    assert check(examples(label_rows(["好" * 10, "ab"], ["a", "b"]))).lengths["train"].longest == 10


def test_passages_beyond_the_context_are_read_in_windows(tokenizer) -> None:
    rows: list[Row] = [AnswerRow("q", "p" * 50, (("p", 0),), where=Where("a"))]
    assert "they are read in windows" in found(check(examples(rows), tokenizer, 20), "too-long").message


@pytest.mark.parametrize(
    ("row", "length"),
    [
        (TextRow("abc", where=Where("a")), 3),
        (LabelRow("abc", ("x",), "de", where=Where("a")), 6),
        (PairRow("abc", "de", where=Where("a")), 6),
        (ChatRow((Message("user", "abc"), Message("assistant", "de")), where=Where("a")), 6),
        (AnswerRow("abc", "de", (("d", 0), ("de", 0)), where=Where("a")), 9),
        (PreferenceRow((Message("user", "abc"),), "d", "ef", where=Where("a")), 6),
        (RankRow("abc", ("h",), ("d", "ef"), 0, where=Where("a")), 8),
    ],
)
def test_every_family_has_a_length(row: Row, length: int) -> None:
    report = check(examples([row]))
    assert report.lengths["train"].longest == length
    json.dumps(report.to_dict())


def test_exact_duplicates_are_found_with_both_places() -> None:
    rows = clean_rows()
    rows += [replace(rows[3], where=Where("b.csv", 9)), replace(rows[3], where=Where("b.csv", 10))]
    report = check(examples(rows))
    assert kinds(report) == ["duplicates"]
    finding = found(report, "duplicates")
    assert (finding.count, finding.level, finding.split) == (2, "warning", "train")
    assert finding.places == tuple(f"b.csv line {n} = a.csv line 5: paper number 3" for n in (9, 10))


def test_near_duplicates_differ_in_case_width_spaces_or_punctuation() -> None:
    rows = clean_rows()
    rows += label_rows(["RIVER  number 0!", "Ｒiver number ０", "river number 00"], ["neg", "neg", "neg"])
    report = check(examples(rows))
    assert found(report, "near-duplicates").count == 2
    assert "duplicates" not in kinds(report)


def test_texts_of_marks_alone_are_not_all_alike() -> None:
    rows = clean_rows() + label_rows(["!!!", "???", "。。。"], ["pos", "neg", "neg"])
    assert check(examples(rows)).findings == []


def test_one_text_with_two_labels_is_a_conflict() -> None:
    rows = clean_rows()
    rows += label_rows(["River number 0."], ["pos"], "b.csv")
    report = check(examples(rows))
    assert kinds(report) == ["conflicts"]
    finding = found(report, "conflicts")
    assert finding.count == 1
    assert finding.places == ("b.csv line 2 = a.csv line 2: River number 0.",)


def test_a_row_that_comes_again_is_no_second_conflict() -> None:
    rows = clean_rows() + label_rows(["river number 0", "river number 0"], ["pos", "pos"], "b.csv")
    report = check(examples(rows))
    assert {finding.kind: finding.count for finding in report.findings} == {"duplicates": 1, "conflicts": 1}


def test_labels_that_differ_in_marks_are_two() -> None:
    rows = label_rows([f"{w} {n}" for n in range(20) for w in ("c", "d")], ["C", "C++"] * 20)
    rows += label_rows(["c 0"], ["C++"], "b.csv")
    assert "conflicts" in kinds(check(examples(rows)))


def test_a_prompt_with_several_completions_is_only_a_note() -> None:
    rows: list[Row] = [PairRow("Hi.", answer, where=Where("a", n)) for n, answer in enumerate(["嗨。", "你好。"])]
    report = check(examples(rows))
    assert [(f.kind, f.level) for f in report.findings] == [("several-targets", "note")]


def test_completions_that_are_their_prompt_are_counted() -> None:
    rows: list[Row] = [PairRow(f"s{n}", f"s{n % 3}", where=Where("a", n)) for n in range(5)]
    assert found(check(examples(rows)), "unchanged").count == 3


def test_leaks_between_splits_are_found_near_and_exact() -> None:
    train, test = clean_rows(), clean_rows(10, "t.csv", start=100)
    test += label_rows(["river number 0", "STONE number 1"], ["neg", "neg"], "t.csv")
    report = check(examples(train), splits={"test": examples(test)})
    finding = found(report, "leaks")
    assert (finding.split, finding.count) == ("test", 2)
    assert "is also in train (1 exactly): 2 of 12 rows (16.7 %)" in finding.message
    assert finding.places == (
        "t.csv line 2 = a.csv line 2: river number 0",
        "t.csv line 3 = a.csv line 3: STONE number 1",
    )


def test_questions_on_a_passage_of_training_are_a_leak() -> None:
    train: list[Row] = [AnswerRow("q1", "The passage.", (), where=Where("a", 1))]
    test: list[Row] = [AnswerRow("q2", "The passage.", (), where=Where("b", 1))]
    assert found(check(examples(train), splits={"test": examples(test)}), "leaks").count == 1


def test_splits_that_the_data_names_are_checked_against_each_other() -> None:
    rows = clean_rows()
    rows.append(replace(rows[0], split="validation", where=Where("v", 1)))
    rows.append(replace(rows[1], split="test", where=Where("t", 1)))
    report = check(examples(rows))
    assert report.rows == {"train": 40, "validation": 1, "test": 1}
    assert {finding.split for finding in report.findings if finding.kind == "leaks"} == {"validation", "test"}


def test_labels_that_training_never_saw_are_an_error() -> None:
    test = label_rows(["some new text", "another one"], ["Pos", "pos"], "t.csv")
    report = check(examples(clean_rows()), splits={"test": examples(test)})
    finding = found(report, "unseen-labels")
    assert (finding.level, finding.count) == ("error", 1)
    assert "('Pos')" in finding.message
    assert not report.usable
    assert report.labels["test"] == {"pos": 1, "Pos": 1}


def test_one_label_is_an_error() -> None:
    report = check(examples(label_rows([f"{w} {n}" for n, w in enumerate(WORDS)], ["x"] * 10)))
    assert [(f.kind, f.level) for f in report.findings] == [("one-label", "error")]


def test_several_labels_a_row_are_no_error() -> None:
    rows: list[Row] = [LabelRow(f"{w} text", ("x",) * (n % 2), where=Where("a", n)) for n, w in enumerate(WORDS)]
    assert check(examples(rows)).usable


def test_rare_labels_and_imbalance_are_said() -> None:
    rows = label_rows([f"{WORDS[n % 10]} {n}" for n in range(100)], ["a"] * 91 + ["b"] * 9)
    report = check(examples(rows))
    assert "labels with fewer than 10 rows: 'b' 9" in found(report, "rare-labels").message
    assert found(report, "unbalanced").level == "note"


def test_a_field_that_is_hardly_the_label_is_doubted() -> None:
    rows = label_rows([f"{WORDS[n % 10]} {n}" for n in range(30)], [f"label {n}" for n in range(30)])
    assert "hardly the field of the labels" in found(check(examples(rows)), "rare-labels").message


def test_rows_that_cannot_be_used_are_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "", "label": 1}\n{"text": "b", "label": 1}\n')
    report = check(read_examples(path, "classify"))
    assert found(report, "unused").message == "1 of 3 rows cannot be used: empty 1"
    assert any("a.jsonl line 2: 'text': holds no text" in line for line in report.lines())


def test_augmented_rows_belong_to_training_alone() -> None:
    rows = clean_rows()
    rows.append(replace(rows[0], text="number river 0", augmented="swap"))
    assert found(check(examples(rows)), "augmented").level == "note"
    other = [replace(row, split="test") if row.augmented else row for row in rows]
    assert found(check(examples(other)), "augmented").level == "error"


def test_the_worst_comes_first() -> None:
    rows = clean_rows() + label_rows(["river number 0", "new"], ["neg", "odd"])
    rows[-1] = replace(rows[-1], split="test")
    levels = [finding.level for finding in check(examples(rows)).findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert levels[0] == "error"


def test_a_split_without_rows_is_said() -> None:
    report = check(examples(clean_rows()), splits={"test": Examples([], LabelRow)})
    assert [(f.kind, f.level, f.split) for f in report.findings] == [("empty-split", "warning", "test")]
    everything_is_test = [replace(row, split="test") for row in clean_rows()]
    assert not check(examples(everything_is_test)).usable


def test_splits_of_another_family_are_refused() -> None:
    pairs: list[Row] = [PairRow("a", "b", where=Where("a"))]
    with pytest.raises(UserError, match="test holds pairs of prompt and completion, the training data labelled texts"):
        check(examples(clean_rows()), splits={"test": examples(pairs)})


def test_a_split_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="a split 'train' of its own"):
        check(examples(clean_rows()), splits={"train": examples(clean_rows())})


def test_the_report_is_the_same_every_time_and_plain_json(tokenizer) -> None:
    rows = clean_rows() + clean_rows(6)
    reports = [check(examples(list(rows)), tokenizer, 10) for _ in range(2)]
    assert json.dumps(reports[0].to_dict()) == json.dumps(reports[1].to_dict())
    assert reports[0].lines() == reports[1].lines()


@pytest.mark.skipif(not DATA, reason="the data sets are not here: set GPT2KIT_DATA")
def test_known_faults_of_the_data_sets_are_found() -> None:
    assert DATA is not None
    train = read_examples(Path(DATA) / "topics/agnews-train.tsv.xz", "classify")
    test = read_examples(Path(DATA) / "topics/agnews-test.tsv.xz", "classify")
    report = check(train, splits={"test": test})
    counts = {(finding.kind, finding.split): finding.count for finding in report.findings}
    texts = [{row.key for row in part.rows} for part in (train, test)]
    assert counts["leaks", "test"] == sum(row.key in texts[0] for row in test.rows) == 9
    assert counts["duplicates", "train"] == len(train.rows) - len({(row.key, row.target) for row in train.rows}) == 12
    assert counts["conflicts", "train"] == len({(row.key, row.target) for row in train.rows}) - len(texts[0]) == 1
