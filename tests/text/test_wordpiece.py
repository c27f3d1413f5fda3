import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import StreamDecoder, Tokenizer


@settings(deadline=None, max_examples=150)
@example("[MASK]")
@given(st.text() | st.text("aAbB unbelievablesélo,.!?()从前有一座山\u3000\n", max_size=60))
def test_ids_are_those_of_transformers(wordpiece_folder: Path, wordpiece: Tokenizer, text: str) -> None:
    global _theirs
    if _theirs is None:
        from transformers import BertTokenizer

        _theirs = BertTokenizer.from_pretrained(wordpiece_folder)
    assert wordpiece.encode(text) == _theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


_theirs = None


def test_options_of_tokenizer_config_are_honoured(wordpiece_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes((wordpiece_folder / "vocab.txt").read_bytes())
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode("HELLO Café")) == "hello cafe"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    cased = Tokenizer.load(tmp_path)
    assert cased.decode(cased.encode("HELLO café")) == "\ufffd café"
    assert cased.hash != Tokenizer.load(wordpiece_folder).hash
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "yes"}))
    with pytest.raises(UserError, match="do_lower_case"):
        Tokenizer.load(tmp_path)


def test_decoding_spaces_words_and_not_chinese(wordpiece: Tokenizer) -> None:
    for text, expected in {
        "hello   world, unbelievables!": "hello world, unbelievables!",
        "从 前 有，一座山。": "从前有，一座山。",
        "hello从前world (a) b?": "hello从前world (a) b?",
        "hello \U0001f600 world": "hello \ufffd world",
    }.items():
        ids = wordpiece.encode(text)
        assert wordpiece.decode(ids) == expected
        stream = StreamDecoder(wordpiece)
        assert "".join([stream.push(number) for number in ids]) + stream.finish() == expected


def test_separator_is_the_end_of_text(wordpiece: Tokenizer) -> None:
    assert wordpiece.kind == "wordpiece"
    assert wordpiece.eot_id == wordpiece.special_tokens["[SEP]"]
    assert wordpiece.encode("[SEP]", {"[SEP]"}) == [wordpiece.eot_id]
    assert wordpiece.eot_id not in wordpiece.encode("[SEP]")
    assert (
        wordpiece.decode([wordpiece.special_tokens["[CLS]"], *wordpiece.encode("hello"), wordpiece.eot_id]) == "hello"
    )


def test_the_second_folder_has_a_vocab_txt_of_the_same_ids(
    wordpiece: Tokenizer, wordpiece_folder: Path, tmp_path: Path
) -> None:
    wordpiece.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (wordpiece_folder / "vocab.txt").read_bytes()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.load(tmp_path).hash == wordpiece.hash


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe\x00", "not a UTF-8 text"), (b"hello\nworld\n", r"no \[UNK\]")]
)
def test_other_texts_named_vocab_txt_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        Tokenizer.load(tmp_path)
