import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tokenizers

from gpt2kit.errors import UserError
from gpt2kit.text import kernels, training
from gpt2kit.text.bytelevel import code_point_classes
from gpt2kit.text.tokenizer import Tokenizer, measure
from gpt2kit.text.training import train_tokenizer


def json_of(tokenizer: Tokenizer) -> str:
    return str(tokenizer._backend.to_str())


@pytest.mark.slow
def test_same_documents_same_bytes_in_another_process(english: str, chinese: tuple[str, ...]) -> None:
    code = (
        "import hashlib, sys\n"
        "from gpt2kit.text import training\n"
        "training.DIRECT_BYTES = int(sys.argv[1])\n"
        "documents = sys.stdin.buffer.read().decode().split('\\0')\n"
        "found = training.train_tokenizer(documents, vocab_size=600)\n"
        "print(hashlib.sha256(found._backend.to_str().encode()).hexdigest())"
    )
    given = "\0".join([english[:60_000], *chinese]).encode()
    for direct in ("0", "99999999"):
        runs = [
            subprocess.run([sys.executable, "-c", code, direct], input=given, check=True, capture_output=True).stdout
            for _ in range(2)
        ]
        assert runs[0] == runs[1]
        assert len(runs[0]) == 65


def test_bytes_come_first_and_the_end_of_text_last(trained: Tokenizer) -> None:
    assert trained.vocab_size == 2000
    assert trained.eot_id == 1999 == trained.special_tokens["<|endoftext|>"]
    assert {trained.token_bytes(number) for number in range(256)} == {bytes([byte]) for byte in range(256)}


def test_the_smallest_vocabulary_is_bytes(english: str) -> None:
    tokenizer = train_tokenizer([english[:1000]], vocab_size=257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("我a")) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"vocab_size": 256}, "too small"),
        ({"kind": "char", "vocab_size": 2}, "too small"),
        ({"kind": "wordpeice"}, "unknown kind"),
        ({"kind": "word", "segmenter": "nltk"}, "unknown segmenter"),
        ({"kind": "char", "segmenter": "jieba"}, "kind char has none"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train_tokenizer(["some text"], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_no_text_is_refused(kind: str) -> None:
    for documents in ([], ["", ""]):
        with pytest.raises(UserError, match="no text"):
            train_tokenizer(documents, kind=kind)


def test_documents_are_read_once_and_progress_is_told(english: str) -> None:
    told: list[int] = []
    documents = iter([english[:1000], "我", english[:500]])
    train_tokenizer(documents, vocab_size=300, progress=told.append)
    assert told == [1000, 1003, 1503]


def test_counting_gives_what_the_trainer_finds_alone(english: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no piece is cut and no table pruned, our counts and the library's own are the same."""
    text = " ".join(word for word in english[:150_000].split(" ") if len(word) < 20)
    plain = train_tokenizer([text], vocab_size=1500)
    monkeypatch.setattr(training, "DIRECT_BYTES", 1000)
    counted = train_tokenizer([text], vocab_size=1500)
    same = set(plain._tokens) & set(counted._tokens)
    # Documents are cut every CHUNK_BYTES / 4 characters, runs of dashes at 23 bytes: a few tokens differ.
    assert len(same) > 1480


def unpacked(table: training.Array) -> dict[str, int]:
    scratch = np.empty(kernels.COUNTED_BYTES, np.uint8)
    return {scratch[: kernels.unpack(row, scratch)].tobytes().decode(): int(row[3]) for row in table if row[3]}


def test_counts_are_those_of_the_pattern(english: str) -> None:
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = english[:50_000] + " 从前有一座山，山里"
    expected = Counter(text[a:b] for _, (a, b) in split.pre_tokenize_str(text))
    found = unpacked(training._count([text]))
    short = {piece: count for piece, count in expected.items() if len(piece) <= 4}
    assert short
    assert all(found[piece] >= count for piece, count in short.items())
    assert sum(len(piece) * count for piece, count in found.items()) == len(text)
    assert found[" 从前有"] == found["一座山"] == 1  # cut at 12 bytes


def test_pruning_keeps_every_character() -> None:
    text = " ".join("".join(random.Random(n).choices("abcdefgh我你他", k=7)) for n in range(3000)) + " the" * 50
    table = np.zeros((1 << 15, 4), np.int64)
    data = np.frombuffer(text.encode(), np.uint8)
    kernels.count_pieces(data, np.array([0, len(data)]), code_point_classes(), table)
    before = unpacked(table)
    kept = np.zeros_like(table)
    entries, cut = kernels.prune(table, 10, kept)
    after = unpacked(kept)
    assert entries == len(after)
    assert 2000 < cut < len(before)
    assert after[" the"] == 50

    def mass(counts: dict[str, int]) -> Counter[str]:
        total: Counter[str] = Counter()
        for piece, count in counts.items():
            for character in piece:
                total[character] += count
        return total

    assert mass(before) == mass(after)
    assert max(len(piece) for piece in after if piece != " the") < max(map(len, before))


def test_a_full_table_is_pruned_and_the_vocabulary_still_good(
    english: str, chinese: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [english[:200_000], *chinese * 20]
    exact = train_tokenizer(documents, vocab_size=1000)
    for name, value in (
        ("DIRECT_BYTES", 0),
        ("TABLE_ENTRIES", 3000),
        ("KEPT_ENTRIES", 2000),
        ("CHUNK_BYTES", 1 << 14),
    ):
        monkeypatch.setattr(training, name, value)
    pruned = train_tokenizer(documents, vocab_size=1000)
    assert pruned.vocab_size == 1000
    for texts in (documents[:1], chinese):
        assert measure(pruned, texts).tokens <= 1.15 * measure(exact, texts).tokens


def test_pruning_ends_when_only_characters_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KEPT_ENTRIES", 2)
    table = training._count(["abcdefgh ijkl mnop"])
    assert all(len(piece) == 1 for piece in unpacked(table))


def test_text_that_is_all_different_fits_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random letters: every piece and every half is new, so that halving alone would overflow the table."""
    for name, value in (
        ("TABLE_SLOTS", 1 << 12),
        ("TABLE_ENTRIES", 1000),
        ("KEPT_ENTRIES", 900),
        ("CHUNK_BYTES", 2000),
    ):
        monkeypatch.setattr(training, name, value)
    draw = random.Random(0)
    text = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=22)) for _ in range(5000)]
    counts = unpacked(training._count(text))
    assert len(counts) <= 900
    assert sum(len(piece) * count for piece, count in counts.items()) == 5000 * 22


def test_emission_scales_counts_and_keeps_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EMITTED_PIECES", 100)
    table = training._count(["a " * 700 + "bb " * 300])
    emitted = Counter("".join(training._emit(table)).split(training.BOUNDARY)[:-1])
    assert 98 <= sum(emitted.values()) <= 100
    assert emitted[" a"] == pytest.approx(69, abs=2)
    assert emitted[" bb"] == pytest.approx(30, abs=2)
    rare = training._count([" ".join(f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(400))])
    assert 98 <= "".join(training._emit(rare)).count(training.BOUNDARY) <= 100  # each one counts a quarter


def test_the_word_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WORDS_COUNTED", 100)
    tokenizer = train_tokenizer([f"word{n} common" for n in range(1000)], kind="word")
    assert tokenizer.vocab_size <= 102
    assert " common" in tokenizer._vocabulary


STREAM = """
import lzma, json, os, random, sys
from gpt2kit import runtime
from gpt2kit.text.training import train_tokenizer
root = os.environ["GPT2KIT_DATA"]
def read(name):
    with lzma.open(os.path.join(root, name), "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]
poems, reviews = read("text/tang-poems.jsonl.xz"), read("text/imdb-unsup.jsonl.xz")
han = "".join(poems[:3000]).replace("，", "").replace("。", "").replace("\\n", "")
def stream(bytes_wanted):
    draw, done, room = random.Random(0), 0, len(han) - 20
    while done < bytes_wanted:
        text = draw.choice(reviews)
        if draw.random() < 0.5:  # recombined verses: nearly every run of characters is new
            a, b = draw.randrange(room), draw.randrange(room)
            pairs = [(k % room, (k * 7 + b) % room) for k in range(a, a + 7860, 131)]
            runs = [han[k:k + 9] + han[m:m + 3] for k, m in pairs]
            text = "。".join(runs) + f" {draw.getrandbits(60)}"
        done += len(text.encode())
        yield text
found = train_tokenizer(stream(1e9), vocab_size=32000)
print(found.vocab_size, runtime.peak_memory() >> 20)  # getrusage would say a larger parent's
"""


@pytest.mark.slow
def test_a_gigabyte_trains_in_less_than_a_gigabyte_and_a_half(data: Callable[[str], list[str]]) -> None:
    done = subprocess.run([sys.executable, "-c", STREAM], check=True, capture_output=True, text=True)
    size, peak = map(int, done.stdout.split())
    assert size == 32_000
    assert peak < 1500, f"{peak} MB"  # 991 MB here


def test_the_stream_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = 0

    class Tracked(str):
        def __init__(self, *_: object) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most = 0

    def documents() -> Iterator[str]:
        nonlocal most
        for number in range(60):
            most = max(most, alive)
            yield Tracked(f"document {number} " * 1000)

    monkeypatch.setattr(training, "DIRECT_BYTES", 100_000)
    train_tokenizer(documents(), vocab_size=260)
    assert most <= 3
