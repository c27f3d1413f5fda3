"""Any bytes, any JSON, any table and any damage to a good file: rows, or a UserError that names the file."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2kit.data.examples import TASKS, Examples, ReadReport, iter_examples, read_examples
from gpt2kit.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "examples.md"
FIELDS = ["text", "label", "prompt", "completion", "messages", "conversations", "instruction", "input", "output",
          "chosen", "rejected", "question", "context", "answers", "answer_start", "qas", "paragraphs", "data", "role",
          "candidates", "history", "content", "from", "value", "translation", "id", "is_impossible", "x"]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**30), st.floats(), st.text(max_size=12),
    st.sampled_from(["user", "assistant", "human", "gpt", "a", "1", "\ud83d", "\x00", "a\r\nb", "["]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), min_size=1, max_size=6)
SUFFIXES = ["jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz"]
TASK = st.sampled_from([*sorted(TASKS), None])
ANY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(path: Path, task: str | None) -> tuple[Any, ReadReport]:
    """The rows, or the words of the UserError; anything else fails the test."""
    report = ReadReport()
    try:
        rows = read_examples(path, task, report=report).rows
    except UserError as error:
        words = str(error).encode().decode()
    else:
        words = ""
    if words:
        assert path.name in words
        return words, report
    assert report.rows_in == report.used + report.reported
    assert report.used == len(rows)
    assert report.reported == sum(report.kinds.values())
    for line in report.lines():
        line.encode()
    json.dumps(report.to_dict())
    Examples(rows, type(rows[0])).data_hash.encode()
    for row in rows:
        f"{row.key}{row.target}{row.longest}".encode()
        assert row.where.line is not None or path.suffix == ".txt"
    return rows, report


@ANY
@given(st.binary(max_size=300), st.sampled_from(SUFFIXES), TASK)
def test_any_bytes_are_rows_or_a_user_error(tmp_path: Path, content: bytes, suffix: str, task: str | None) -> None:
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    assert outcome(path, task)[0] == outcome(path, task)[0]


@ANY
@given(records=RECORDS, task=TASK, listed=st.booleans())
def test_any_json_is_rows_or_a_user_error(tmp_path: Path, records: list[Any], task: str | None, listed: bool) -> None:
    path = tmp_path / ("any.json" if listed else "any.jsonl")
    path.write_text(json.dumps(records) if listed else "\n".join(map(json.dumps, records)))
    rows, report = outcome(path, task)
    assert outcome(path, task)[0] == rows
    nested = any(name in json.dumps(records) for name in ('"qas"', '"paragraphs"', '"data"'))
    if not isinstance(rows, str) and not nested:
        assert report.rows_in == len(records)


@ANY
@given(
    st.lists(st.lists(st.text(st.sampled_from('a1,"\t;\n\r 好'), max_size=5), min_size=1, max_size=3), min_size=1),
    st.sampled_from([",", "\t"]),
    TASK,
)
def test_any_table_is_rows_or_a_user_error(tmp_path: Path, cells: list[list[str]], mark: str, task: str | None) -> None:
    path = tmp_path / ("any.csv" if mark == "," else "any.tsv")
    path.write_bytes("\n".join(mark.join(row) for row in cells).encode())
    assert outcome(path, task)[0] == outcome(path, task)[0]


@ANY
@given(st.lists(st.tuples(st.text('ab"\n,;\t 好', min_size=1, max_size=6), st.sampled_from("pq")), min_size=1))
def test_no_row_of_a_table_is_lost(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    path = tmp_path / "some.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *cells])
    report = ReadReport()
    rows = []
    with contextlib.suppress(UserError):  # where no text is left but spaces
        rows = list(iter_examples(path, "classify", report=report))
    assert report.rows_in == len(cells)
    assert len(rows) == sum(bool(text.strip()) for text, _ in cells)


@ANY
@given(bad=st.sets(st.integers(1, 19)), junk=st.sampled_from(["{", "5", "{}", "nul", '{"text": 1', "\\", "[" * 3000]))
def test_every_bad_line_is_reported_with_its_number(tmp_path: Path, bad: set[int], junk: str) -> None:
    lines = [json.dumps({"text": f"t{n}", "label": n % 2}) for n in range(20)]
    for n in bad:
        lines[n] = junk
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(lines))
    examples = read_examples(path, "classify")
    assert [p.where.line for p in examples.report.problems] == sorted(n + 1 for n in bad)
    assert [row.where.line for row in examples.rows] == [n + 1 for n in range(20) if n not in bad]


SAMPLES = re.findall(r"^```(\w+) (\w+) (\S+)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@settings(ANY, max_examples=60)
@given(sample=st.sampled_from(SAMPLES), at=st.integers(0, 400), cut=st.integers(0, 30), new=st.text(max_size=5))
def test_any_damage_to_a_good_file_is_rows_or_a_user_error(
    tmp_path: Path, sample: tuple[str, str, str, str], at: int, cut: int, new: str
) -> None:
    suffix, task, _, content = sample
    at %= len(content)
    path = tmp_path / f"any.{suffix}"
    path.write_bytes((content[:at] + new + content[at + cut :]).encode("utf-8", "surrogatepass"))
    assert outcome(path, task)[0] == outcome(path, task)[0]


@settings(ANY, max_examples=60)
@given(st.sampled_from([sample for sample in SAMPLES if "json" in sample[0]]), st.integers(0, 10**6), VALUES)
def test_any_value_in_a_good_file_is_rows_or_a_user_error(
    tmp_path: Path, sample: tuple[str, str, str, str], pick: int, value: object
) -> None:
    suffix, task, _, content = sample
    document = json.loads(content) if suffix == "json" else [json.loads(line) for line in content.splitlines()]
    holders = list(containers(document))
    holder = holders[pick % len(holders)]
    holder[list(holder)[pick % len(holder)] if isinstance(holder, dict) else pick % len(holder)] = value
    path = tmp_path / f"any.{suffix}"
    path.write_text(json.dumps(document) if suffix == "json" else "\n".join(map(json.dumps, document)))
    assert outcome(path, task)[0] == outcome(path, task)[0]


def containers(value: object) -> Iterator[Any]:
    """Every list and object inside a JSON value that holds something."""
    if isinstance(value, (list, dict)) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)
