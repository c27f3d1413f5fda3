"""Packing: splits, duplicates, separators, reports; folders that are whole, refused by name, or absent."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit import commit
from gpt2kit.data.pack import PackProgress, open_packed, pack, read_report
from gpt2kit.data.sources import Document, read_documents
from gpt2kit.errors import UserError

EOT = "<|endoftext|>"


def corpus(count: int, salt: str = "") -> list[Document]:
    return [Document(f"document {salt}{n} " + "blah " * (n % 7)) for n in range(count)]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def documents_of(folder: Path, split: str, tokenizer) -> list[str]:
    return tokenizer.decode(open_packed(folder, split)[:].tolist()).split(EOT)[1:]


def goes_to_validation(text: str, fraction: float) -> bool:
    """The rule in plain words: the second 8 bytes of the text's blake2b, as a part of 2^64."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[8:], "little") < fraction * 2**64


def test_every_document_is_in_the_split_of_its_hash_in_order(tmp_path, tokenizer) -> None:
    documents = corpus(3000)
    report = pack(documents, tokenizer, tmp_path / "p", validation_fraction=0.1)
    expected = {name: [] for name in ("train", "val")}
    for document in documents:
        expected["val" if goes_to_validation(document.text, 0.1) else "train"].append(document.text)
    for name, texts in expected.items():
        assert documents_of(tmp_path / "p", name, tokenizer) == texts
        info = report.splits[name]
        assert (info.documents, info.separators) == (len(texts), len(texts))
        assert info.bytes == info.characters == sum(map(len, texts))
        assert info.tokens == info.bytes + info.separators
    assert 230 < len(expected["val"]) < 370
    assert report.notes == []


def test_the_default_fraction_is_a_twentieth(tmp_path, tokenizer) -> None:
    report = pack(corpus(4000), tokenizer, tmp_path / "p")
    assert report.settings["validation_fraction"] == 0.05
    assert report.splits["val"].documents == sum(goes_to_validation(d.text, 0.05) for d in corpus(4000))


def test_appending_documents_moves_none_of_the_others(tmp_path, tokenizer) -> None:
    pack(corpus(2000), tokenizer, tmp_path / "a")
    pack([*corpus(2000), *corpus(2000, "more ")], tokenizer, tmp_path / "b")
    for split in ("train", "val"):
        before = documents_of(tmp_path / "a", split, tokenizer)
        assert documents_of(tmp_path / "b", split, tokenizer)[: len(before)] == before


def test_appending_to_a_file_changes_its_last_piece_only(tmp_path, tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {n} of the story\n\n" for n in range(20_000)))
    pack(path, tokenizer, tmp_path / "a")
    before = {name: open_packed(tmp_path / "a", name)[:].tolist() for name in ("train", "val")}
    with open(path, "a") as file:
        file.write("the end\n" * 1000)
    pack(path, tokenizer, tmp_path / "b")
    for name, ids in before.items():
        after = open_packed(tmp_path / "b", name)[:].tolist()
        assert after[: len(ids) - 2100] == ids[: len(ids) - 2100]


def test_duplicates_are_dropped_and_counted(tmp_path, tokenizer) -> None:
    texts = ["a", "b", "a", "c", "b", "a"] + [f"x{n}" for n in range(200)] * 2
    report = pack([Document(t) for t in texts], tokenizer, tmp_path / "p", validation_fraction=0)
    assert report.duplicates == 3 + 200
    assert documents_of(tmp_path / "p", "train", tokenizer) == list(dict.fromkeys(texts))


def test_duplicates_far_apart_are_found(tmp_path, tokenizer) -> None:
    big = [Document(f"{n} " + "x" * 300_000) for n in range(12)]
    report = pack([*big, *big], tokenizer, tmp_path / "p", validation_fraction=0)
    assert (report.duplicates, report.splits["train"].documents) == (12, 12)


def test_pieces_are_joined_unless_their_predecessor_is_elsewhere(tmp_path, tokenizer) -> None:
    def pieces() -> Iterable[Document]:
        for n in range(400):
            for part in range(4):
                yield Document(f"[{n}.{part}]", continues=part > 0)

    pack(pieces(), tokenizer, tmp_path / "p", validation_fraction=0.3)
    expected = {"train": "", "val": ""}
    previous = None
    for piece in pieces():
        name = "val" if goes_to_validation(piece.text, 0.3) else "train"
        expected[name] += piece.text if piece.continues and previous == name else EOT + piece.text
        previous = name
    for name, text in expected.items():
        assert tokenizer.decode(open_packed(tmp_path / "p", name)[:].tolist()) == text


def test_a_piece_after_a_dropped_one_is_separated(tmp_path, tokenizer) -> None:
    pieces = [Document("a"), Document("b"), Document("a", continues=True), Document("c", continues=True)]
    pack(pieces, tokenizer, tmp_path / "p", validation_fraction=0)
    assert tokenizer.decode(open_packed(tmp_path / "p", "train")[:].tolist()) == f"{EOT}a{EOT}b{EOT}c"


def test_without_a_separator_nothing_is_written_between(tmp_path, make_tokenizer) -> None:
    tokenizer = make_tokenizer(256, None)
    report = pack([Document("a"), Document("b")], tokenizer, tmp_path / "p", validation_fraction=0)
    assert tokenizer.decode(open_packed(tmp_path / "p", "train")[:].tolist()) == "ab"
    assert report.splits["train"].separators == 0


# small inputs


@pytest.mark.parametrize("count", [2, 3, 10, 30])
@pytest.mark.parametrize("salt", ["a", "b", "c", "d"])
def test_small_inputs_get_a_validation_split_by_smallest_hash(tmp_path, tokenizer, count: int, salt: str) -> None:
    documents = corpus(count, salt)
    report = pack(documents, tokenizer, tmp_path / "p")
    ordered = sorted(
        (d.text for d in documents),
        key=lambda t: int.from_bytes(hashlib.blake2b(t.encode(), digest_size=16).digest()[8:], "little"),
    )
    val = documents_of(tmp_path / "p", "val", tokenizer)
    assert 1 <= len(val) < count
    assert set(val) == set(ordered[: len(val)])
    assert report.splits["val"].characters >= 0.025 * sum(len(t) for t in ordered)
    by_rule = sum(goes_to_validation(t, 0.05) for t in ordered)
    assert len(val) >= min(by_rule, count - 1)
    assert bool(report.notes) == (len(val) != by_rule)


def test_training_keeps_a_document_whatever_the_hashes(tmp_path, tokenizer) -> None:
    both = [d for d in corpus(500) if goes_to_validation(d.text, 0.05)][:2]
    report = pack(both, tokenizer, tmp_path / "p")
    assert [report.splits[name].documents for name in ("train", "val")] == [1, 1]


def test_one_document_leaves_validation_empty_and_says_so(tmp_path, tokenizer) -> None:
    report = pack([Document("only one")], tokenizer, tmp_path / "p")
    assert any("validation split is empty" in note for note in report.notes)
    assert len(open_packed(tmp_path / "p", "train")) == 9
    with pytest.raises(UserError, match="has no val split"):
        open_packed(tmp_path / "p", "val")


def test_few_giant_documents_are_split_too(tmp_path, tokenizer) -> None:
    giants = [Document(f"{n}" + "x" * 900_000) for n in range(6)]
    report = pack(giants, tokenizer, tmp_path / "p")
    assert report.splits["val"].documents >= 1
    assert sum(split.documents for split in report.splits.values()) == 6


# validation files


def test_validation_files_are_the_validation_split_and_leaks_are_dropped(tmp_path, tokenizer) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in "abcdeab"))
    (tmp_path / "val.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in "bxxd"))
    report = pack(tmp_path / "train.jsonl", tokenizer, tmp_path / "p", validation=tmp_path / "val.jsonl")
    assert documents_of(tmp_path / "p", "train", tokenizer) == ["a", "c", "e"]
    assert documents_of(tmp_path / "p", "val", tokenizer) == ["b", "x", "d"]
    assert (report.leaks, report.duplicates) == (3, 2)
    assert report.settings["validation"] == "files"


def test_validation_files_that_swallow_or_hold_nothing_are_refused(tmp_path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(UserError, match=r"every document of .* is also in the validation files"):
        pack(tmp_path / "a.txt", tokenizer, tmp_path / "p", validation=tmp_path / "a.txt")
    with pytest.raises(UserError, match="validation files hold no text"):
        pack(tmp_path / "a.txt", tokenizer, tmp_path / "p", validation=tmp_path / "blank.txt")
    assert not (tmp_path / "p").exists()


# the folder


def test_same_input_same_bytes(tmp_path, tokenizer) -> None:
    for name in ("a", "b"):
        pack(corpus(500), tokenizer, tmp_path / name, shard_tokens=2000)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert len(tree(tmp_path / "a")) > 6


def test_the_report_is_read_back_and_counts_the_sources(tmp_path, tokenizer) -> None:
    path = tmp_path / "诗.txt"
    path.write_bytes("今天天气很好，我们去山里走一走。\n".encode("gbk"))
    (tmp_path / "b.jsonl").write_text('{"title": "t", "text": "x"}\n{"text": " "}\n')
    report = pack([path, tmp_path / "b.jsonl"], tokenizer, tmp_path / "p")
    assert read_report(tmp_path / "p") == report
    assert report.sources["encodings"] == {"GB18030": 1, "UTF-8": 1}
    assert report.sources["guessed_fields"] == ["text"]
    assert report.sources["empty_documents"] == 1
    assert report.sources["files"] == 2
    assert any("GB18030" in note for note in report.notes)
    total = sum(split.bytes for split in report.splits.values())
    assert total == report.sources["bytes"] == len("今天天气很好，我们去山里走一走。\nx".encode())
    manifest = commit.verify(tmp_path / "p")
    assert manifest is not None
    assert manifest["data_hash"] == report.data_hash


def test_another_text_or_order_gives_another_data_hash(tmp_path, tokenizer) -> None:
    hashes = {
        pack([Document(t) for t in texts], tokenizer, tmp_path / "p", validation_fraction=0).data_hash
        for texts in ("ab", "ba", "abc")
    }
    assert len(hashes) == 3


def test_opened_tokens_carry_what_bits_per_byte_need(tmp_path, make_tokenizer) -> None:
    tokenizer = make_tokenizer(70_000)
    pack([Document("é汉"), Document("b")], tokenizer, tmp_path / "p", validation_fraction=0, shard_tokens=3)
    tokens = open_packed(tmp_path / "p", "train", tokenizer.hash, verify=True)
    assert (tokens.bytes, tokens.characters, tokens.tokens, len(tokens)) == (6, 3, 8, 8)
    assert (tokens.vocab_size, tokens.tokenizer_hash) == (70_000, tokenizer.hash)
    assert tokens[:].dtype == "uint32"
    assert len(tokens.info.shards) == 3


def test_progress_grows_to_the_total(tmp_path, tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {n} of a long story\n" for n in range(300_000)))
    seen: list[PackProgress] = []
    pack(path, tokenizer, tmp_path / "p", progress=seen.append)
    assert len(seen) >= 5
    assert all(a.read <= b.read and a.tokens < b.tokens for a, b in itertools.pairwise(seen))
    assert seen[-1].read == seen[-1].total == path.stat().st_size
    assert seen[-1].characters == path.stat().st_size


def test_packing_replaces_a_packed_folder_but_nothing_else(tmp_path, tokenizer) -> None:
    pack([Document("old")], tokenizer, tmp_path / "p", validation_fraction=0)
    pack([Document("new!")], tokenizer, tmp_path / "p", validation_fraction=0)
    assert len(open_packed(tmp_path / "p", "train")) == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "mine", tmp_path, tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="not a packed folder"):
            pack([Document("x")], tokenizer, out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_error_on_the_way_leaves_the_old_folder_and_no_trace(tmp_path, tokenizer) -> None:
    pack([Document("old")], tokenizer, tmp_path / "p", validation_fraction=0)
    before = tree(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')

    def stop(_: PackProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="line 2"):
        pack(tmp_path / "bad.jsonl", tokenizer, tmp_path / "p")
    with pytest.raises(KeyboardInterrupt):
        pack(corpus(10), tokenizer, tmp_path / "p", progress=stop)
    (tmp_path / "bad.jsonl").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fractions_are_refused(tmp_path, tokenizer, fraction: float) -> None:
    with pytest.raises(UserError, match="not between 0 and 1"):
        pack(corpus(3), tokenizer, tmp_path / "p", validation_fraction=fraction)


def test_no_text_is_refused(tmp_path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("  \n")
    for source in (tmp_path / "a.txt", iter([])):
        with pytest.raises(UserError, match="no text to pack"):
            pack(source, tokenizer, tmp_path / "p")


# what is refused at opening


@pytest.fixture
def packed(tmp_path, tokenizer) -> Path:
    pack(corpus(60), tokenizer, tmp_path / "p", shard_tokens=600)
    return tmp_path / "p"


def test_another_tokenizer_is_refused_with_the_command(packed: Path) -> None:
    with pytest.raises(
        UserError, match=r"val-00000\.bin was packed with tokenizer .{8}…, the model has 9c029c02…"
    ) as e:
        open_packed(packed, "val", "9c02" * 16)
    assert "gpt2kit pack" in str(e.value.hint)


def test_unknown_splits_suggest_the_known_ones(packed: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'train'"):
        open_packed(packed, "trian")


def test_what_is_no_packed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(UserError, match="is not a packed folder"):
            open_packed(path, "train")
    with commit.folder(tmp_path / "model", "model"):
        pass
    with pytest.raises(UserError, match="is not a packed folder"):
        open_packed(tmp_path / "model", "train")


def damage(packed: Path, name: str, change) -> None:
    (packed / name).write_bytes(change((packed / name).read_bytes()))


def reseal(packed: Path, change) -> None:
    """Change pack.json and its entry in the manifest: damage that no hash shows."""
    report = json.loads((packed / "pack.json").read_text())
    change(report)
    commit.write_json(packed / "pack.json", report)
    manifest = json.loads((packed / "gpt2kit.json").read_text())
    manifest["files"]["pack.json"]["sha256"] = commit.sha256_file(packed / "pack.json")
    commit.write_json(packed / "gpt2kit.json", manifest)


def test_damaged_folders_are_refused_by_name(packed: Path, tmp_path: Path) -> None:
    def broken(name: str, change, word: str, verify: bool = False) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(packed, copy)
        damage(copy, name, change)
        with pytest.raises(UserError) as caught:
            open_packed(copy, "train", verify=verify)
        assert name in caught.value.message
        assert word in caught.value.message

    broken("train-00001.bin", lambda data: data[:-3], "truncated")
    broken("train-00001.bin", lambda data: b"", "not a token shard")
    broken("train-00000.bin", lambda data: data + b"..", "longer")
    broken("train-00000.bin", lambda data: data[:-1] + b"\xff", "has changed", verify=True)
    broken("pack.json", lambda data: data.replace(b"train", b"trian"), "damaged")
    broken("gpt2kit.json", lambda data: b"{}", "not a gpt2kit manifest")
    broken("gpt2kit.json", lambda data: b"not json", "not valid JSON")
    (packed / "gpt2kit.json").write_bytes((packed / "gpt2kit.json").read_bytes().replace(b'"train-00001', b'"x'))
    with pytest.raises(UserError, match=r"train-00001\.bin is not in the folder's manifest"):
        open_packed(packed, "train")


def test_a_flipped_bit_in_the_ids_is_seen_by_verify_only(packed: Path) -> None:
    damage(packed, "train-00000.bin", lambda data: data[:-1] + b"\xff")
    open_packed(packed, "train")
    with pytest.raises(UserError, match="has changed"):
        open_packed(packed, "train", verify=True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: r["splits"]["train"].pop("bytes"), "damaged"),
        (lambda r: r.update(splits=[]), "damaged"),
        (lambda r: r.update(extra=1), "damaged"),
        (lambda r: r.update(version=2), "version 1"),
        (lambda r: r.update(vocab_size=300), "does not belong"),
        (lambda r: r["splits"]["train"].update(tokens=5), "says 5"),
        (lambda r: r["splits"]["train"]["shards"].reverse(), "does not belong"),
        (lambda r: r["splits"]["train"].update(shards=["../x.bin"]), "not in the folder's manifest"),
        (lambda r: r["splits"]["train"].update(shards=[[]]), "damaged"),
        (lambda r: r["splits"]["train"].update(tokens="many"), "damaged"),
        (lambda r: r.update(notes=5, splits={"train": 5}), "damaged"),
    ],
)
def test_a_report_that_does_not_fit_is_refused(packed: Path, change, word: str) -> None:
    reseal(packed, change)
    with pytest.raises(UserError, match=word):
        open_packed(packed, "train")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory, make_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "p"
    pack(corpus(60), make_tokenizer(), folder, shard_tokens=600)
    return folder


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_fuzzed_folders_open_or_are_refused(fuzzed: Path, data: st.DataObject) -> None:
    folder = fuzzed
    name = data.draw(st.sampled_from(["pack.json", "gpt2kit.json", "train-00000.bin", "train-00001.bin"]))
    good = (folder / name).read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(bytes(bad[: data.draw(st.integers(0, len(bad)))]))
    try:
        tokens = open_packed(folder, "train")
        assert len(tokens[:]) == len(tokens)
    except UserError as error:
        problem = str(error)
        assert str(folder) in problem
    finally:
        (folder / name).write_bytes(good)


# the real tokenizer and real text


def test_with_a_trained_tokenizer_the_text_comes_back(tmp_path) -> None:
    from gpt2kit.text.tokenizer import Tokenizer
    from gpt2kit.text.training import train_tokenizer

    texts = [f"line {n}: 春眠不觉晓，处处闻啼鸟。 The quick brown fox.\n" for n in range(300)]
    for kind in ("bpe", "char"):
        tokenizer = train_tokenizer(texts, kind=kind, vocab_size=400)
        report = pack([Document(t) for t in texts], tokenizer, tmp_path / kind)
        found = Tokenizer.load(tmp_path / kind)
        assert found.hash == report.tokenizer_hash
        val = open_packed(tmp_path / kind, "val", found.hash, verify=True)
        ids = val[:].tolist()
        assert found.eot_id is not None
        ends = [i for i, token in enumerate(ids) if token == found.eot_id]
        got = [found.decode(ids[a + 1 : b]) for a, b in zip(ends, [*ends[1:], len(ids)], strict=True)]
        assert got == [t for t in texts if t in set(got)]
        assert len(got) == report.splits["val"].documents


@pytest.mark.skipif("GPT2KIT_DATA" not in os.environ, reason="needs GPT2KIT_DATA")
def test_tinyshakespeare_splits_into_all_of_its_characters(tmp_path, tokenizer) -> None:
    path = Path(os.environ["GPT2KIT_DATA"]) / "text" / "tinyshakespeare.txt"
    report = pack(path, tokenizer, tmp_path / "p")
    assert sum(split.characters for split in report.splits.values()) == 1_115_394
    assert 0.025 < report.splits["val"].characters / 1_115_394 < 0.075
    whole = "".join(d.text for d in read_documents(path))
    assert whole == path.read_text(encoding="utf-8")
