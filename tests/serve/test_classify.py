"""POST /v1/classify and /v1/rank by tuned models: what the model file says, in any company."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from live import CONTEXT, Live, make_model, serving

from gpt2kit.data.families import Where
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tasks.classify import Classify, LabelRow
from gpt2kit.tasks.rank import Rank

LABELS = ("正面", "负面", "other")
TEXTS = ["春眠不觉晓", "Once upon a time", "a" * 400]


def tune(path: Path, task: Classify | Rank) -> None:
    """A model with the task's head, drawn at random."""
    make_model(path)
    base, tokenizer = folder.load(path)
    torch.manual_seed(1)
    model = GPT2(task.model_config(base.config))
    model.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        model.score.weight.normal_()
    folder.save(path, model, tokenizer, {"task": task.values()})


@pytest.fixture(scope="module", params=[False, True], ids=["one", "several"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Path]]:
    path = tmp_path_factory.mktemp("tuned") / "tiny"
    tune(path, Classify(LABELS, request.param))
    with serving({"tiny": path}) as live:
        yield live, path


def test_texts_are_told_as_the_model_file_tells_them(tuned: tuple[Live, Path]) -> None:
    live, path = tuned
    found = live.post("/v1/classify", input=TEXTS)
    model, tokenizer = folder.load(path)
    assert tokenizer is not None
    task = Classify(LABELS, model.config.multi_label)
    rows = [LabelRow(text, (), where=Where("t")) for text in TEXTS]
    ids, cut = task.ids(rows, tokenizer, CONTEXT)
    assert sum(cut) == 1
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    for one, tokens in zip(found["data"], ids, strict=True):
        with torch.no_grad():
            scores = model.classify(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0]
        shares = torch.sigmoid(scores) if model.config.multi_label else torch.softmax(scores, 0)
        assert list(one["probabilities"]) == list(LABELS)
        assert list(one["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-3)  # fp32, other order
        wanted = [n for n, p in zip(LABELS, shares.tolist(), strict=True) if p > 0.5]
        assert one["labels"] == (wanted if model.config.multi_label else [LABELS[int(shares.argmax())]])


def test_company_changes_no_bit_and_ids_are_taken_as_they_are(tuned: tuple[Live, Path]) -> None:
    live, path = tuned
    together = live.post("/v1/classify", input=TEXTS)["data"]
    alone = [live.post("/v1/classify", input=text)["data"][0] for text in TEXTS]
    assert [one["probabilities"] for one in together] == [one["probabilities"] for one in alone]
    _, tokenizer = folder.load(path)
    assert tokenizer is not None
    ids = [*tokenizer.encode(TEXTS[0]), tokenizer.eot_id]
    assert live.post("/v1/classify", input=ids)["data"][0]["probabilities"] == alone[0]["probabilities"]


def test_pairs_are_told_as_the_model_was_tuned_on_them_and_single_texts_refused(tmp_path: Path) -> None:
    task = Classify(LABELS, pairs=True)
    tune(tmp_path / "tiny", task)
    model, tokenizer = folder.load(tmp_path / "tiny")
    assert tokenizer is not None
    seconds = ["花落知多少", "there was a hare", "b" * 400]
    rows = [LabelRow(text, (), pair, where=Where("t")) for text, pair in zip(TEXTS, seconds, strict=True)]
    ids, _ = task.ids(rows, tokenizer, CONTEXT)
    with serving({"tiny": tmp_path / "tiny"}) as live:
        found = live.post("/v1/classify", input=TEXTS, text_pair=seconds)
        one = live.post("/v1/classify", input=TEXTS[0], text_pair=seconds[0])["data"][0]
        wrong: list[tuple[object, object]] = [
            (TEXTS[0], None), (TEXTS, seconds[:2]), (TEXTS[0], seconds), ([1, 2], seconds[0]), (TEXTS[0], "")
        ]  # fmt: skip
        for given, pair in wrong:
            status, _, said = live.ask("POST", "/v1/classify", {"model": "tiny", "input": given, "text_pair": pair})
            assert (status, json.loads(said)["error"]["param"]) == (400, "text_pair")
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert one["probabilities"] == found["data"][0]["probabilities"]
    for told, tokens in zip(found["data"], ids, strict=True):
        with torch.no_grad():
            scores = model.classify(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0]
        assert list(told["probabilities"].values()) == pytest.approx(torch.softmax(scores, 0).tolist(), abs=1e-3)


def test_a_folder_with_labels_says_so(tuned: tuple[Live, Path]) -> None:
    live, path = tuned
    assert live.get("/v1/models/tiny")["gpt2kit"]["config"]["labels"] == list(LABELS)
    assert folder.load(path)[0].config.labels == LABELS


def test_documents_are_ranked_as_the_model_file_scores_them(tmp_path: Path) -> None:
    tune(tmp_path / "tiny", Rank())
    model, tokenizer = folder.load(tmp_path / "tiny")
    assert tokenizer is not None
    query, documents = "春天的诗", [*TEXTS, "春眠不觉晓", "夜来风雨声"]
    with serving({"tiny": tmp_path / "tiny"}) as live:
        found = live.post("/v1/rank", query=query, documents=documents)
        best = live.post("/v1/rank", query=query, documents=documents, top_n=2)
        assert live.ask("POST", "/v1/classify", {"model": "tiny", "input": "a"})[0] == 400
    ids, cut = Rank().ids(query, documents, tokenizer, CONTEXT)
    assert cut
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    with torch.no_grad():
        scores = [float(model.classify(torch.tensor([row]), torch.tensor([len(row)]))) for row in ids]
    results = found["results"]
    assert [one["document"]["text"] for one in results] == [documents[one["index"]] for one in results]
    for one in results:
        assert one["relevance_score"] == pytest.approx(scores[one["index"]], abs=1e-3)  # fp32, in another order
    order = [one["index"] for one in results]
    assert order == sorted(range(5), key=lambda index: (-results[order.index(index)]["relevance_score"], index))
    assert order.index(0) < order.index(3)  # the same text
    assert best["results"] == results[:2]
