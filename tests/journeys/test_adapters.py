"""Adapters as a user meets them: `finetune --method`, `run`, `evaluate`, `merge`, a stop and its `--resume`."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit import commit, peft
from gpt2kit.engine import Engine
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.peft import artefact
from gpt2kit.recipes import finetune
from gpt2kit.recipes.events import Finished
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.tasks import reference
from gpt2kit.tasks.reference import open_for_tasks, with_head
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training import checkpoint, track

from .conftest import Result

Cli = Callable[..., Result]
WORDS = ["red", "green", "blue", "七", "八", "九", "wolf", "sheep"]
SHAPE = {"n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
MERGING = ("lora", "lora-all", "rslora", "dora", "adalora", "ia3", "bitfit", "last")
OTHERS = ("houlsby", "pfeiffer", "prefix", "prefix-mlp", "prompt", "p-tuning", "p-tuning-lstm")
QUICK = ("--steps", 3, "--batch", 4, "--evaluate-every", 1, "--learning-rate", 0.02, "--precision", "fp32")
SMALL = {"adalora": ("--method-settings", "start=0.1,settle=0.3,every=1"), "rslora": ("--rank", 4)}
SMALL |= {name: ("--method-settings", "tokens=5") for name in OTHERS if name.startswith("p") and name != "pfeiffer"}


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the loss takes longer than everything else here."""
    monkeypatch.setattr(track, "plot", lambda folder: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with weights as trained ones are, and a character vocabulary."""
    path = tmp_path_factory.mktemp("models") / "base"
    tokenizer = train_tokenizer([" ".join(WORDS), "=>\n abcdefghijklmnopqrstuvwxyz ,.?"], "char")
    model = GPT2(GPT2Config(tokenizer.vocab_size, **SHAPE), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    folder.save(path, model, tokenizer, {"name": "base"})
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": f"{a} {b}", "label": "colour" if a in WORDS[:3] else "other"} for a in WORDS for b in WORDS]
    return lines(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"{a} {b}", "completion": b} for a in WORDS for b in WORDS]
    return lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


def tune(run: Cli, data: Path, base: Path, method: str, out: str, *more: object, task: str = "classify") -> Result:
    done = run("finetune", data, "--from", base, "--task", task, "--method", method, "--out", out, *QUICK,
               *SMALL.get(method, ()), *more)  # fmt: skip
    assert done.code == 0, done.err
    return done


def adapted_model(base: Path, out: Path) -> GPT2:
    """The base with the run's adapter over it, put together by hand."""
    model, _ = folder.load(base)
    said = peft.describe(out / "adapter")
    if said.labels:
        model = with_head(model, GPT2Config(**{**vars(model.config), "labels": said.labels}))
    peft.load(out / "adapter", model)
    return model


def scores(model: GPT2, texts: list[str], base: Path) -> torch.Tensor:
    """A classifier's scores [P, labels] from the model file, one text at a time."""
    _, tokenizer = folder.load(base)
    assert tokenizer is not None
    rows = [[*tokenizer.encode(text), tokenizer.eot_id] for text in texts]
    with torch.no_grad():
        return torch.cat([model.classify(torch.tensor([row]), torch.tensor([len(row)])) for row in rows])


def like(method: str) -> Any:
    """One of each kind of method in the default suite, all of them with `-m slow`."""
    return pytest.param(method, marks=() if method in ("pfeiffer", "prefix", "prompt") else pytest.mark.slow)


TEXTS = ["red wolf", "七 八 九 wolf red", "blue"]


@pytest.mark.parametrize("method", ["full", *MERGING, *(like(m) for m in OTHERS)])
def test_from_a_raw_file_to_an_answer(run: Cli, base: Path, reviews: Path, method: str) -> None:
    told = tune(run, reviews, base, method, "out").out
    asked = lines(Path("asked.txt"), [])
    asked.write_text("\n".join(TEXTS), encoding="utf-8")
    answered = run("run", "classify", "out", asked, "--json", "--precision", "fp32")
    assert answered.code == 0, answered.err
    found = [json.loads(line)["probabilities"] for line in answered.out.splitlines()]
    shares = torch.tensor([[row["colour"], row["other"]] for row in found])
    if method == "full":
        assert "all " in told
        assert not Path("out/adapter").exists()
        return
    assert f"{method}: " in told
    expected = scores(adapted_model(base, Path("out")), TEXTS, base).softmax(-1)
    torch.testing.assert_close(shares, expected, atol=2e-5, rtol=0)  # fp32, other summation order
    untuned = with_head(folder.load(base)[0], folder.load("out")[0].config) if method in MERGING else None
    assert untuned is None or float((scores(untuned, TEXTS, base).softmax(-1) - expected).abs().max()) > 1e-3
    assert Path("out/model.safetensors").exists() == (method in MERGING)
    assert ("gpt2kit serve out" in told) == (method in MERGING)
    assert 'next:\n  gpt2kit evaluate out TEST\n  gpt2kit run classify out "text"' in told
    assert "generate" not in told


@pytest.mark.parametrize(
    "method", ["prefix", *(pytest.param(m, marks=pytest.mark.slow) for m in ("adalora", "houlsby"))]
)
def test_pairs_are_answered_and_scored(run: Cli, base: Path, pairs: Path, method: str) -> None:
    tune(run, pairs, base, method, "out", task="instruct")
    done = run("run", "instruct", "out", "wolf 七", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["finish_reason"] in ("stop", "length")
    scored = run("evaluate", "out", pairs, "--json")
    assert scored.code == 0, scored.err
    assert "chrf" in json.loads(scored.out)["metrics"]
    assert ("the model file's own decoder" in scored.err) == (method != "adalora")


@pytest.mark.parametrize("method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in MERGING[1:])])
def test_the_merged_folder_is_the_adapted_model(run: Cli, base: Path, pairs: Path, method: str) -> None:
    tune(run, pairs, base, method, "out", task="instruct")
    merged, tokenizer = folder.load("out")
    ids = torch.randint(tokenizer.vocab_size, (3, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, plain = adapted_model(base, Path("out"))(ids), folder.load(base)[0](ids)
        torch.testing.assert_close(merged(ids), expected, atol=2e-5, rtol=1e-5)
    assert float((plain - expected).abs().max()) > 1e-3
    if method == "lora":  # the merge by hand gives the same bytes
        assert run("merge", "out", "--from", base, "--out", "merged").code == 0
        assert Path("merged/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
        with Engine.load("merged", "fp32") as one, Engine.load("out", "fp32") as two:
            assert one.generate("wolf", seed=1, max_tokens=8) == two.generate("wolf", seed=1, max_tokens=8)


def cut_short(out: Path, keep: int = 1) -> None:
    """As after a kill: the first checkpoints alone, nothing that the end made."""
    for step in checkpoint.steps_of(out)[keep:]:
        shutil.rmtree(checkpoint.folder_of(out, step))
    for name in ("model.safetensors", "config.json", "gpt2kit.json"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "adapter")


RESUMED = {"lora": ("--dropout", 0.2), "adalora": ("--int8-base",), "prefix-mlp": (), "full": ()}


@pytest.mark.parametrize("method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in RESUMED if m != "lora")])
def test_a_resumed_run_ends_in_the_same_bytes(run: Cli, base: Path, reviews: Path, method: str) -> None:
    for name in ("straight", "cut"):
        tune(run, reviews, base, method, name, "--steps", 8, "--evaluate-every", 2, *RESUMED[method])
    if method == "full":
        Path("cut/adapter").mkdir()
    cut_short(Path("cut"))
    assert len(checkpoint.steps_of(Path("cut"))) == 1
    torch.manual_seed(99)  # whatever another process did before
    done = run("finetune", "--resume", "cut")
    assert done.code == 0, done.err
    where = "" if method == "full" else "adapter/adapter_"
    for name in (f"{where}model.safetensors", "config.json"):
        assert (Path("cut") / name).read_bytes() == (Path("straight") / name).read_bytes()


def test_adapter_checkpoints_are_small_and_hold_no_base(run: Cli, base: Path, reviews: Path) -> None:
    tune(run, reviews, base, "lora", "out", "--rank", 1)
    newest, notes = checkpoint.newest(Path("out"))
    assert notes == []
    held = {path.name: path.stat().st_size for path in newest.iterdir()}
    assert "model.safetensors" not in held
    weights = (base / "model.safetensors").stat().st_size
    assert sum(size for name, size in held.items() if name.endswith(".safetensors")) < weights / 4
    data = bytearray((newest / artefact.STATE).read_bytes())
    data[-1] ^= 1
    (newest / artefact.STATE).write_bytes(data)
    assert f"{newest.name} is passed over" in checkpoint.newest(Path("out"))[1][0]


def test_a_stopped_run_says_how_to_go_on(run: Cli, base: Path, reviews: Path) -> None:
    options = FinetuneOptions(
        data=[str(reviews)], from_=str(base), task="classify", out="out", method="lora", steps=5, precision="fp32"
    )
    last = list(finetune.start(options, lambda: True))[-1]
    assert isinstance(last, Finished)
    assert last.resume == "gpt2kit finetune --resume out"
    assert run("finetune", "--resume", "out").code == 0
    assert Path("out/adapter").is_dir()


def test_an_unfinished_run_says_how_to_go_on(run: Cli, base: Path, reviews: Path) -> None:
    tune(run, reviews, base, "prefix", "out")
    cut_short(Path("out"))
    done = run("run", "classify", "out", "red")
    assert done.code == 2
    assert "has not finished" in done.err
    assert "gpt2kit finetune --resume out" in done.err


def test_peft_reads_the_adapter_over_the_base(run: Cli, base: Path, reviews: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("peft")
        from transformers import GPT2ForSequenceClassification

        tune(run, reviews, base, "lora", "out")
        below = GPT2ForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=None)
        model = theirs.PeftModel.from_pretrained(below, "out/adapter").eval()
        whole = GPT2ForSequenceClassification.from_pretrained("out", pad_token_id=None).eval()
        _, tokenizer = folder.load(base)
        assert tokenizer is not None
        ids = torch.tensor([[*tokenizer.encode("wolf 七 red"), tokenizer.eot_id]])
        expected = scores(folder.load("out")[0], ["wolf 七 red"], base)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(whole(ids).logits, expected, atol=2e-5, rtol=1e-5)


def test_merge_takes_what_peft_wrote(run: Cli, base: Path, reviews: Path) -> None:
    """Its classes have no names: LABEL_0, LABEL_1."""
    tune(run, reviews, base, "lora", "out")
    shutil.copytree("out/adapter", "theirs")
    Path("theirs/gpt2kit.json").unlink()
    assert run("merge", "theirs", "--from", base, "--out", "merged").code == 0
    merged, _ = folder.load("merged")
    assert merged.config.labels == ("LABEL_0", "LABEL_1")
    assert torch.equal(scores(merged, TEXTS, base), scores(folder.load("out")[0], TEXTS, base))


def test_merge_refuses_what_is_no_weights(run: Cli, base: Path, reviews: Path) -> None:
    tune(run, reviews, base, "prompt", "out")
    done = run("merge", "out", "--from", base, "--out", "merged")
    assert (done.code, "cannot be merged" in done.err) == (2, True)
    assert not Path("merged").exists()
    assert "--from is missing" in run("merge", "out").err


def test_an_int8_base_trains_and_its_merged_model_is_what_was_validated(run: Cli, base: Path, reviews: Path) -> None:
    tune(run, reviews, base, "lora", "out", "--int8-base")
    model, _ = folder.load(base)
    peft.quantise_base(model)
    with_head(model, folder.load("out")[0].config)
    peft.load("out/adapter", model)
    torch.testing.assert_close(
        scores(folder.load("out")[0], TEXTS, base), scores(model, TEXTS, base), atol=2e-5, rtol=1e-5
    )
    assert run("run", "classify", "out", "red").code == 0


@pytest.mark.parametrize("method", ["prefix", "pfeiffer"])
def test_the_base_is_found_from_another_place_and_another_is_refused(
    run: Cli, base: Path, reviews: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, "models/mine")
    tune(run, reviews, Path("models/mine"), method, "runs/out")
    Path("else").mkdir()
    monkeypatch.chdir("else")
    assert run("run", "classify", "../runs/out", "red").code == 0  # by the way from the run folder
    told = run("info", "../runs/out")
    assert (told.code, "an adapter run folder, verified" in told.out, method in told.out) == (0, True, True), told.err
    Path("../models").rename("models")
    assert run("run", "classify", "../runs/out", "red").code == 0  # by the name given, from here
    model, tokenizer = folder.load("models/mine")
    with torch.no_grad():
        model.wpe.weight[0, 0] += 1
    folder.save("models/mine", model, tokenizer)
    done = run("run", "classify", "../runs/out", "red")
    assert (done.code, "belongs to the base models/mine" in done.err) == (2, True)
    folder.save("models/mine", GPT2(GPT2Config(tokenizer.vocab_size, 48, 16, 2, 4)), tokenizer)
    done = run("run", "classify", "../runs/out", "red")
    assert (done.code, "belongs to another base" in done.err) == (2, True)
    shutil.rmtree("models")
    done = run("run", "classify", "../runs/out", "red")
    assert (done.code, "is gone" in done.err, "put it back" in done.err) == (2, True, True)


def test_a_base_that_changed_stops_a_resume(run: Cli, base: Path, reviews: Path) -> None:
    shutil.copytree(base, "mine")
    tune(run, reviews, Path("mine"), "lora", "out")
    cut_short(Path("out"))
    model, tokenizer = folder.load("mine")
    with torch.no_grad():
        model.ln_f.weight[0] += 1
    folder.save("mine", model, tokenizer)
    done = run("finetune", "--resume", "out")
    assert (done.code, "is no longer the model" in done.err) == (2, True)


WRONG = {
    "a rank for full": (("--rank", 4), "--rank is for adapters"),
    "a rank for prefix": (("--method", "prefix", "--rank", 4), "prefix has no rank"),
    "a rank beyond the weights": (("--method", "lora", "--rank", 64), "exceeds"),
    "a setting out of range": (
        ("--method", "lora", "--method-settings", "dropout=1.5"),
        "the adapter's dropout must be",
    ),
    "an unknown setting": (("--method", "lora", "--method-settings", "alhpa=3"), "alpha"),
    "a setting that is no number": (("--method", "lora", "--method-settings", "alpha=much"), "must be a float"),
    "settings without a value": (("--method", "lora", "--method-settings", "alpha"), "must look like"),
    "a pattern that matches nothing": (("--method", "lora", "--method-settings", "targets=c_atn"), "c_attn"),
    "int8 under whole layers": (("--method", "last", "--int8-base"), "--int8-base keeps it in int8"),
    "muon for adapters": (("--method", "lora", "--optimizer", "muon"), "muon"),
    "more virtual tokens than positions": (("--method", "prompt", "--method-settings", "tokens=60"), "leave no room"),
    "a context beyond what they leave": (("--method", "prompt", "--context", 40), "the model's 28"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_flags_are_told(run: Cli, base: Path, reviews: Path, kind: str) -> None:
    flags, said = WRONG[kind]
    done = run("finetune", reviews, "--from", base, "--task", "classify", "--out", "out", *flags)
    assert (done.code, said in done.err) == (2, True), done.err
    assert not Path("out/run.json").exists()  # the same command can be given again, mended


def test_settings_reach_the_adapter(run: Cli, base: Path, reviews: Path) -> None:
    tune(run, reviews, base, "dora", "out", "--rank", 3, "--method-settings", "alpha=5,targets=mlp.*,dropout=0.1")
    said = commit.manifest(Path("out/adapter"))
    assert said is not None
    assert (
        said["method"] | {"rank": 3, "alpha": 5.0, "targets": "mlp.*", "dropout": 0.1, "dora": True} == said["method"]
    )
    assert said["task"]["name"] == "classify"
    tune(run, reviews, base, "adalora", "budget", "--rank", 6)
    known = commit.manifest(Path("budget"))
    assert known is not None
    assert (known["method"]["rank"], known["method"]["target_rank"]) == (6, 4)
    assert known["base"]["path"].endswith("base")


def test_names_of_files_are_those_that_adapters_write() -> None:
    assert (reference.ADAPTER, reference.ADAPTER_STATE) == (artefact.ADAPTER, artefact.STATE)


def test_the_stand_in_is_alone_what_it_is_in_company(run: Cli, base: Path, pairs: Path) -> None:
    tune(run, pairs, base, "prefix", "out", task="instruct")
    with open_for_tasks("out") as engine:
        assert engine.config.n_positions == SHAPE["n_positions"] - 5
        prompts = ["wolf", "red green 七 八", "九 sheep " * 3]
        together = engine.generate(prompts, max_tokens=60, temperature=0.0, window="stop")
        alone = [engine.generate(one, max_tokens=60, temperature=0.0, window="stop")[0] for one in prompts]
        assert [one.token_ids for one in together] == [one.token_ids for one in alone]
        assert all(len(one.token_ids) <= 43 for one in alone)


def test_a_tuned_model_on_the_hub_is_scored_where_that_is_allowed(
    run: Cli, base: Path, reviews: Path, hub: Callable[[str, Path], None]
) -> None:
    tune(run, reviews, base, "bitfit", "out")
    hub("someone/reviews", Path("out"))
    here = run("evaluate", "out", reviews, "--precision", "fp32")
    assert (here.code, "accuracy" in here.out) == (0, True)
    assert run("evaluate", "someone/reviews", reviews, "--precision", "fp32", "--hub").out == here.out
    assert run("evaluate", "someone/reviews", reviews).code == 2
    refused = run("evaluate", "out", reviews, "--context", 16)
    assert (refused.code, "--context is of a text's perplexity" in refused.err) == (2, True)
    refused = run("run", "classify", "out", "a", "--seed", 4)
    assert (refused.code, "--seed means nothing" in refused.err) == (2, True)


def test_what_would_lose_a_model_or_resume_another_verbs_run_is_refused(run: Cli, base: Path, reviews: Path) -> None:
    tune(run, reviews, base, "lora", "out")
    before = (base / "model.safetensors").read_bytes()
    done = run("merge", "out", "--from", base, "--out", base)
    assert (done.code, "is the base itself" in done.err) == (2, True)
    assert (base / "model.safetensors").read_bytes() == before
    done = run("train", "--resume", "out")
    assert (done.code, "gpt2kit finetune --resume out" in done.err) == (2, True)
    Path("file").write_text("x", encoding="utf-8")
    done = run("finetune", reviews, "--from", base, "--task", "classify", "--out", "file")
    assert (done.code, "file is a file" in done.err) == (2, True)
