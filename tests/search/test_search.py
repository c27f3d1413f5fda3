"""A search: what it looks through, that it can be stopped and goes on to the same end, what it leaves behind."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit import cli
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.recipes.options import TrainOptions
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.search import study as search_study
from gpt2kit.search.options import SearchFinetuneOptions, SearchTrainOptions, typed
from gpt2kit.search.run import Searched, search
from gpt2kit.search.space import read_space
from gpt2kit.search.values import Choice, Range, grid
from gpt2kit.search.verbs import VERBS
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training import checkpoint, loop

pytest.importorskip("optuna", reason="the extra search is not installed")
WORDS = ["red", "green", "blue", "wolf", "sheep", "七", "八"]
SPACE = "learning_rate=1e-4..3e-2:log, dropout=0|0.1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.jsonl, and a random model that can read it."""
    path = tmp_path_factory.mktemp("search")
    draw = random.Random(0)
    rows = [draw.choices(WORDS, k=3) for _ in range(48)]
    lines = [json.dumps({"text": " ".join(row), "label": str(row[0] in WORDS[:3])}, ensure_ascii=False) for row in rows]
    (path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer(lines, "char")
    config = GPT2Config(tokenizer.vocab_size, 32, 16, 1, 2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    folder.save(path / "base", GPT2(config, torch.Generator().manual_seed(0)), tokenizer, {"name": "base"})
    return path


@pytest.fixture(autouse=True)
def _threads(torch_as_it_was: None) -> None:
    """A verb sets the threads of its process, which is this one."""


def tuning(place: Path, out: Path, **given: Any) -> SearchFinetuneOptions:
    settings: dict[str, Any] = {"steps": 4, "evaluate_every": 2, "space": SPACE, "trials": 2, "precision": "fp32"}
    return SearchFinetuneOptions(
        data=[str(place / "rows.jsonl")], from_=str(place / "base"), task="classify", out=str(out), batch=8,
        threads=1, **{**settings, **given},
    )  # fmt: skip


def end(options: Any, stop: Callable[[], bool] = lambda: False, watch: Any = lambda event: None) -> Searched:
    last = list(search(options, stop, watch))[-1]
    assert isinstance(last, Searched)
    return last


# The space


def options(**given: Any) -> FinetuneOptions:
    return FinetuneOptions(data=["x"], from_="m", task="classify", out="o", **given)


def space(text: str, **given: Any) -> dict[str, Choice | Range]:
    return read_space(text, options(**given), VERBS["finetune"].check)


def test_ranges_and_lists_take_the_types_of_the_fields() -> None:
    found = space("learning-rate=1e-5..1e-3:log, --dropout=0|0.1, batch=8..32, optimizer=adamw|muon, context=none|64")
    assert found["learning_rate"] == Range(1e-5, 1e-3, log=True)
    assert found["dropout"] == Choice((0.0, 0.1))
    assert found["batch"] == Range(8, 32, whole=True)
    assert found["optimizer"] == Choice(("adamw", "muon"))
    assert found["context"] == Choice((None, 64))
    assert [type(v) for v in found["batch"].ends] == [int, int]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"), ("learning_rate", "not a field and its values"), ("dropout=", "not a field and its values"),
        ("lerning_rate=1e-5..1e-3", "did you mean 'learning_rate'"), ("out=a|b", "stays the same"),
        ("learning_rate=1e-3..1e-5", "must go upwards"), ("learning_rate=1e-3..1e-3", "must go upwards"),
        ("dropout=0..0.5:log", "begins above 0"), ("dropout=0.1..0.5:lin", "unknown kind of range"),
        ("batch=8..x", "whole number"), ("batch=1.5|2", "whole number"), ("dropout=nan|0", "a number"),
        ("optimizer=adamw..muon", "has no ranges"), ("optimizer=adam|adamv", "did you mean 'adam"),
        ("dropout=0|0", "twice"), ("dropout=0|0.1, dropout=0.2", "twice"), ("dropout=0..1.5", "dropout=1.5 cannot be"),
        ("learning_rate=1..20", "learning_rate=20.0 cannot be"), ("epochs=0|1", "epochs=0.0 cannot be"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        space(text)


def test_a_field_that_is_given_and_searched_is_refused() -> None:
    with pytest.raises(UserError, match="--dropout is given"):
        space("dropout=0|0.2", dropout=0.3)


def test_losses_in_unlike_units_are_not_searched() -> None:
    with pytest.raises(UserError, match="unlike units"):
        read_space("vocab_size=500|1000", TrainOptions(data=["x"], out="o"), VERBS["train"].check)


def test_values_that_need_each_other_are_accepted_together() -> None:
    """A rank suits adapters only: it is enough that one of the methods takes it."""
    assert space("method=full|lora, rank=none|4")["rank"] == Choice((None, 4))


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("finetune", options(method="prefix", rank=4)),
        ("train", TrainOptions(["x"], "o", n_embd=32, n_head=3)),
    ],
)
def test_a_combination_that_cannot_be_is_known_before_its_trial(verb: str, given: Any) -> None:
    with pytest.raises(UserError, match=r"rank|must divide"):
        VERBS[verb].check(given)


@pytest.mark.slow
def test_a_trial_that_cannot_begin_fails_once_another_has_come_to_a_loss(place: Path, tmp_path: Path) -> None:
    """A context beyond the model's is found when the model is there."""
    given = {"sampler": "grid", "space": "context=32|4096", "trials": 2, "steps": 2}
    found = end(tuning(place, tmp_path / "s", **given))
    assert [trial.state for trial in found.trials] == ["complete", "fail"]
    assert "context" in found.trials[1].why
    assert found.resume is None


@pytest.mark.slow
def test_values_that_do_not_go_together_are_a_failed_trial(place: Path, tmp_path: Path) -> None:
    given = {"sampler": "grid", "space": "method=full|lora, rank=none|4", "trials": 2, "steps": 2}
    found = end(tuning(place, tmp_path / "s", **given))
    assert [trial.state for trial in found.trials] == ["complete", "fail"]
    assert "adapters" in found.trials[1].why


def test_a_grid_takes_every_combination_in_order() -> None:
    rows = list(grid(space("batch=8..10, dropout=0|0.1")))
    assert len(rows) == 6
    assert rows[:3] == [{"batch": 8, "dropout": 0.0}, {"batch": 8, "dropout": 0.1}, {"batch": 9, "dropout": 0.0}]
    with pytest.raises(UserError, match="one by one"):
        list(grid(space("learning_rate=1e-5..1e-3:log")))


def test_a_drawn_number_is_rounded_inside_its_range() -> None:
    held = Range(1.234567e-4, 2.0)
    assert held.rounded(0.000444444) == 0.000444
    assert held.rounded(1.2346e-4) == 1.234567e-4


def test_the_words_of_a_command_give_the_options_back() -> None:
    import tyro

    given = options(learning_rate=3e-4, validation=["a", "b c"], int8_base=True, method="lora", seed=7)
    words = typed("finetune", given)
    assert words[:2] == ["finetune", "x"]
    assert tyro.cli(FinetuneOptions, args=words[1:], config=(tyro.conf.FlagCreatePairsOff,)) == given


# Searching


def test_a_search_that_is_stopped_goes_on_to_the_same_bytes(place: Path, tmp_path: Path) -> None:
    whole = end(tuning(place, tmp_path / "whole"))
    seen: list[int] = []

    def watch(event: Any) -> None:
        if isinstance(event, loop.Stepped):
            seen.append(event.step)

    cut = end(tuning(place, tmp_path / "cut"), lambda: len(seen) >= 6, watch)  # inside the second trial
    assert [trial.state for trial in cut.trials] == ["complete", "running"]
    assert cut.resume == f"gpt2kit search finetune --resume {tmp_path / 'cut'}"
    cut_at = seen[-1]
    seen.clear()
    again = end(SearchFinetuneOptions(resume=str(tmp_path / "cut")), watch=watch)
    assert seen[0] == cut_at + 1  # the trial goes on, it does not begin anew
    assert again.trials == whole.trials
    assert again.resume is None
    assert whole.best is not None
    names = [f"trials/{whole.best.number + 1:04d}/model.safetensors", "trials.json", "search.png"]
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    kept = [path.name for path in (tmp_path / "cut" / "trials").iterdir()]
    assert kept == [f"{whole.best.number + 1:04d}"]
    newest, _ = checkpoint.newest(tmp_path / "cut" / "trials" / kept[0])
    losses = json.loads((newest / checkpoint.STATE).read_text(encoding="utf-8"))["losses"].values()
    assert whole.best.value == min(losses) < max(losses)  # of a classifier, too, which keeps the step that errs least


@pytest.mark.slow
def test_the_best_trial_is_a_model_and_its_command_makes_the_same(place: Path, tmp_path: Path) -> None:
    found = end(tuning(place, tmp_path / "s", sampler="grid", space="learning_rate=3e-4|3e-3", trials=None))
    assert [dict(trial.values) for trial in found.trials] == [{"learning_rate": 3e-4}, {"learning_rate": 3e-3}]
    assert found.best is not None
    assert found.best.value == min(trial.value for trial in found.trials if trial.value is not None)
    assert found.command is not None
    assert cli.main(found.command.split()[1:]) == 0
    made = (tmp_path / "s-best" / "model.safetensors").read_bytes()
    assert made == (tmp_path / "s" / "trials" / f"{found.best.number + 1:04d}" / "model.safetensors").read_bytes()
    results = json.loads((tmp_path / "s" / "trials.json").read_text())
    assert results["best"] == found.best.number + 1
    assert str(tmp_path) not in json.dumps(results)


def test_an_evaluation_that_was_noted_before_a_kill_is_not_noted_again(tmp_path: Path) -> None:
    study = search_study.open_study(tmp_path)
    asked = search_study.ask(study, {"dropout": Choice((0.0, 0.1))}, "random", 0, None)
    trial = search_study.trial(search_study.open_study(tmp_path), asked.number)
    for _ in range(2):
        assert not search_study.report(trial, 1, 0.5)  # optuna would warn, which is an error here
    assert search_study.tried(study, {})[0].value == 0.5


@pytest.mark.slow
def test_more_trials_can_be_asked_for_later(place: Path, tmp_path: Path) -> None:
    first = end(tuning(place, tmp_path / "s", steps=2, trials=1))
    later = end(SearchFinetuneOptions(resume=str(tmp_path / "s"), trials=2))
    assert len(later.trials) == 2
    assert later.trials[0] == first.trials[0]
    with pytest.raises(UserError, match="dropout cannot change"):
        SearchFinetuneOptions(resume=str(tmp_path / "s"), dropout=0.3)
    with pytest.raises(UserError, match="is a search of finetune"):
        end(SearchTrainOptions(resume=str(tmp_path / "s")))


@pytest.mark.slow
def test_a_trial_that_does_worse_than_the_median_is_ended_early(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_study, "STARTUP", 2)
    monkeypatch.setattr(search_study, "EARLIEST", 1)
    given = {"sampler": "grid", "space": "learning_rate=1e-2|2e-2|1e-6", "trials": None, "steps": 40}
    found = end(tuning(place, tmp_path / "s", evaluate_every=10, dropout=0.0, validation=[str(place / "rows.jsonl")],
                       **given))  # fmt: skip
    assert [trial.state for trial in found.trials] == ["complete", "complete", "pruned"]
    assert found.trials[2].value is not None


def test_nothing_is_ended_before_the_third_evaluation_nor_before_four_whole_trials(tmp_path: Path) -> None:
    study, given = search_study.open_study(tmp_path), space("dropout=0..0.5")

    def trial(losses: list[float]) -> list[bool]:
        """Whether it should be ended, after each evaluation."""
        one = search_study.ask(study, given, "random", 0, None)
        told = [search_study.report(one, number, loss) for number, loss in enumerate(losses, 1)]
        search_study.tell(study, one.number, "complete", min(losses), "")
        return told

    for good in range(3):
        trial([1.0 + good / 10] * 4)
    assert trial([9.0] * 4) == [False] * 4  # the fourth
    assert trial([9.0] * 4) == [False, False, True, True]
    assert trial([0.5] * 4) == [False] * 4


@pytest.mark.slow
def test_an_exploding_trial_fails_and_the_search_goes_on(place: Path, tmp_path: Path) -> None:
    given = {"optimizer": "sgd", "space": "learning_rate=1e-2|10", "sampler": "grid", "trials": None, "steps": 20}
    found = end(tuning(place, tmp_path / "s", **given, weight_decay=30.0))
    assert [trial.state for trial in found.trials] == ["complete", "fail"]
    assert "training stopped" in found.trials[1].why
    assert found.best == found.trials[0]


def test_what_keeps_a_run_from_beginning_is_said_at_once(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.tsv"):
        end(SearchFinetuneOptions(data=["absent.tsv"], from_=str(place / "base"), task="classify",
                                  out=str(tmp_path / "s"), space=SPACE))  # fmt: skip


@pytest.mark.slow
def test_a_half_written_line_of_the_journal_is_dropped(place: Path, tmp_path: Path) -> None:
    end(tuning(place, tmp_path / "s", steps=2, trials=1))
    with open(tmp_path / "s" / "trials.journal", "ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert len(end(SearchFinetuneOptions(resume=str(tmp_path / "s"), trials=2)).trials) == 2


def test_more_jobs_than_cores_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jobs on"):
        end(tuning(place, tmp_path / "s", jobs=4096))
    assert not (tmp_path / "s").exists()


def test_a_missing_optuna_names_the_extra(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="optuna") as caught:
        end(tuning(place, tmp_path / "s"))
    assert caught.value.hint == "run: pip install 'gpt2kit[search]'"


@pytest.mark.slow
def test_training_is_searched_on_a_text_that_is_packed_once(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("春眠不觉晓，处处闻啼鸟。 one fish two fish\n\n" * 300, encoding="utf-8")
    found = end(SearchTrainOptions(
        data=[str(text)], out=str(tmp_path / "s"), steps=3, n_layer=1, n_embd=16, n_head=2, context=16,
        batch=4, tokenizer="char", precision="fp32", sample=False, threads=1, space="learning_rate=1e-3|1e-2", trials=2,
        sampler="grid",
    ))  # fmt: skip
    assert [trial.state for trial in found.trials] == ["complete", "complete"]
    assert (tmp_path / "s" / "data" / "pack.json").exists()
    assert found.command is not None
    assert f"train {text}" in found.command
    assert "--tokenizer char" in found.command


@pytest.mark.slow
def test_ctrl_c_in_the_middle_loses_nothing(place: Path, tmp_path: Path) -> None:
    """As a process of its own, with two jobs where there are two cores."""
    jobs = str(min(2, os.cpu_count() or 1))
    words = ["search", "finetune", "rows.jsonl", "--from", "base", "--task", "classify", "--out", str(tmp_path / "s"),
             "--steps", "4000", "--trials", "2", "--space", SPACE, "--jobs", jobs, "--batch", "8"]  # fmt: skip
    with subprocess.Popen([sys.executable, "-m", "gpt2kit", *words], cwd=place, stdout=subprocess.PIPE) as started:
        until = time.monotonic() + 120
        while not list((tmp_path / "s").glob("trials/*/metrics.jsonl")) and time.monotonic() < until:
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        out, _ = started.communicate(timeout=120)
    assert started.returncode == 130
    assert "--resume" in out.decode()
    states = {trial.state for trial in end(
        SearchFinetuneOptions(resume=str(tmp_path / "s")), stop=lambda: True).trials}  # fmt: skip
    assert states == {"running"}
    assert list((tmp_path / "s").glob("trials/*/checkpoints/step-*"))


@pytest.mark.slow
def test_two_jobs_find_what_one_finds_on_a_grid(place: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"sampler": "grid", "space": "learning_rate=3e-4|3e-3", "trials": None}
    one = end(tuning(place, tmp_path / "one", **given))
    two = end(tuning(place, tmp_path / "two", **given, jobs=2))
    assert one.trials == two.trials


@pytest.mark.slow
def test_the_command_that_goes_on_has_the_trials_and_jobs_that_were_asked_for(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    end(tuning(place, out, trials=2, steps=2))
    seen: list[object] = []
    again = SearchFinetuneOptions(resume=str(out), trials=4)
    found = end(again, lambda: any(trial for trial in seen), lambda event: seen.append(isinstance(event, loop.Stepped)))
    assert found.resume == f"gpt2kit search finetune --resume {out}"
    assert json.loads((out / "search.json").read_text())["trials"] == 4
    found = end(SearchFinetuneOptions(resume=str(out)))
    assert [trial.state for trial in found.trials] == ["complete"] * 4
