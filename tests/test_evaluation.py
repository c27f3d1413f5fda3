"""Perplexity: every token once, the protocol's contexts, a plain loop's figures, and honest units."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit import evaluation as module
from gpt2kit.doctor import oracle, proofs
from gpt2kit.errors import UserError
from gpt2kit.evaluation import Evaluation, compare, evaluate, token_losses, window_losses, windows
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

TEXT = "It was the best of times, it was the worst of times. 那是最好的时代，那是最坏的时代。\n" * 4


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer([TEXT], kind="bpe", vocab_size=300)


@pytest.fixture(scope="module")
def model(bpe: Tokenizer) -> Any:
    return proofs.tiny("float64", vocab_size=bpe.vocab_size, n_positions=32)


@dataclass(frozen=True)
class Doc:
    text: str
    continues: bool = False


def plain_loop(model: Any, ids: list[int], context: int) -> list[float]:
    """Token by token: the loss of each token after the first, given at most `context` tokens before it."""
    found = []
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[max(0, t - context) : t]]))[0, -1]
        found.append(-float(logits.log_softmax(-1)[ids[t]]))
    return found


class Recorder:
    """Stands for a model whose loss at an input place is known: the logits say the input position and row
    they saw.

    hidden[b, t] = (input id, how many tokens the window holds up to t), so a loss tells who predicted it from
    what.
    """

    def __init__(self, n_positions: int, vocab_size: int) -> None:
        self.config = SimpleNamespace(n_positions=n_positions, vocab_size=vocab_size)
        self.head = torch.zeros(vocab_size, 2)
        self.training = False
        self.seen: list[tuple[int, int]] = []

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def eval(self) -> None:
        self.training = False

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape[1] <= self.config.n_positions
        place = torch.arange(1, tokens.shape[1] + 1).expand_as(tokens)
        return torch.stack([tokens, place], dim=-1).float()


def record(monkeypatch: pytest.MonkeyPatch, length: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(target, the id before it, tokens of context it had) for every token scored of a stream 0, 1, 2, ..."""
    found: list[tuple[int, int, int]] = []

    def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        found.extend((int(t), int(h[0]), int(h[1])) for h, t in zip(logits, targets, strict=True))
        return targets.float()

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda hidden, _: hidden)
    stream = np.arange(length)
    model: Any = Recorder(context, length)
    done = list(window_losses(model, lambda a, b: stream[a:b], length, context, stride))
    monkeypatch.undo()
    order = [int(x) for _, losses in done for x in losses]
    assert order == list(range(1, length))
    assert [i for s, _ in done for i in range(s.start, s.stop)] == order
    return found


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (1, 1), (5, 2)])
@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 13, 50])
def test_every_token_is_scored_once_with_its_context(
    monkeypatch: pytest.MonkeyPatch, context: int, stride: int, length: int
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_FORWARD", 16)
    found = record(monkeypatch, length, context, stride)
    assert sorted(t for t, _, _ in found) == list(range(1, length))
    for target, before, seen in found:
        assert before == target - 1  # predicted from the token right before it
        assert seen <= context
        assert seen >= min(target, context - stride + 1)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_each_target_once(length: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    targets = []
    for begin, end, first in windows(length, context, stride):
        assert begin < end <= begin + context
        assert begin < first <= end
        targets += range(first, end + 1)
    assert targets == list(range(1, length))


def test_a_text_shorter_than_the_context_equals_the_plain_loop(model: Any, bpe: Tokenizer) -> None:
    text = "the best of times 时代"
    ids = [bpe.eot_id, *bpe.encode(text)]
    expected = plain_loop(model, ids, 32)
    found = evaluate(model, bpe, text)
    assert found.tokens == len(ids) - 1 == len(expected)
    assert found.nll == pytest.approx(sum(expected), rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-12)
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / len(text.encode()), rel=1e-12)
    assert found.bits_per_character == pytest.approx(sum(expected) / math.log(2) / len(text), rel=1e-12)
    scores = oracle.logits(proofs.weights_of(model), ids[:-1], proofs.shape_of(model.config))
    assert found.nll == pytest.approx(float(oracle.nll(scores, ids[1:]).sum()), rel=1e-9)


def test_stride_one_is_the_plain_loop_with_a_full_context(model: Any, bpe: Tokenizer) -> None:
    ids = [bpe.eot_id, *bpe.encode(TEXT)]
    assert len(ids) > 60
    found = evaluate(model, bpe, TEXT, context=7, stride=1)
    assert found.nll == pytest.approx(sum(plain_loop(model, ids, 7)), rel=1e-12)
    assert (found.context, found.stride) == (7, 1)


def test_stride_equal_to_context_is_cut_into_pieces(model: Any, bpe: Tokenizer) -> None:
    ids = [bpe.eot_id, *bpe.encode(TEXT)]
    expected = 0.0
    for begin in range(0, len(ids) - 1, 16):
        expected += sum(plain_loop(model, ids[begin : begin + 17], 16))
    assert evaluate(model, bpe, TEXT, context=16, stride=16).nll == pytest.approx(expected, rel=1e-12)


def test_grouping_and_chunking_change_nothing(model: Any, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(model, bpe, TEXT, context=8)
    assert expected == evaluate(model, bpe, TEXT, context=8)  # to the bit
    monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 900)  # 3 rows
    monkeypatch.setattr(module, "TOKENS_PER_FORWARD", 1)
    monkeypatch.setattr(module, "ENCODE_GROUP", 3)
    found = evaluate(model, bpe, TEXT, context=8)
    assert found.nll == pytest.approx(expected.nll, rel=1e-12)
    assert replace(found, nll=0.0) == replace(expected, nll=0.0)


def test_logits_are_bounded_in_memory(model: Any, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = torch.nn.functional.linear

    def linear(x: torch.Tensor, w: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        out = original(x, w, *bias)
        largest = max(largest, out.numel()) if w is model.head else largest
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 1500)
    evaluate(model, bpe, TEXT)
    assert 0 < largest <= 1500


def test_float32_agrees_with_float64(bpe: Tokenizer, model: Any) -> None:
    single = proofs.tiny("float32", vocab_size=bpe.vocab_size, n_positions=32)
    assert evaluate(single, bpe, TEXT).nll == pytest.approx(evaluate(model, bpe, TEXT).nll, rel=1e-6)


# ---------------------------------------------------------------- documents


def test_separators_are_context_and_never_scored(model: Any, bpe: Tokenizer) -> None:
    documents = ["the best", "时代", "of times"]
    ids: list[int] = []
    for document in documents:
        ids += [bpe.eot_id, *bpe.encode(document)]  # type: ignore[list-item]
    losses = [0.0, *plain_loop(model, ids, 32)]
    expected = sum(loss for token, loss in zip(ids, losses, strict=True) if token != bpe.eot_id)
    found = evaluate(model, bpe, iter(documents))
    assert found.nll == pytest.approx(expected, rel=1e-12)
    assert found.tokens == len(ids) - 3
    assert found.bytes == sum(len(d.encode()) for d in documents)
    assert found.characters == sum(map(len, documents))
    assert found.documents == 3


def test_a_document_cut_into_pieces_is_one(model: Any, bpe: Tokenizer) -> None:
    whole = evaluate(model, bpe, [Doc("the best of times. "), Doc("the worst", continues=True), Doc("时代")])
    again = evaluate(model, bpe, ["the best of times. the worst", "时代"])
    assert (whole.documents, whole.bytes, whole.text_hash) == (2, again.bytes, again.text_hash)


def test_packed_ids_give_the_same_figures_as_their_text(model: Any, bpe: Tokenizer) -> None:
    documents = ["the best 时代", "of times"]
    ids = [*bpe.encode(documents[0]), bpe.eot_id, *bpe.encode(documents[1]), bpe.eot_id]
    expected = evaluate(model, bpe, documents)

    class Packed:
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, index: Any) -> Any:
            return np.array(ids, dtype=np.uint16)[index]

    for form in (ids, np.array(ids), [bpe.eot_id, *ids], Packed()):
        found = evaluate(model, bpe, form)
        assert replace(found, nll=0.0) == replace(expected, nll=0.0)
        assert found.nll == pytest.approx(expected.nll, rel=1e-12)


def test_the_text_hash_of_one_document_is_its_sha256(model: Any, bpe: Tokenizer) -> None:
    found = evaluate(model, bpe, TEXT)
    assert found.text_hash == hashlib.sha256(TEXT.encode()).hexdigest()
    assert evaluate(model, bpe, ["ab"]).text_hash != evaluate(model, bpe, ["a", "b"]).text_hash


def test_empty_documents_are_skipped(model: Any, bpe: Tokenizer) -> None:
    expected = evaluate(model, bpe, ["the best"])
    assert evaluate(model, bpe, ["", "the best", ""]) == expected


def test_special_tokens_typed_in_a_text_are_text(model: Any, bpe: Tokenizer) -> None:
    found = evaluate(model, bpe, "a<|endoftext|>b")
    assert found.documents == 1
    assert found.tokens == len(bpe.encode("a<|endoftext|>b")) > 3


def without_eot(tokenizer: Tokenizer) -> Any:
    names = ("kind", "hash", "vocab_size", "encode", "encode_batch", "decode", "decode_bytes", "token_bytes")
    return SimpleNamespace(eot_id=None, **{name: getattr(tokenizer, name) for name in names})


def test_without_a_separator_the_first_token_is_not_scored(model: Any, bpe: Tokenizer) -> None:
    text = "时代 the best"
    ids = bpe.encode(text)
    found = evaluate(model, without_eot(bpe), text)
    first = bpe.token_bytes(ids[0])
    assert found.tokens == len(ids) - 1
    assert found.nll == pytest.approx(sum(plain_loop(model, ids, 32)), rel=1e-12)
    assert found.bytes == len(text.encode()) - len(first)
    assert found.characters == len(text) - sum(byte & 0xC0 != 0x80 for byte in first)
    with pytest.raises(UserError, match="too short"):
        evaluate(model, without_eot(bpe), "t")


def test_a_tokenizer_that_loses_text_is_marked(model: Any, bpe: Tokenizer) -> None:
    characters = train_tokenizer(["abc"], kind="char")
    small = proofs.tiny("float64", vocab_size=characters.vocab_size)
    known, lost = evaluate(small, characters, "cab"), evaluate(small, characters, "cab!")
    assert known.lossless
    assert not lost.lossless
    assert lost.bytes == 4
    notes = compare(evaluate(model, bpe, "cab!"), lost).notes
    assert "lossless differs: True and False" in notes


# ---------------------------------------------------------------- blocks


def test_each_document_is_a_block(model: Any, bpe: Tokenizer) -> None:
    documents = ["the best of times " * 5, "时代", "of times"]
    losses = token_losses(model, bpe, documents, context=8)
    found = evaluate(model, bpe, documents, context=8)
    starts = [*np.flatnonzero(losses.ids == bpe.eot_id), len(losses.ids)]
    for block, text, begin, end in zip(found.blocks, documents, starts[:-1], starts[1:], strict=True):
        assert block[0] == pytest.approx(np.nansum(losses.nll[begin:end]), rel=1e-12)
        assert block[1:] == (end - begin - 1, len(text.encode()), len(text))


def test_blocks_change_no_bit_of_the_sum(model: Any, bpe: Tokenizer) -> None:
    documents = TEXT.split()
    ids = np.array([token for text in documents for token in (bpe.eot_id, *bpe.encode(text))])
    by_window = [
        float(losses[ids[places] != bpe.eot_id].sum())
        for places, losses in window_losses(model, lambda a, b: ids[a:b], len(ids), 8, 4)
    ]
    found = evaluate(model, bpe, documents, context=8)
    assert found.nll == sum(by_window)
    assert found.nll != sum(block[0] for block in found.blocks)  # another order of summing has other bits


@pytest.mark.parametrize("separated", [True, False])
def test_blocks_sum_to_the_whole(model: Any, bpe: Tokenizer, separated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH_TOKENS", 5)
    monkeypatch.setattr(module, "ENCODE_GROUP", 16)
    tokenizer = bpe if separated else without_eot(bpe)
    for text in (["the best 时代", "", "of times"], np.array(bpe.encode("the best of times 时代 " * 4))):
        found = evaluate(model, tokenizer, text)
        assert np.sum(found.blocks, axis=0) == pytest.approx(
            (found.nll, found.tokens, found.bytes, found.characters), rel=1e-12
        )
    assert len(found.blocks) > 3


def test_a_long_text_is_cut_at_its_pieces_whatever_the_tokenizer(
    model: Any, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH_BYTES", 10)
    pieces = [Doc("the best"), Doc(" of times", True), Doc(" 时代", True), Doc("worst", False)]
    found = evaluate(model, bpe, pieces)
    assert [block[2] for block in found.blocks] == [17, 7, 5]
    tokens = [len(bpe.encode(piece.text)) for piece in pieces]
    assert [block[1] for block in found.blocks] == [tokens[0] + tokens[1], *tokens[2:]]
    assert found.documents == 2
    characters = train_tokenizer([TEXT], kind="char")
    other = evaluate(proofs.tiny("float64", vocab_size=characters.vocab_size), characters, pieces)
    assert [block[2:] for block in other.blocks] == [block[2:] for block in found.blocks]
    assert [block[1] for block in other.blocks] != [block[1] for block in found.blocks]


def test_the_hardest_texts_come_first(model: Any, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HARDEST", 2)
    documents = ["the best of times", "zq", "it was the worst"]
    each = {text: evaluate(model, bpe, text).bits_per_byte for text in documents}
    found = evaluate(model, bpe, documents, context=32, stride=32).hardest
    assert found[0].text == max(each, key=lambda text: each[text]) == "zq"
    assert len(found) == 2
    assert found[0].bits_per_byte > found[1].bits_per_byte


# ---------------------------------------------------------------- state, progress, losses per token


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_without_dropout_and_given_back_as_it_was(bpe: Tokenizer, training: bool) -> None:
    rates: dict[str, Any] = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.5)
    model = proofs.tiny("float64", vocab_size=bpe.vocab_size, **rates).train(training)
    assert evaluate(model, bpe, TEXT) == evaluate(model, bpe, TEXT)
    assert model.training is training
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, bpe, TEXT, progress=interrupt)
    assert model.training is training


def interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_progress_rises_to_the_total(model: Any, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_FORWARD", 16)
    calls: list[tuple[int, int]] = []
    evaluate(model, bpe, TEXT, context=8, progress=lambda *call: calls.append(call))
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] == len(bpe.encode(TEXT)) + 1


def test_token_losses_sum_to_the_evaluation(model: Any, bpe: Tokenizer) -> None:
    documents = ["the best of times " * 5, "时代"]
    found = token_losses(model, bpe, documents, context=8, stride=2)
    whole = evaluate(model, bpe, documents, context=8, stride=2)
    assert np.nansum(found.nll) == pytest.approx(whole.nll, rel=1e-12)
    assert int((~np.isnan(found.nll)).sum()) == whole.tokens
    assert np.array_equal(np.isnan(found.nll), found.ids == bpe.eot_id)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("text", ["", [], [""], np.zeros(0, dtype=np.int64)])
def test_an_empty_text_is_refused(model: Any, bpe: Tokenizer, text: Any) -> None:
    with pytest.raises(UserError, match="empty"):
        evaluate(model, bpe, text)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((33, None), "context must be 1 to the model's 32"),
        ((0, None), "context"),
        ((8, 9), "would skip tokens"),
        ((8, 0), "stride"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(model: Any, bpe: Tokenizer, shape: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        evaluate(model, bpe, TEXT, *shape)
    assert caught.value.hint


def test_the_default_stride_is_half_the_context(model: Any, bpe: Tokenizer) -> None:
    found = evaluate(model, bpe, TEXT)
    assert (found.context, found.stride) == (32, 16)
    assert evaluate(model, bpe, TEXT, context=1).stride == 1


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(bpe: Tokenizer) -> None:
    small = proofs.tiny("float64", vocab_size=200)
    with pytest.raises(UserError, match="outside the model's vocabulary of 200"):
        evaluate(small, bpe, TEXT)
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        evaluate(small, None, TEXT)
    with pytest.raises(UserError, match="-1 is outside"):
        evaluate(small, without_eot(bpe), np.array([5, 6, -1]))


def test_a_text_of_no_tokens_is_refused(model: Any, bpe: Tokenizer) -> None:
    silent = without_eot(bpe)
    silent.eot_id, silent.encode_batch = bpe.eot_id, lambda texts: [[] for _ in texts]
    with pytest.raises(UserError, match="no tokens"):
        evaluate(model, silent, "   ")


def test_a_lone_surrogate_is_refused(model: Any, bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match="lone surrogate at character 1"):
        evaluate(model, bpe, "a\ud800")


def test_a_model_of_nan_is_refused(bpe: Tokenizer) -> None:
    model = proofs.tiny("float64", vocab_size=bpe.vocab_size)
    with torch.no_grad():
        model.ln_f.bias[0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        evaluate(model, bpe, TEXT)


# ---------------------------------------------------------------- the result


def result(**fields: Any) -> Evaluation:
    sums: dict[str, Any] = {"nll": 100.0 * math.log(2), "tokens": 50, "bytes": 200, "characters": 100}
    shape = {"documents": 1, "context": 8, "stride": 4}
    units = {"tokenizer_hash": "a" * 64, "unit": "bpe token", "text_hash": "b" * 64}
    return Evaluation(**(sums | shape | units | fields))


def test_the_figures_follow_from_the_sums() -> None:
    found = result()
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte == pytest.approx(0.5)
    assert found.bits_per_character == pytest.approx(1.0)
    assert result(nll=1e9).perplexity == math.inf


def test_json_carries_the_figures_and_what_they_depend_on() -> None:
    for found in (result(), result(nll=1e9)):
        back = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert back["context"] == 8
        assert back["stride"] == 4
        assert back["tokenizer_hash"] == "a" * 64
        assert back["unit"] == "bpe token"
        assert back["protocol"] == module.PROTOCOL
    assert back["perplexity"] is None


def test_unlike_units_are_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="perplexity per token depends on the tokenizer") as caught:
        compare(result(), result(tokenizer_hash="c" * 64, unit="char token"), unit="token")
    assert "char token of cccccccc" in caught.value.message
    assert "bits per byte" in (caught.value.hint or "")
    with pytest.raises(UserError, match="different texts"):
        compare(result(), result(text_hash="d" * 64))
    with pytest.raises(UserError, match="200 bytes of the text, the other 199"):
        compare(result(), result(bytes=199, tokenizer_hash="c" * 64))
    with pytest.raises(UserError, match="did you mean 'byte'"):
        compare(result(), result(), unit="bytes")


def test_like_units_are_compared_and_the_rest_is_noted() -> None:
    other = result(nll=200.0 * math.log(2), tokenizer_hash="c" * 64, tokens=10, stride=8)
    found = compare(result(), other)
    assert (found.first, found.second, found.difference) == pytest.approx((0.5, 1.0, 0.5))
    assert found.notes == ("stride differs: 4 and 8",)
    assert compare(result(), other, "character").second == pytest.approx(2.0)
    same = compare(result(), result(nll=50 * math.log(2)), "token")
    assert (same.first, same.second) == pytest.approx((4.0, 2.0))
    assert same.notes == ()


def test_documents_may_be_a_generator(model: Any, bpe: Tokenizer) -> None:
    def documents() -> Iterator[str]:
        yield "the best"
        yield "of times"

    assert evaluate(model, bpe, documents()) == evaluate(model, bpe, ["the best", "of times"])
