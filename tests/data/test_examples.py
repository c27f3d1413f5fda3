"""Labelled data from files and folders: nothing is lost, every bad row has its place, splits stay put."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gpt2kit.data.examples import (
    AnswerRow,
    ChatRow,
    Examples,
    LabelRow,
    Message,
    PairRow,
    PreferenceRow,
    ReadReport,
    Row,
    Where,
    iter_examples,
    read_examples,
    split_by_hash,
)
from gpt2kit.errors import UserError

DATA = os.environ.get("GPT2KIT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="the data sets are not here: set GPT2KIT_DATA")
DOCS = Path(__file__).parents[2] / "docs" / "examples.md"
REVIEWS = "".join(json.dumps({"text": f"review {n}", "label": ["neg", "pos"][n % 2]}) + "\n" for n in range(10))


@pytest.fixture
def write(tmp_path: Path):
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def accounted(report: ReadReport, rows: int) -> bool:
    return (
        report.rows_in == report.used + report.reported
        and report.used == rows
        and report.reported == sum(report.kinds.values())
    )


# The data sets


@needs_data
@pytest.mark.parametrize(
    ("file", "task", "family", "rows", "labels"),
    [
        ("sentiment/imdb-train.jsonl.xz", "classify", LabelRow, 25_000, {"neg": 12_500, "pos": 12_500}),
        pytest.param("sentiment/imdb-test.jsonl.xz", "classify", LabelRow, 25_000, {"neg": 12_500, "pos": 12_500},
                     marks=pytest.mark.slow),
        ("sentiment/sst2-train.tsv.xz", "classify", LabelRow, 60_614, {"0": 26_786, "1": 33_828}),
        ("sentiment/sst2-dev.tsv", "classify", LabelRow, 6_735, {"0": 2_994, "1": 3_741}),
        ("sentiment/sst2-test.tsv", "classify", LabelRow, 872, {"0": 428, "1": 444}),
        ("sentiment/waimai-10k.csv.xz", "classify", LabelRow, 11_987, {"0": 7_987, "1": 4_000}),
        ("topics/agnews-train.tsv.xz", "classify", LabelRow, 10_001,
         {"Business": 2_496, "Sci/Tech": 2_538, "Sports": 2_458, "World": 2_509}),
        ("topics/agnews-test.tsv.xz", "classify", LabelRow, 7_600,
         {"Business": 1_900, "Sci/Tech": 1_900, "Sports": 1_900, "World": 1_900}),
        ("topics/thucnews-train.tsv.xz", "classify", LabelRow, 10_000,
         dict.fromkeys(["finance", "realty", "stocks", "education", "science", "society", "politics", "sports", "game",
                        "entertainment"], 1_000)),
        ("translation/eng-cmn.tsv.xz", "translate", PairRow, 20_403, {}),
        ("qa/cmrc2018-dev.json.xz", "answer", AnswerRow, 3_219, {}),
        ("chat/alpaca-en.json.xz", "chat", ChatRow, 999, {}),
        ("chat/alpaca-zh.json.xz", "instruct", PairRow, 1_000, {}),
        ("chat/dpo-en.json.xz", "prefer", PreferenceRow, 300, {}),
        ("chat/dpo-zh.json.xz", "prefer", PreferenceRow, 300, {}),
        ("correction/sighan2015-train.tsv.xz", "correct", PairRow, 2_338, {}),
        ("correction/sighan2015-test.tsv.xz", "correct", PairRow, 1_100, {}),
    ],
)  # fmt: skip
def test_the_data_sets_are_read_whole(
    file: str, task: str, family: type[Row], rows: int, labels: dict[str, int]
) -> None:
    assert DATA is not None
    examples = read_examples(Path(DATA) / file, task)
    assert examples.family is family
    assert examples.report.reported == 0
    assert len(examples.rows) == examples.report.rows_in == rows
    assert Counter(label for row in examples.rows if isinstance(row, LabelRow) for label in row.labels) == labels
    assert examples.labels == tuple(labels)


@needs_data
def test_rows_of_the_data_sets_hold_what_they_should() -> None:
    assert DATA is not None
    root = Path(DATA)
    headline = read_examples(root / "topics/thucnews-train.tsv.xz", "classify").rows[0]
    assert (headline.text, headline.labels) == ("体验2D巅峰 倚天屠龙记十大创新概览", ("game",))
    pair = read_examples(root / "translation/eng-cmn.tsv.xz", "translate").rows[0]
    assert (pair.prompt, pair.completion) == ("Hi.", "嗨。")
    right = read_examples(root / "correction/sighan2015-train.tsv.xz", "correct").rows[2]
    assert right.prompt != right.completion
    alpaca = read_examples(root / "chat/alpaca-en.json.xz", "chat").rows
    assert sum("\n\n" in row.messages[0].content for row in alpaca) >= 412  # so many have an input
    dpo = read_examples(root / "chat/dpo-en.json.xz", "prefer").rows
    assert Counter(row.messages[0].role for row in dpo)["system"] == 64 + 16  # as counted in the file
    answers = read_examples(root / "qa/cmrc2018-dev.json.xz", "answer")
    for row in answers.rows:
        for text, start in row.answers:
            assert row.passage[start : start + len(text)] == text if start >= 0 else text not in row.passage


@needs_data
def test_lines_of_the_data_sets_are_those_of_the_file() -> None:
    assert DATA is not None
    path = Path(DATA) / "sentiment/sst2-test.tsv"
    lines = path.read_text(encoding="utf-8").split("\n")
    for row in read_examples(path, "classify").rows[::50]:
        assert row.where.line is not None
        assert lines[row.where.line - 1] == f"{row.text}\t{row.labels[0]}"


@needs_data
@pytest.mark.slow
def test_66_mb_are_read_at_20_mb_a_second_and_core() -> None:
    assert DATA is not None
    start = time.process_time()
    size = sum(len(row.key.encode()) for row in iter_examples(Path(DATA) / "text/imdb-unsup.jsonl.xz", "write"))
    rate = size / 1e6 / (time.process_time() - start)
    assert rate > 20, f"{rate:.1f} MB/s"


# Compression, encodings, standard input


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_compressed_files_give_the_same_rows(write, suffix: str, pack) -> None:
    plain = read_examples(write("a.jsonl", REVIEWS), "classify")
    packed = read_examples(write(f"a.jsonl{suffix}", pack(REVIEWS.encode())), "classify")
    assert [replace(row, where=plain.rows[0].where) for row in packed.rows] == [
        replace(row, where=plain.rows[0].where) for row in plain.rows
    ]
    assert packed.data_hash == plain.data_hash


def test_chinese_encodings_are_converted_and_said(write) -> None:
    text = "review,label\n" + "很好吃，送得也快，下次还会来的,1\n太慢了，等了两个小时，菜都不热了,0\n" * 5
    examples = read_examples(write("a.csv", text.encode("gb18030")), "classify")
    assert examples.rows[0].text == "很好吃，送得也快，下次还会来的"
    assert any("GB18030" in note for note in examples.report.notes)


def test_standard_input_is_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import types

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(REVIEWS.encode())))
    examples = read_examples("-", "classify")
    assert len(examples.rows) == 10
    assert str(examples.rows[3].where) == "standard input line 4"


def test_parquet_rows_have_numbers(write, tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", None, "c"], "label": [0, 1, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    examples = read_examples(tmp_path / "a.parquet", "classify")
    assert [row.text for row in examples.rows] == ["a", "c"]
    found = str(examples.report.problems[0])
    assert found.endswith("a.parquet row 2: 'text': is missing (complete that row or remove it)")


def test_parquet_that_holds_class_names_gives_them(tmp_path: Path) -> None:
    about = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["a", "b"], "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [row.labels for row in read_examples(tmp_path / "a.parquet", "classify").rows] == [("pos",), ("neg",)]


def test_a_broken_first_line_is_one_bad_row(write) -> None:
    report = read_examples(write("a.jsonl", '{"text": "cut o\n' + REVIEWS), "classify").report
    assert [(problem.where.line, problem.kind) for problem in report.problems] == [(1, "json")]
    assert report.used == 10


def test_json_of_any_layout_is_read(write) -> None:
    rows = [json.loads(line) for line in REVIEWS.splitlines()]
    layouts = {
        "lines.jsonl": REVIEWS,
        "lines.json": REVIEWS,
        "list.json": json.dumps(rows),
        "list.jsonl": json.dumps(rows),
        "pretty.json": json.dumps(rows, indent=2),
        "pretty.jsonl": "\n\n".join(json.dumps(row, indent=2) for row in rows),
        "wrapped.json": json.dumps({"version": 1, "data": rows}),
    }
    hashes = {read_examples(write(name, content), "classify").data_hash for name, content in layouts.items()}
    assert len(hashes) == 1


# Bad rows


def test_one_bad_line_does_not_hide_the_next(write) -> None:
    lines = REVIEWS.splitlines()
    lines[2], lines[5], lines[7] = '{"text": "cut', "[1, 2]", '{"text": "no label"}'
    examples = read_examples(write("a.jsonl", "\n".join(lines)), "classify")
    assert [(p.where.line, p.kind) for p in examples.report.problems] == [(3, "json"), (6, "json"), (8, "label")]
    assert (examples.report.rows_in, examples.report.used, examples.report.reported) == (10, 7, 3)
    assert "10 rows: 7 used, 3 not" in examples.report.lines()
    assert examples.report.to_dict()["problems"][2]["fix"] == "complete that row or remove it"


def test_blank_lines_are_no_rows_and_count_as_lines(write) -> None:
    examples = read_examples(write("a.jsonl", "\n" + REVIEWS.replace("\n", "\n \n\n")), "classify")
    assert [row.where.line for row in examples.rows] == list(range(2, 32, 3))
    assert examples.report.rows_in == 10


def test_problems_past_a_thousand_are_counted(write) -> None:
    content = '{"text": "a", "label": 1}\n' + '{"text": "", "label": 1}\n' * 1500
    report = read_examples(write("a.jsonl", content), "classify").report
    assert (report.reported, len(report.problems)) == (1500, 1000)
    assert any(line.startswith("and 1,490 more; in all by kind: empty 1,500") for line in report.lines())


def test_data_without_one_good_row_is_refused(write) -> None:
    path = write("a.jsonl", '{"text": "", "label": 1}\n' * 3)
    with pytest.raises(UserError, match=r"no row can be used of 3; first: .*a\.jsonl line 1: 'text': holds no text"):
        read_examples(path, "classify")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "no row can be used of 0"),
        ("a.jsonl", "{not json\n", r"a\.jsonl line 1: not valid JSON"),
        ("a.json", '[{"text": "a", "label": 1}, {"text"', r"a\.json line 1: not valid JSON"),
        ("a.json", '[{"text": "a", "label": 1}', r"a\.json ends inside its list"),
        ("a.json", "[1]", r"a\.json line 1: holds a int"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is damaged"),
        ("a.csv", b"PK\x03\x04", r"a\.csv is a zip archive"),
        ("a.parquet", b"nothing", r"a\.parquet row 1: not readable as Parquet"),
        ("a.parquet.gz", b"nothing", "Parquet compresses by itself"),
    ],
)
def test_what_cannot_be_read_at_all_is_refused_by_name(write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_examples(write(name, content), "classify")


def test_a_missing_file_is_refused_with_the_near_name(write) -> None:
    write("reviews.jsonl", REVIEWS)
    with pytest.raises(UserError, match="does not exist") as caught:
        read_examples(write("x", "").parent / "review.jsonl", "classify")
    assert "reviews.jsonl" in str(caught.value.hint)


def test_an_unknown_task_is_refused_with_the_near_name(write) -> None:
    with pytest.raises(UserError, match="unknown task 'clasify'; did you mean 'classify'"):
        read_examples(write("a.jsonl", REVIEWS), "clasify")


def test_half_a_surrogate_pair_becomes_a_replacement_and_is_counted(write) -> None:
    examples = read_examples(write("a.jsonl", '{"text": "a\\ud83d", "label": "\\ud83d"}\n'), "classify")
    assert examples.rows[0].text == "a\ufffd"
    assert examples.rows[0].labels == ("?",)
    assert examples.report.notes == ["1 texts with half of a surrogate pair, which became U+FFFD"]


# Plain text


def test_plain_text_files_are_documents_for_writing(write) -> None:
    path = write("a.txt", "one\n<|endoftext|>\n \n<|endoftext|>\ntwo\n")
    examples = read_examples(path, "write")
    assert [(row.text, row.where.line) for row in examples.rows] == [("one\n", 1), ("two\n", 5)]
    path = write("b.txt", "<|endoftext|>\n".join(["a\n", " \n"]))
    report = read_examples(path, "write").report
    assert accounted(report, 1)
    assert (report.reported, str(report.problems[0])) == (1, f"{path}: a document without text (remove it)")


def test_long_texts_come_in_pieces_that_join(write) -> None:
    text = "A line of the story.\n\n" * 2000
    rows = read_examples(write("a.txt", text), "write").rows
    assert len(rows) > 1
    assert "".join(row.text for row in rows) == text
    assert [row.continues for row in rows] == [False] + [True] * (len(rows) - 1)


# Folders


def test_a_folder_in_hugging_face_layout(write, tmp_path: Path) -> None:
    for split, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("test-00000-of-00001", 1)):
        table = pyarrow.table({"text": [f"{split} {n}" for n in range(count)], "label": [n % 2 for n in range(count)]})
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / f"hub/data/{split}.parquet")
    write("hub/README.md", "# A data set")
    write("hub/dataset_infos.json", "{}")
    write("hub/.gitattributes", "x")
    examples = read_examples(tmp_path / "hub", "classify")
    assert Counter(row.split for row in examples.rows) == {"train": 5, "test": 1}
    assert sum("passed over" in note for note in examples.report.notes) == 2


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], ["test", "train"]),
        (["reviews-train.jsonl", "reviews-dev.jsonl"], ["validation", "train"]),
        (["train/a.jsonl", "validation/a.jsonl"], ["train", "validation"]),
        (["en_train_v2.jsonl", "extra.jsonl"], ["train", "train"]),
        (["test.jsonl"], [""]),
        (["test.jsonl", "validation.jsonl"], ["", ""]),
        (["reviews.jsonl", "test.jsonl"], ["train", "test"]),
        (["training.jsonl", "contest.jsonl", "latest.jsonl"], ["train", "train", "train"]),
    ],
)
def test_splits_by_the_names_in_a_folder(write, tmp_path: Path, names: list[str], splits: list[str]) -> None:
    for name in names:
        write(f"set/{name}", json.dumps({"text": name, "label": 1}))
    assert [row.split for row in read_examples(tmp_path / "set", "classify").rows] == splits


def test_a_file_that_is_named_by_itself_is_in_no_split(write) -> None:
    assert {row.split for row in read_examples(write("train.jsonl", REVIEWS), "classify").rows} == {""}


def test_a_folder_a_class(write, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            for n in range(2):
                write(f"aclImdb/{split}/{label}/{n}.txt", f"{split} {label} {n}\n\nsecond paragraph")
        write(f"aclImdb/{split}/urls_pos.txt", "http")
    write("aclImdb/train/unsup/0.txt", "no label")
    write("aclImdb/README", "about")
    write("aclImdb/train/pos/9.txt", " \n")
    examples = read_examples(tmp_path / "aclImdb", "classify")
    assert Counter((row.split, *row.labels) for row in examples.rows) == {
        (split, label): 2 for split in ("train", "test") for label in ("neg", "pos")
    }
    assert examples.rows[0].text == "test neg 0\n\nsecond paragraph"
    assert [p.where.file[-9:] for p in examples.report.problems] == ["pos/9.txt"]
    assert sum("passed over" in note for note in examples.report.notes) == 4
    assert accounted(examples.report, 8)


def test_tables_with_the_suffix_of_text_in_a_folder(write, tmp_path: Path) -> None:
    """As THUCNews comes: train.txt, dev.txt and test.txt hold tabs, class.txt the names."""
    for split, count in (("train", 5), ("dev", 2), ("test", 1)):
        write(f"news/{split}.txt", "".join(f"headline {split} {n}\t{n % 2}\n" for n in range(count)))
    write("news/class.txt", "business\nsports\n")
    examples = read_examples(tmp_path / "news", "classify")
    assert Counter(row.split for row in examples.rows) == {"train": 5, "validation": 2, "test": 1}
    assert examples.labels == ("business", "sports")


def test_plain_text_beside_tables_is_passed_over(write, tmp_path: Path) -> None:
    write("set/a.jsonl", REVIEWS)
    write("set/pos/notes.txt", "nothing to read\n")
    examples = read_examples(tmp_path / "set", "classify")
    assert len(examples.rows) == 10
    assert "plain text in a folder of tables" in examples.report.notes[0]


def test_bad_rows_before_the_first_good_one_are_all_accounted_for(write) -> None:
    content = '"a"b,1\n' * 250 + "text,label\nfine,1\n"
    report = ReadReport()
    with pytest.raises(UserError, match="no row can be used of 252"):
        read_examples(write("a.csv", content), "classify", report=report)
    assert (report.rows_in, report.reported) == (252, 252)


def test_lists_of_classes_in_a_folder_are_no_data(write, tmp_path: Path) -> None:
    write("topics/news-train.tsv", "oil up\t0\ncup final\t1\n")
    write("topics/news-classes.txt", "business\nsports\n")
    examples = read_examples(tmp_path / "topics", "classify")
    assert [row.labels for row in examples.rows] == [("business",), ("sports",)]


def test_several_files_are_read_in_order(write) -> None:
    paths = [write("b.jsonl", REVIEWS), write("a.csv", "text,label\nx,1\n")]
    examples = read_examples(paths, "classify")
    assert [row.where.file for row in examples.rows] == [str(paths[0])] * 10 + [str(paths[1])]
    assert len(examples.report.guesses) == 2


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file with rows"):
        read_examples(tmp_path, "classify")


def test_progress_reaches_the_size_of_the_files(write) -> None:
    report = ReadReport()
    path = write("a.jsonl", REVIEWS * 1000)
    parquet = path.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), parquet)
    for _ in iter_examples([path, parquet], "classify", report=report):
        pass
    assert report.source.read == report.source.total == path.stat().st_size + parquet.stat().st_size


def test_reading_row_by_row_takes_no_memory_for_rows_gone_by(write) -> None:
    rows = ({"text": f"{n} " + "x" * 1000, "label": n % 2} for n in range(20_000))
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_examples(path, "classify")) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6, f"{peak:,} bytes for a file of {path.stat().st_size:,}"


# Splitting


def labelled(texts: list[str]) -> list[Row]:
    return [LabelRow(text, (str(n % 2),), where=Where("x", n)) for n, text in enumerate(texts, 1)]


def test_rows_that_are_added_move_no_other() -> None:
    texts = [f"text number {n}" for n in range(3000)]
    first = {row.key for row in split_by_hash(labelled(texts[:2000]))[1]}
    second = {row.key for row in split_by_hash(labelled(texts[::-1]))[1]}
    assert first == {key for key in second if key in set(texts[:2000])}
    assert 0.08 < len(second) / 3000 < 0.12


def test_one_text_is_never_on_both_sides() -> None:
    texts = [f"Text, number {n}!" for n in range(500)]
    rows = labelled(texts + [text.upper() for text in texts] + [text.replace(" ", "  ") for text in texts])
    train, validation = split_by_hash(rows, 0.2)
    assert len(train) + len(validation) == 1500
    assert len(validation) % 3 == 0
    assert {row.key.lower().replace("  ", " ") for row in train}.isdisjoint(
        row.key.lower().replace("  ", " ") for row in validation
    )


@pytest.mark.parametrize("count", [2, 3, 10, 19])
def test_small_data_keeps_both_sides(count: int) -> None:
    train, validation = split_by_hash(labelled([f"text {n}" for n in range(count)]))
    assert len(validation) >= 1
    assert len(train) >= 1


def test_one_text_is_for_training() -> None:
    train, validation = split_by_hash(labelled(["same"] * 5), 0.5)
    assert (len(train), len(validation)) == (5, 0)


def test_questions_on_one_passage_stay_together() -> None:
    rows: list[Row] = [AnswerRow(f"q{n}", f"passage {n // 4}", (), where=Where("x", n)) for n in range(400)]
    train, validation = split_by_hash(rows)
    assert validation
    assert {row.key for row in train}.isdisjoint(row.key for row in validation)


def test_named_splits_are_kept_and_the_missing_one_is_made() -> None:
    texts = [f"text {n}" for n in range(400)]
    rows = [replace(row, split="test" if n % 10 == 0 else "train") for n, row in enumerate(labelled(texts))]
    parts = Examples(rows, LabelRow).splits()
    assert len(parts["test"].rows) == 40
    assert len(parts["train"].rows) + len(parts["validation"].rows) == 360
    with_validation = [replace(row, split="validation") for row in rows[:7]] + rows[7:]
    assert len(Examples(with_validation, LabelRow).splits()["validation"].rows) == 7


def test_augmented_rows_are_not_split() -> None:
    rows = [replace(row, augmented="swap") for row in labelled(["a", "b"])]
    with pytest.raises(UserError, match="augmented rows cannot be split"):
        split_by_hash(rows)


def test_the_data_hash_knows_content_and_order_but_not_the_place() -> None:
    rows = labelled(["a", "b"])
    moved = [replace(row, where=Where("elsewhere")) for row in rows]
    assert Examples(rows, LabelRow).data_hash == Examples(moved, LabelRow).data_hash
    assert Examples(rows, LabelRow).data_hash != Examples(rows[::-1], LabelRow).data_hash
    relabelled = [replace(rows[0], labels=("9",)), rows[1]]
    assert Examples(rows, LabelRow).data_hash != Examples(relabelled, LabelRow).data_hash


# The page


def test_the_code_of_the_page_runs(write, tmp_path: Path) -> None:
    write("reviews.csv", "text,label\n" + "".join(f"review of film {n},{n % 2}\n" for n in range(40)))
    write("mistakes.csv", "wrong,right\n我明天在来,我明天再来\nHe go home,He goes home\n")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "reviews.csv: table with commas" in result.stdout
    assert "augmented rows: " in result.stdout


def test_a_model_is_scored_on_the_test_part_and_learns_from_the_training_part(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("dev", 2), ("test", 3)):
        lines = [json.dumps({"text": f"{name} {n}", "label": "ab"[n % 2]}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = read_examples(tmp_path, "classify")
    scored, said = found.to_score()
    assert {row.split for row in scored.rows} == {"test"}
    assert said == "scored on the test part, 3 rows; 7 other rows of the data not asked"
    assert [row.key for row in found.to_learn_from().rows] == [f"train {n}" for n in range(5)]
    (tmp_path / "test.jsonl").unlink()
    assert {row.split for row in read_examples(tmp_path, "classify").to_score()[0].rows} == {"validation"}
    alone = read_examples(tmp_path / "train.jsonl", "classify")
    assert alone.to_score() == (alone, "")


def test_a_folder_of_arrow_files_gets_the_command_that_makes_parquet(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        read_examples(tmp_path, "classify")
    assert "to_parquet" in str(caught.value.hint)


def test_a_greeting_of_the_assistant_is_no_answer() -> None:
    roles = ("system", "assistant", "user", "assistant", "user", "assistant")
    row = ChatRow(tuple(Message(role, f"{n}") for n, role in enumerate(roles)), where=Where("a"))
    assert (row.key, row.target) == ("0\n1\n2", "3\n4\n5")
    alone = ChatRow((Message("system", "s"), Message("assistant", "a")), where=Where("a"))
    assert (alone.key, alone.target) == ("s", "a")
