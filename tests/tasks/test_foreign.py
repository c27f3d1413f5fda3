"""Classifiers that other tools trained: a folder of transformers, an adapter of PEFT. No end-of-text stands behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gpt2kit.model import files, folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes.merge import merge
from gpt2kit.serve.running import adapter_facts, read_facts
from gpt2kit.tasks import task_of
from gpt2kit.tasks.reference import open_for_tasks
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

TEXTS = ["a fine film", "好片", "dull and long", "a"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*TEXTS, "春眠不觉晓"], "char")


def asked(model: Path) -> list[dict[str, float]]:
    """Each text's probabilities, as `gpt2kit run classify` has them."""
    with open_for_tasks(model, "fp32", 1) as engine:
        task = task_of(files.lineage(model))
        return [answer.details["probabilities"] for answer in task.answer(engine, [task.example(t) for t in TEXTS])]


def softmax(network: Any, tokenizer: Tokenizer) -> NDArray[np.float64]:
    network.eval()
    with torch.no_grad():
        logits = [network(torch.tensor([tokenizer.encode(text)])).logits[0] for text in TEXTS]
    found: NDArray[np.float64] = torch.stack(logits).double().softmax(-1).numpy()
    return found


def test_a_classifier_of_transformers_answers_as_it_does_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=32, n_embd=32, n_layer=2, n_head=2, num_labels=3, pad_token_id=0,
        id2label={0: "bad", 1: "fair", 2: "good"}, initializer_range=0.2,
    )  # fmt: skip
    network = transformers.GPT2ForSequenceClassification(config)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    found = asked(tmp_path / "model")
    assert list(found[0]) == ["bad", "fair", "good"]
    np.testing.assert_allclose([list(one.values()) for one in found], softmax(network, tokenizer), atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_of_peft_answers_when_it_is_merged_and_is_known_when_it_is_served(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import peft
    import transformers

    base = GPT2(GPT2Config(tokenizer.vocab_size, 32, 32, 2, 2), torch.Generator().manual_seed(1))
    folder.save(tmp_path / "base", base, tokenizer, {"name": "base"})
    torch.manual_seed(0)
    network = transformers.GPT2ForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, pad_token_id=0
    )
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True,
                               init_lora_weights=False)  # fmt: skip
    adapted = peft.get_peft_model(network, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "merged")
    found = asked(tmp_path / "merged")
    assert list(found[0]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    np.testing.assert_allclose([list(one.values()) for one in found], softmax(adapted, tokenizer), atol=2e-6)
    facts = adapter_facts("mine", tmp_path / "adapter", read_facts("base", tmp_path / "base"))
    assert facts.described["lineage"]["task"]["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_an_empty_text_has_one_token_to_be_read_at(tokenizer: Tokenizer) -> None:
    task = task_of({"task": files.classifier(("a", "b"), False)})
    (ids,), _ = task.ids([task.example("")], tokenizer, 8)  # type: ignore[attr-defined]
    assert len(ids) == 1
