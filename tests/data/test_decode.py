"""Encodings are recognised from bytes, decompression is checked, and what is not text is refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import sys
import types

import pytest
import zstandard

from gpt2kit.data.decode import CHUNK, Decoded, decode, read_bytes, recognise
from gpt2kit.errors import UserError

MODERN = """北京时间昨天下午，中国代表团在会议上说明了他们对这个问题的看法。他认为，经济发展需要时间，
也需要大家共同努力。“我们不会忘记过去，但更要看到未来。”记者问道：你觉得这件事情有没有可能改变？
第二天早上，天气很好，小王和朋友们去山里走了一走，看见了很多花，还吃了一顿好饭。"""
TANG = """秦川雄帝宅，函谷壯皇居。
綺殿千尋起，離宮百雉餘。
連甍遙接漢，飛觀迥凌虛。
雲日隱層闕，風煙出綺疏。
君不見黃河之水天上來，奔流到海不復回。
君不見高堂明鏡悲白髮，朝如青絲暮成雪。"""
ENGLISH = "It was the best of times, it was the worst of times.\nIt was the age of wisdom.\n"


def text_of(*chunks: bytes, name: str = "a.txt") -> tuple[str, Decoded]:
    found = Decoded()
    return "".join(decode(chunks, name, found)), found


@pytest.mark.parametrize(
    ("text", "codec", "encoding"),
    [
        (ENGLISH, "ascii", "UTF-8"),
        (ENGLISH, "utf-8-sig", "UTF-8"),
        (ENGLISH, "utf-16", "UTF-16 LE"),  # Python writes the byte-order mark
        (ENGLISH, "utf-16-le", "UTF-16 LE"),
        (ENGLISH, "utf-16-be", "UTF-16 BE"),
        (ENGLISH, "utf-32", "UTF-32 LE"),
        (MODERN, "utf-8", "UTF-8"),
        (MODERN, "utf-8-sig", "UTF-8"),
        (MODERN, "gbk", "GB18030"),
        (MODERN + "🙂", "gb18030", "GB18030"),
        (MODERN, "utf-16-le", "UTF-16 LE"),
        (MODERN, "utf-16-be", "UTF-16 BE"),
        (TANG, "gbk", "GB18030"),
        (TANG, "big5", "Big5"),
        (TANG, "utf-16-le", "UTF-16 LE"),
        (TANG.replace("\n", ""), "utf-16-be", "UTF-16 BE"),  # not one zero byte in it
        ("Привет, мир! Это обычный русский текст.", "utf-8", "UTF-8"),
        ("こんにちは世界。これは日本語の文章です。", "utf-8", "UTF-8"),
    ],
)
def test_encoding_is_recognised_and_the_text_is_exact(text: str, codec: str, encoding: str) -> None:
    got, found = text_of(text.encode(codec))
    assert got == text
    assert found.encoding == encoding
    assert found.replaced == 0


@pytest.mark.parametrize("codec", ["gb18030", "utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("length", [30, 100])
def test_short_passages_of_chinese_are_recognised(codec: str, length: int) -> None:
    text = (MODERN + TANG) * 3
    for start in range(len(MODERN + TANG)):
        got, _ = text_of(text[start : start + length].encode(codec))
        assert got == text[start : start + length]


def test_multibyte_characters_survive_any_chunk_border() -> None:
    for codec in ("utf-8", "gb18030", "utf-16", "big5"):
        text = (TANG + "\n") * 9
        data = text.encode(codec)
        padded = ENGLISH.encode("utf-16-le" if codec == "utf-16" else codec)
        for cut in range(1, 9):
            first = data[:2] + padded * (CHUNK // len(padded)) + data[2:] if codec == "utf-16" else data
            got, _ = text_of(first[: CHUNK + cut], first[CHUNK + cut :])
            assert got.endswith(TANG + "\n")


def test_gbk_after_a_long_ascii_beginning_is_recognised() -> None:
    beginning = ENGLISH * (2 * CHUNK // len(ENGLISH))
    got, found = text_of(*[(beginning + MODERN).encode("gbk")[i : i + 70_000] for i in range(0, 2 * CHUNK, 70_000)])
    assert found.encoding == "GB18030"
    assert got == beginning + MODERN


def test_an_invalid_byte_far_inside_is_replaced_and_counted_not_taken_for_gbk() -> None:
    good = (MODERN * 2000).encode()
    assert len(good) > 2 * CHUNK
    got, found = text_of(good[:CHUNK], good[CHUNK:] + b"\xff" + MODERN.encode() + b"\xe4\xb8")
    assert (found.encoding, found.replaced) == ("UTF-8", 2)
    assert got == MODERN * 2000 + "\ufffd" + MODERN + "\ufffd"


def test_a_first_character_that_a_read_cuts_in_two_tells_nothing_yet() -> None:
    beginning = (ENGLISH * CHUNK)[: CHUNK - 1].encode()
    for codec, encoding in (("gbk", "GB18030"), ("utf-8", "UTF-8")):
        got, found = text_of(beginning + MODERN.encode(codec)[:1], (MODERN * 3000).encode(codec)[1:])
        assert (found.encoding, found.replaced) == (encoding, 0)
        assert got == beginning.decode() + MODERN * 3000


@pytest.mark.parametrize("first", ["utf-8", "gbk"])
def test_a_file_in_two_encodings_is_refused(first: str) -> None:
    other = {"utf-8": "gbk", "gbk": "utf-8"}[first]
    with pytest.raises(UserError, match="as what stands before them is"):
        text_of((MODERN * 2000).encode(first), (MODERN * 2000).encode(other))


def test_an_invalid_byte_in_a_short_chinese_file_leaves_it_utf8() -> None:
    got, found = text_of(MODERN.encode() + b"\xb0" + MODERN.encode())
    assert (got, found.encoding, found.replaced) == (MODERN + "\ufffd" + MODERN, "UTF-8", 1)


def test_an_own_replacement_character_is_not_counted_as_invalid() -> None:
    assert text_of("a\ufffdb\ufdd1".encode())[1].replaced == 0


def test_english_with_a_few_windows_1252_bytes_is_not_taken_for_chinese() -> None:
    got, found = text_of((ENGLISH * 20).encode() + "caf\xe9 \x95rest \x93Tom\x94".encode("latin-1"))
    assert (found.encoding, found.replaced) == ("UTF-8", 4)
    assert got.endswith("caf\ufffd \ufffdrest \ufffdTom\ufffd")
    got, found = text_of((ENGLISH * 20).encode() + b"\x95rest")  # in GB18030 those two bytes are a common character
    assert (found.encoding, found.replaced) == ("UTF-8", 1)


@pytest.mark.parametrize(
    "data",
    [
        random.Random(0).randbytes(5000),
        bytes(random.Random(1).choices(range(128, 256), k=4000)),
        "Съешь же ещё этих мягких французских булок, да выпей чаю. ".encode("koi8-r") * 9,
        "これは日本語の文章です。今日はとても良い天気ですね。".encode("euc-jp") * 9,
        "안녕하세요. 오늘은 날씨가 정말 좋네요. 우리는 산에 갔습니다.".encode("euc-kr") * 9,
        ENGLISH.encode() + b"\0" + ENGLISH.encode(),
        b"\1\2\3\4" * 100,
    ],
)
def test_binary_and_unknown_encodings_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.txt"):
        text_of(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"%PDF-1.7\n%abc", "PDF"),
        (gzip.compress(b"hello", mtime=0), r"\.gz"),
        (lzma.compress(b"hello"), r"\.xz"),
        (zstandard.compress(b"hello"), r"\.zst"),
    ],
)
def test_other_kinds_of_file_are_named(data: bytes, word: str) -> None:
    with pytest.raises(UserError) as caught:
        text_of(data)
    assert re.search(word, str(caught.value))


def test_a_zero_character_far_inside_is_refused() -> None:
    with pytest.raises(UserError, match="zero character"):
        text_of(b"a\n" * CHUNK, b"b\n" * CHUNK, b"c\0d")


def test_line_ends_become_newlines_across_chunks() -> None:
    data = b"a\r\nb\rc\n" + b"x" * (CHUNK - 8) + b"\r" + b"\ny"
    assert text_of(data[:CHUNK], data[CHUNK:])[0] == "a\nb\nc\n" + "x" * (CHUNK - 8) + "\ny"


def test_nothing_in_is_nothing_out() -> None:
    assert text_of() == ("", Decoded())
    assert text_of(b"")[0] == ""


def test_ascii_alone_stays_undecided() -> None:
    assert recognise(b"plain", "a", first=True, last=True) == ("ASCII", 0)


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_read_with_progress(suffix: str, tmp_path) -> None:
    data = random.Random(2).randbytes(900_000)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACKERS[suffix](data[:400_000]) + PACKERS[suffix](data[400_000:]))  # two members, one file
    seen: list[int] = []
    assert b"".join(read_bytes(path, seen.append)) == data
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_compression_is_refused_by_name(suffix: str, tmp_path) -> None:
    packed = PACKERS[suffix](random.Random(3).randbytes(50_000))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=rf"a\{suffix} is damaged or cut short"):
        list(read_bytes(path))
    path.write_bytes(b"this was never compressed")
    with pytest.raises(UserError, match=rf"a\{suffix} is damaged or cut short"):
        list(read_bytes(path))


def test_missing_zstandard_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(b"x")
    with pytest.raises(UserError, match=r"gpt2kit\[zstd\]"):
        list(read_bytes(tmp_path / "a.zst"))


def test_an_unreadable_path_is_a_user_error(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        list(read_bytes(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="cannot read"):
        list(read_bytes(tmp_path))


def test_standard_input_is_read(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"hello")))
    assert list(read_bytes("-")) == [b"hello"]
