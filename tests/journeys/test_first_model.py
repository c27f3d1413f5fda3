"""A text file in; a model, its description, its texts and its figures out."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gpt2kit
from gpt2kit.model import files
from gpt2kit.model.generate import generate

Run = Callable[..., Any]
Trained = Any  # conftest's: folder, text, result


def test_a_training_run_says_its_plan_its_losses_and_what_to_type_next(trained: Trained) -> None:
    code, out, err = trained.result
    assert (code, err) == (0, "")
    for part in ("the plan", "1 layer, 2 heads, 32 wide, context 16", "30 steps of 4 x 16 tokens", "GB at the peak"):
        assert part in out
    assert "step 30: validation loss" in out
    assert "model       runs/mine" in out
    for line in ('gpt2kit generate runs/mine "Once"', "gpt2kit info runs/mine", "gpt2kit evaluate runs/mine other.txt"):
        assert f"  {line}\n" in out
    assert "samples.txt" not in out  # none were written
    assert (trained.folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_info_verifies_and_describes_the_run(trained: Trained, run: Run) -> None:
    code, out, _ = run("info", trained.folder)
    assert code == 0
    assert "a model folder, verified" in out
    assert "1 layer, 2 heads, 32 wide, 16 positions" in out
    assert re.search(r"\nsettings    steps 30, batch 4, context 16, .*\n {12}\w+ ", out)
    assert "{" not in out  # JSON is for programs
    assert max(map(len, out.splitlines())) <= 100
    found = json.loads(run("info", trained.folder, "--json").out)
    assert found["verified"] is True
    assert found["lineage"]["settings"]["steps"] == 30
    assert found["scores"]["validation_loss"] > 0


def test_greedy_and_seeded_texts_are_the_same_bytes_in_two_processes(
    trained: Trained, run: Run, processes: Any
) -> None:
    greedy = ("generate", trained.folder, "The", "--temperature", 0, "--max-tokens", 12)
    seeded = ("generate", trained.folder, "The", "--seed", 7, "--max-tokens", 12)
    first = run(*greedy)
    assert first.code == 0
    assert first.out.startswith("The")
    assert run(*greedy).out == first.out
    here = run(*seeded)
    assert processes.run(trained.text.parent, *seeded).out == here.out
    assert run(*seeded[:-3], 8, *seeded[-2:]).out != here.out


def test_json_holds_one_object_a_completion(trained: Trained, run: Run) -> None:
    lines = run("generate", trained.folder, "ab", "--n", 3, "--max-tokens", 5, "--seed", 1, "--json").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [len(f["token_ids"]) for f in found] == [5, 5, 5]
    assert {f["prompt"] for f in found} == {"ab"}
    assert len({f["text"] for f in found}) > 1
    assert all(isinstance(f["seed"], int) for f in found)


def test_several_completions_are_printed_apart(trained: Trained, run: Run) -> None:
    out = run("generate", trained.folder, "ab", "--n", 3, "--max-tokens", 5, "--seed", 1).out
    assert out.count("\n---\n") == 3


def test_beam_search_needs_no_other_flag_and_refuses_a_temperature(trained: Trained, run: Run) -> None:
    words = ("generate", trained.folder, "The", "--max-tokens", 6, "--num-beams", 3)
    plain = run(*words)
    assert plain.code == 0, plain.err
    assert plain.out == run(*words, "--temperature", 0).out
    refused = run(*words, "--temperature", 0.5)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith("it needs temperature 0\nhint:  --temperature 0\n")


def test_special_tokens_in_a_prompt_count_only_where_they_are_allowed(trained: Trained, run: Run) -> None:
    prompt = "The<|endoftext|>a"  # as ordinary text it is longer than the 16 positions
    words = ("generate", trained.folder, prompt, "--max-tokens", 1, "--temperature", 0, "--logprobs", 0, "--json")
    model, tokenizer = gpt2kit.load(trained.folder)
    settings = gpt2kit.SamplingSettings(max_tokens=1, temperature=0, logprobs=0)
    for flags, ids in (
        ((), [tokenizer.encode(c)[0] for c in prompt]),
        (("--allow-special",), [*tokenizer.encode("The"), tokenizer.eot_id, *tokenizer.encode("a")]),
    ):
        reference = json.loads(run(*words, "--reference", *flags).out)
        expected = generate(model, [ids], settings, tokenizer=tokenizer)[0][0]
        assert reference["logprobs"][0]["logprob"] == expected.logprobs[0].logprob
        assert json.loads(run(*words, *flags).out)["window_slid"] == expected.window_slid == (not flags)
        (same,) = gpt2kit.generate(
            model, tokenizer, prompt, allow_special=bool(flags), max_tokens=1, temperature=0, logprobs=0
        )
        assert same == expected


def test_each_stop_string_ends_the_text(trained: Trained, run: Run) -> None:
    base = ("generate", trained.folder, "The", "--max-tokens", 40, "--seed", 3, "--json")
    free = json.loads(run(*base).out)["text"]
    first, second = free[10], free[5]
    cut = json.loads(run(*base, "--stop", first, "--stop", second).out)
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == free[: min(free.index(first), free.index(second))]
    assert cut["stop_reason"] in (first, second)


@pytest.mark.parametrize("prompt", ["- a list", "--help", "-x"])
def test_a_prompt_may_begin_with_a_dash(trained: Trained, run: Run, prompt: str) -> None:
    result = run("generate", trained.folder, "--max-tokens", 3, "--", prompt)
    assert result.code == 0
    assert result.out.startswith(prompt)


def test_a_prompt_comes_from_standard_input(trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("The 词".encode()), encoding="ascii"))
    assert run("generate", trained.folder, "-", "--max-tokens", 3).out.startswith("The 词")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("春".encode("gb18030"))))
    result = run("generate", trained.folder, "-")
    assert result.code == 2
    assert "error: the prompt is not UTF-8 text\nhint:  convert it: iconv" in result.err


def test_a_text_longer_than_the_context_says_that_the_window_slid(trained: Trained, run: Run) -> None:
    result = run("generate", trained.folder, "The", "--max-tokens", 30)
    assert "16 positions: the window slid" in result.err
    assert run("generate", trained.folder, "The", "--max-tokens", 5).err == ""


def test_evaluate_gives_every_figure_with_its_protocol(trained: Trained, run: Run) -> None:
    text = "Some other text, 以及中文。" * 20
    Path("other.txt").write_text(text, encoding="utf-8")
    plain = run("evaluate", trained.folder, "other.txt")
    for part in ("perplexity", "per char token", "bits per byte", "bits per character", "context 16, stride 8"):
        assert part in plain.out
    assert "\nlossless            no: the tokens do not give this text back" in plain.out  # no Chinese was learned
    assert "lossless" not in run("evaluate", trained.folder, trained.text).out
    result = run("evaluate", trained.folder, "other.txt", "--json", "--context", 8, "--stride", 2)
    found = json.loads(result.out)
    assert (found["context"], found["stride"]) == (8, 2)
    assert found["characters"] == len(text)
    assert found["bytes"] == len(text.encode())
    assert found["bits_per_character"] > found["bits_per_byte"] > 0
    assert len(found["tokenizer_hash"]) == 64
    packed = run("evaluate", trained.folder, trained.folder / "data", "--json")
    assert json.loads(packed.out)["tokens"] > 0


def test_sampling_options_out_of_range_are_refused(trained: Trained, run: Run) -> None:
    for flags in (("--temperature", "-1"), ("--top-p", "2"), ("--n", "0"), ("--max-tokens", "-3")):
        result = run("generate", trained.folder, "The", *flags)
        assert result.code == 2, flags
        assert result.err.startswith("error: ")
        assert flags[0][2:].replace("-", "_") in result.err.replace("-", "_")


def test_a_model_trains_on_from_another(trained: Trained, run: Run) -> None:
    code, out, _ = run(
        "train", trained.text, "--from", trained.folder, "--out", "tuned", "--steps", 4, "--precision", "fp32",
        "--batch", 4, "--no-sample", "--evaluate-every", 4,
    )  # fmt: skip
    assert code == 0
    assert "1 layer, 2 heads, 32 wide, context 16" in out
    lineage = json.loads(run("info", "tuned", "--json").out)["lineage"]
    assert lineage["parents"][0]["folder"] == trained.folder.name  # no path of this machine
    refused = run("train", trained.text, "--from", trained.folder, "--out", "x", "--n-layer", 2)
    assert (refused.code, "--n-layer cannot be given with --from" in refused.err) == (2, True)


def test_a_model_on_the_hub_is_scored_trained_on_and_proved_where_that_is_allowed(
    trained: Trained, run: Run, hub: Callable[[str, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub("someone/tiny", trained.folder)
    here = run("evaluate", trained.folder, trained.text).out
    assert run("evaluate", "someone/tiny", trained.text).code == 2
    assert run("evaluate", "someone/tiny", trained.text, "--hub").out == here
    words = ("train", trained.text, "--from", "someone/tiny", "--out", "a", "--steps", 2, "--batch", 4,
             "--precision", "fp32", "--no-sample", "--evaluate-every", 2)  # fmt: skip
    assert run(*words).code == 2
    assert run(*words, "--hub").code == 0
    parents = json.loads(run("info", "a", "--json").out)["lineage"]["parents"]
    assert parents == [{"folder": "someone/tiny", "hash": files.identity(trained.folder)}]
    shutil.rmtree("a/checkpoints")
    assert run("train", "--resume", "a").code == 0  # finds its parent again
    refused = run("train", trained.text, "--out", "b", "--hub")
    assert (refused.code, "there is no --from" in refused.err) == (2, True)
    proved: list[Path] = []
    monkeypatch.setattr("gpt2kit.doctor.run_checks", lambda folder: proved.append(folder) or iter(()))
    assert run("doctor", "someone/tiny", "--hub").code == 0
    assert files.identity(proved[0]) == files.identity(trained.folder)


def test_a_folder_that_holds_something_is_refused_and_left_alone(trained: Trained, run: Run, tiny: list[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*")}
    result = run("train", trained.text, "--out", trained.folder, "--steps", 2, *tiny)
    assert result.code == 2
    assert "already holds something" in result.err
    assert f"gpt2kit train --resume {trained.folder}" in result.err.replace("\n", " ")
    assert {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*")} == before


def test_a_reader_that_leaves_early_is_no_error(trained: Trained, processes: Any) -> None:
    for arguments in (("tokenizer", "info", trained.folder, "text"), ("--help",)):
        with processes.start(trained.text.parent, *arguments) as started:
            started.stdout.close()
            err = started.stderr.read().decode()
            assert (started.wait(60), err) == (0, "")


@pytest.mark.slow
def test_doctor_holds_here_and_fails_for_a_damaged_model(trained: Trained, tmp_path: Path, processes: Any) -> None:
    good = processes.run(tmp_path, "doctor", trained.folder)
    assert good.code == 0, good.out
    assert good.out.endswith("everything holds\n")
    damaged = tmp_path / "damaged"
    shutil.copytree(trained.folder, damaged)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    bad = processes.run(tmp_path, "doctor", damaged)
    assert bad.code == 1
    assert "FAIL" in bad.out
    assert "failed" in bad.out.splitlines()[-1]
    assert "Traceback" not in bad.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "{model}", "{text}", "--columns", "a=b"), "--columns is of a task's answers"),
        (("evaluate", "{model}", "{text}", "--precision", "int8"), "computed in float32"),
        (("generate", "{model}", "a", "--reference", "--precision", "int8"), "--reference computes in float32"),
        (("generate", "{model}", "a", "--logprobs", "2"), "add --json"),
        (("run", "classify", "{model}", "a", "--labels", "x,y", "--passages", "9"), "--documents"),
        (("pack", "{text}", "--out", "p", "--validation", "a", "--validation-fraction", "0.5"), "give one of them"),
        (("demo", "--seconds", "2", "--out", "d"), "--seconds must be at least 3"),
        (("train", "{text}", "--out", "o", "--minutes", "0.1", "--n-head", "7", "--tokenizer", "char"), "7 heads"),
    ],
)  # fmt: skip
def test_a_flag_that_would_do_nothing_is_refused(trained: Trained, run: Run, words: tuple[str, ...], said: str) -> None:
    result = run(*(word.format(model=trained.folder, text=trained.text) for word in words))
    assert (result.code, said in result.err.replace("\n", " ")) == (2, True), result.err
