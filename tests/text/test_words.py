import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.text import words
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_known_characters_round_trip(characters: Tokenizer, data: st.DataObject) -> None:
    known = [token for token in characters._tokens if len(token) == 1]
    text = data.draw(st.text(st.sampled_from(known)))
    ids = characters.encode(text)
    assert len(ids) == len(text)
    assert characters.decode(ids) == text


def test_unknown_characters_are_marked(characters: Tokenizer) -> None:
    ids = characters.encode("a𝄞b\n")
    assert ids[1] == characters.special_tokens["<unk>"]
    assert characters.decode(ids) == "a\ufffdb\n"
    assert characters.pieces("𝄞") == [(ids[1], "\ufffd")]
    assert characters.encode("<|endoftext|>", "all") == [characters.eot_id] == [characters.vocab_size - 1]


def test_character_ids_follow_code_points() -> None:
    tokenizer = train_tokenizer(["ba\nc", "a"], kind="char")
    assert tokenizer._tokens == ["\n", "a", "b", "c", "<unk>", "<|endoftext|>"]
    small = train_tokenizer(["aaabbc"], kind="char", vocab_size=4)
    assert small._tokens == ["a", "b", "<unk>", "<|endoftext|>"]


def test_word_pieces_lose_nothing_and_keep_the_space_with_the_word(word: Tokenizer) -> None:
    split = words.splitter(words.WORD)
    assert split("Hello, the world's  end.\n我们 x_1") == [
        "Hello", ",", " the", " world's", " ", " end", ".", "\n", "我", "们", " x_1",
    ]  # fmt: skip
    text = "The import statement\n\n  is  从前有一座山。"
    assert word.decode(word.encode(text)) == text


@settings(deadline=None, max_examples=200)
@given(st.text() | st.text("a 1'’_!\n我カか한é\u0301"))
def test_word_and_jieba_pieces_join_to_the_text(text: str) -> None:
    assert "".join(words.splitter(words.WORD)(text)) == text
    assert "".join(words.splitter(None)(text)) == text


def test_jieba_cuts_chinese_into_words_that_the_library_takes(chinese: tuple[str, ...], english: str) -> None:
    tokenizer = train_tokenizer([*chinese, english[:5000]], kind="word", segmenter="jieba")
    text = "人工智能正在改变世界, the statement"
    pieces = [shown for _, shown in tokenizer.pieces(text)]
    assert "人工智能" in pieces
    assert "世界" in pieces
    assert " statement" in pieces
    library = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    assert library.encode(words.splitter(None)(text), is_pretokenized=True).ids == tokenizer.encode(text)
    assert tokenizer.hash != train_tokenizer([*chinese, english[:5000]], kind="word").hash


def test_jieba_round_trip_through_a_folder(chinese: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("jieba")
    tokenizer = train_tokenizer(chinese, kind="word", segmenter="jieba")
    tokenizer.save(folder)
    again = Tokenizer.load(folder)
    assert again.hash == tokenizer.hash
    for text in chinese:
        assert again.decode(again.encode(text)) == text
    assert "is_pretokenized" in (folder / "tokenizer_config.json").read_text(encoding="utf-8")


def test_without_jieba_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['jieba'] = None\n"
        "from gpt2kit.text import words\n"
        "try: words.splitter(None)\n"
        "except Exception as error: print(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "run: pip install 'gpt2kit[chinese]'"


def test_importing_text_stays_light() -> None:
    code = (
        "import sys, gpt2kit.text.tokenizer, gpt2kit.text.training\n"
        "heavy = ('torch', 'numba', 'tiktoken', 'tokenizers', 'jieba')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_lone_surrogates_in_words() -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        words.splitter(words.WORD)("\ud800")
