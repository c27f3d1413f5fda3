import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.text import bytelevel
from gpt2kit.text.bytelevel import ByteLevelEncoder, canonical
from gpt2kit.text.tokenizer import Tokenizer


def encoder_of(tokenizer: Tokenizer) -> ByteLevelEncoder:
    encoder = tokenizer._encoder
    assert isinstance(encoder, ByteLevelEncoder)
    return encoder


def same(fast: list[npt.NDArray[np.unsignedinteger]], slow: list[list[int]]) -> bool:
    return len(fast) == len(slow) and all(a.tolist() == b for a, b in zip(fast, slow, strict=True))


PARTS = st.one_of(
    st.text(),
    st.sampled_from(["'s", "'ll", "'v", "'", " '", " ", "  ", "\n", "\r\n", "\u3000", "\x85", "\x1c", "\u2028"]),
    st.text("ab '1!\n 我é", max_size=40),
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=5),
    st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF)),
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(PARTS).map("".join)))
@example(["a'", "'s", "x 's", " ", "a ", "  a", "\n\n a", "a" * 15, "b" * 16, "我" * 5, "1" * 2000 + "a"])
def test_kernels_equal_tiktoken_and_tokenizers(gpt2: Tokenizer, trained: Tokenizer, texts: list[str]) -> None:
    for tokenizer in (gpt2, trained):
        encoder = encoder_of(tokenizer)
        fast = list(encoder._encode_fast(texts, threads=2))
        assert same(fast, [encoder.encode(text) for text in texts])
        theirs = tokenizer._backend.encode_batch(texts, add_special_tokens=False)
        assert same(fast, [one.ids for one in theirs])


def test_a_long_document_is_cut_where_no_piece_spans(
    gpt2: Tokenizer, english: str, chinese: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytelevel, "CHUNK_CHARACTERS", 300)
    encoder = encoder_of(gpt2)
    texts = [
        english[:50_000],
        "x" * 3000,
        "".join(chinese) * 30,
        "a  \n\n b\x1c \x1f! " * 300,
        "don't " * 500,
        ("\n" * 12 + "x") * 500,
    ]
    assert len(list(bytelevel._cut(texts[0]))) > 50
    assert same(list(encoder._encode_fast(texts, threads=2)), [encoder.encode(text) for text in texts])


def test_large_batches_take_the_kernels_and_small_ones_do_not(
    gpt2: Tokenizer, english: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = ByteLevelEncoder._encode_fast
    monkeypatch.setattr(ByteLevelEncoder, "_encode_fast", lambda *given: calls.append(1) or original(*given))
    gpt2.encode_batch([english[:1000]])
    assert not calls
    texts = [english[:700_000], english[1000:], english[2000:]]
    found = gpt2.encode_batch(texts)
    assert calls
    assert same(found, [gpt2.encode(text) for text in texts])


def test_classes_are_those_of_the_tokenizers_library() -> None:
    classes = bytelevel.code_point_classes()
    assert not classes[0x40000:].any()  # nothing but marks and private use up there
    every = "".join(chr(point) for point in range(0x40000) if not 0xD800 <= point < 0xE000)
    for kind, pattern in ((1, r"\p{L}"), (2, r"\p{N}"), (3, r"\s")):
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
        ours = {chr(point) for point in np.flatnonzero(classes == kind).tolist()}
        left: set[str] = set()
        for begin in range(0, len(every), 50_000):
            for part, _ in split.pre_tokenize_str(every[begin : begin + 50_000]):
                left.update(part)
        assert ours == set(every) - left


def test_lone_surrogates_in_a_large_batch(gpt2: Tokenizer, english: str) -> None:
    with pytest.raises(UserError, match=r"U\+DC80"):
        gpt2.encode_batch([english, english + "\udc80", english])


def test_ids_need_not_be_ranks(trained: Tokenizer) -> None:
    """A vocabulary with its ids reversed, as some models have: ranks and ids part."""
    size = trained.vocab_size - 1
    vocabulary = {token: size - 1 - number for token, number in trained._vocabulary.items() if number < size}
    merges = [tuple(pair) for pair in trained._document["model"]["merges"]]
    encoder = ByteLevelEncoder(vocabulary, merges)
    text = "The import statement: 从前有一座山。"
    expected = [size - 1 - number for number in trained.encode(text)]
    assert encoder.encode(text) == expected
    assert same(list(encoder._encode_fast([text], 1)), [expected])
    assert same(encoder.encode_batch([text, ""], 2), [expected, []])


def test_vocabularies_that_tiktoken_cannot_express_go_through_the_library() -> None:
    letters = bytelevel.byte_alphabet().values()
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    for token in ("ab", "bc", "abc"):
        vocabulary[token] = len(vocabulary)
    # bc joins first, so "abc" ends as a + bc; tiktoken would join these into abc, the listed merges do not.
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert not canonical(backend.model, vocabulary, merges)
    odd = Tokenizer(backend)
    assert not isinstance(odd._encoder, ByteLevelEncoder)
    assert odd.encode("abc") == [vocabulary["a"], vocabulary["bc"]]
    assert odd.encode_batch(["abc"])[0].tolist() == odd.encode("abc")
    assert not canonical(backend.model, vocabulary, [("ab", "c"), ("a", "b")])  # used before it is made
    assert not canonical(backend.model, {"a": 0}, [])


def test_cores_is_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= bytelevel.cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert bytelevel.cores() == (os.cpu_count() or 1)


PROBE = """
import numpy as np
from gpt2kit.text import kernels
pairs = np.full(16, -1, np.int64)
kernels.fill_pairs(np.array([97]), np.array([98]), pairs)
print(int((pairs >= 0).sum()))
"""


@pytest.mark.parametrize("state", ["no folder", "damaged"])
def test_kernels_work_without_a_usable_cache(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "cache"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    if state == "no folder":
        folder.write_text("a file where the folder should be")
    else:
        subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True, capture_output=True)
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert written
        for path in written:
            path.write_bytes(b"\x80damaged")
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["text/tinyshakespeare.txt", "text/tang-poems.jsonl.xz", "sentiment/imdb-test.jsonl.xz"]
)
def test_kernels_equal_tiktoken_on_whole_files(gpt2: Tokenizer, data: Callable[[str], list[str]], name: str) -> None:
    texts = data(name)
    encoder = encoder_of(gpt2)
    fast = list(encoder._encode_fast(texts, threads=2))
    assert same(fast, [encoder.encode(text) for text in texts])
    assert same(fast[:2000], [one.ids for one in gpt2._backend.encode_batch(texts[:2000])])
