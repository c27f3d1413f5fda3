"""Parsing, help, errors and exit codes of every verb. What needs a model is in journeys/."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import gpt2kit
from gpt2kit import cli
from gpt2kit.doctor import CheckResult
from gpt2kit.errors import UserError
from gpt2kit.verbs import generating, training

FLAGS = {
    "train": "out from preset minutes steps seed batch context checkpoint-every resume tokenizer vocab-size precision "
    "field",
    "generate": "max-tokens temperature top-k top-p min-p seed n stop json reference",
    "evaluate": "context stride json",
}


def _process(*arguments: str, code: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    root = str(Path(gpt2kit.__file__).parent.parent)
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    words = ["-m", "gpt2kit"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *words, *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        encoding="utf-8", timeout=60, check=False, **options,
    )  # fmt: skip


def _help(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb.split(), "--help"])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_teaches_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(verb, capsys)
    assert f"usage: gpt2kit {verb}" in text
    assert "Example" in text
    assert f"  gpt2kit {verb} " in text or f"  gpt2kit {verb}\n" in text
    assert "{None}" not in text


@pytest.mark.parametrize(("verb", "flag"), [(v, f) for v, names in FLAGS.items() for f in names.split()])
def test_flags_that_scripts_rely_on_exist(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f" --{flag} " in _help(verb, capsys)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_usage_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"gpt2kit {verb.split()[0]}" in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpt2kit {gpt2kit.__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["trian", "x"], "train"), (["evalute"], "evaluate"), (["tokenizer", "inof"], "tokenizer info")],
)
def test_a_wrong_verb_is_answered_with_the_one_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: unknown verb '{' '.join(words[: len(meant.split())])}'; did you mean '{meant}'?")
    assert "\nhint:  known: data check, demo, doctor" in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["train", "a.txt", "--ouut", "b"], "--out"), (["generate", "m", "--temprature", "1"], "--temperature")],
)
def test_a_wrong_flag_is_answered_with_the_one_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Perhaps you meant" in err
    assert meant in err


@pytest.mark.parametrize(
    "words", [["train", "a.txt", "--steps", "ten"], ["train", "--preset", "huge"], ["generate"], ["pack", "a.txt"]]
)
def test_wrong_values_and_missing_arguments_exit_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert f"gpt2kit {words[0]} --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["info", "my run"], "there is no model folder my run", "gpt2kit train my.txt --out 'my run'"),
        (["info", "nowhere"], "there is no model folder nowhere", "gpt2kit train my.txt --out nowhere"),
        (["generate", "nowhere", "a"], "nowhere", "gpt2kit train"),
        (["evaluate", "nowhere"], "nothing to evaluate on", "gpt2kit evaluate nowhere other.txt"),
        (["evaluate", "my run"], "nothing to evaluate on", "gpt2kit evaluate 'my run' other.txt"),
        (["evaluate", "nowhere", "a.txt"], "nowhere", "gpt2kit train"),
        (["tokenizer", "info", "nowhere"], "nowhere", ""),
        (["train"], "nothing to train on", "gpt2kit train my.txt --out runs/mine"),
        (["train", "a.txt"], "no --out folder was named", "--out runs/mine"),
        (["train", "a.txt", "--out", "b", "--minutes", "1", "--steps", "5"], "--minutes and --steps", "one of them"),
        (["train", "a.txt", "--out", "b", "--minutes", "-1"], "--minutes must be between", ""),
        (["pack", "a.txt", "--out", "b", "--validation", "c", "--validation=d"], "--validation is given twice", "once"),
    ],
)
def test_a_users_error_is_a_message_a_hint_and_code_two(
    words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    if hint:
        assert hint in err[err.index("\nhint:  ") :]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_error_reaches_the_shell_without_a_traceback(tmp_path: Path) -> None:
    done = _process("info", "没有", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: there is no model folder 没有\nhint:  make one with: gpt2kit train my.txt --out 没有\n"
    )


@pytest.mark.parametrize(
    ("message", "hint", "said"),
    [
        ("n must be at most num_beams 2, got 3", None, "--n must be at most --num-beams 2, got 3"),
        ("max_tokens must be a whole number", "max_tokens=5", "--max-tokens must be a whole number\n--max-tokens 5"),
        ("my_n must be 3, top_k too", "in-n=5 or n= 5", "my_n must be 3, top_k too\nin-n=5 or n= 5"),
        ("a grid", 'such as --space "top_k=1|2, n=1|2"', 'a grid\nsuch as --space "top_k=1|2, n=1|2"'),
        ("top_k.txt must go", "seed=1, or temperature=0", "top_k.txt must go\n--seed 1, or --temperature 0"),
    ],
)
def test_settings_are_called_as_the_shell_calls_them(message: str, hint: str | None, said: str) -> None:
    assert str(cli._in_flags(UserError(message, hint), generating.GenerateOptions)) == said


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_what_a_flag_turns_off_is_said_of_the_flag_as_it_is_written(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--no-sample  write a sample` would say the opposite."""
    pattern = r"(--no-[\w-]+)(?: [A-Z]+)?\s+[│\s]*(\w.*?)\(default"
    for flag, said in re.findall(pattern, _help(verb, capsys), re.DOTALL):
        assert re.search(r"\b(no|not|without)\b", said), (flag, said)


def test_markup_in_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "[bold]a[/bold]"]) == 2
    assert "[bold]a[/bold]" in capsys.readouterr().err


def test_tokenizer_alone_shows_its_two_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer", "--help"]) == 0
    assert "gpt2kit tokenizer train my.txt" in capsys.readouterr().out
    assert cli.main(["tokenizer"]) == 2


def test_help_and_import_are_quick_and_leave_torch_alone() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert _process("--help").returncode == 0
        times.append(time.perf_counter() - start)
    bare = []
    for _ in range(3):
        start = time.perf_counter()
        _process(code="pass")
        bare.append(time.perf_counter() - start)
    # 0.5 s is the promise on a quiet machine (benchmarks/train.py --only import); three times that here: others run too
    assert statistics.median(times) - min(bare) < 1.5
    check = (
        "import sys, importlib; from gpt2kit import cli; cli.main(['--help']); cli.main(['trian']); "
        "[importlib.import_module(f'gpt2kit.verbs.{name}') for name in cli.VERBS.values()]; "
        "heavy = {'torch', 'numba', 'numpy', 'tokenizers', 'tiktoken', 'matplotlib'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = _process(code=check)
    assert (done.returncode, done.stderr.splitlines()[2:]) == (0, [])


def test_ctrl_c_is_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(verb: str, words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["info", "a"]) == 130
    assert capsys.readouterr().err == "\n"


def test_pipes_carry_utf8_whatever_the_locale_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", pipe)
    cli._speak_utf8()
    print("春", end="", flush=True)
    assert pipe.buffer.getvalue() == "春".encode()  # type: ignore[attr-defined]


def test_the_first_signal_is_kept_while_training_and_the_second_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    signals = training.Signals(training=True)
    assert not signals.yes()
    signals.note(signal.SIGINT, None)
    assert signals.yes()
    assert "stopping after this step" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        signals.note(signal.SIGINT, None)


def test_a_signal_before_training_ends_the_process() -> None:
    with pytest.raises(KeyboardInterrupt):
        training.Signals().note(signal.SIGINT, None)
    with pytest.raises(SystemExit) as ended:
        training.Signals().note(signal.SIGTERM, None)
    assert ended.value.code == 143


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with training.signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_doctor_exits_with_one_where_a_check_fails(
    failures: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [CheckResult("speed", True, "fast", 0.1)]
    found += [CheckResult("cache", False, "off by one", 0.1, "look at the cache")] * failures
    monkeypatch.setattr("gpt2kit.doctor.run_checks", lambda folder: iter(found))
    assert cli.main(["doctor"]) == (1 if failures else 0)
    out = capsys.readouterr().out
    assert "ok    speed: fast\n" in out
    last = {0: "everything holds", 1: "1 check failed", 2: "2 checks failed"}[failures]
    assert out.endswith(f"\n{last}\n")
    assert ("FAIL  cache: off by one\n      look at the cache" in out) == bool(failures)
    cli.main(["doctor", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["ok"] for row in rows] == [True] + [False] * failures


def test_what_is_not_for_the_user_to_put_right_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(verb: str, words: list[str]) -> int:
        raise AssertionError("ours")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(AssertionError):
        cli.main(["info", "a"])


def test_the_prompt_must_be_text() -> None:
    assert generating._prompt("春") == "春"
    with pytest.raises(UserError, match="not UTF-8"):
        generating._prompt(os.fsdecode(b"\xff") if sys.platform != "win32" else "\udcff")


def test_the_table_of_verbs_names_every_verb_of_every_module() -> None:
    for module in sorted(set(cli.VERBS.values())):
        verbs = importlib.import_module(f"gpt2kit.verbs.{module}").VERBS
        assert set(verbs) == {verb for verb, home in cli.VERBS.items() if home == module}


@pytest.mark.parametrize("text", ["味道很好，送餐也快。" * 30, "a film " * 900, "nul \0 byte"])
def test_a_text_to_ask_may_be_longer_than_a_files_name(text: str) -> None:
    from gpt2kit.data.families import TextRow
    from gpt2kit.tasks.asked import Input
    from gpt2kit.tasks.embed import Embed

    assert [row.key for row in Input(TextRow, Embed().example).rows(text)] == [text]
