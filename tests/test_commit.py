"""A committed folder is whole or absent, whatever the disk does and whenever the program is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2kit import commit
from gpt2kit.errors import UserError


def write(target: Path, content: str, size: int = 2000, files: int = 3, **lineage: object) -> None:
    with commit.folder(target, "test", dict(lineage)) as staging:
        for index in range(files):
            (staging / f"{index}.txt").write_text(content * size)


def content(target: Path) -> str:
    """What a reader sees: the folder is repaired and verified, and its files must belong together."""
    commit.recover(target)
    assert commit.verify(target) is not None
    letters = {c for path in target.glob("*.txt") for c in path.read_text()}
    assert len(letters) == 1
    return letters.pop()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_child(code: str, *arguments: object, shell: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
    if shell is not None:
        command = ["unshare", "-r", "-m", "sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


PRELUDE = """
import os, sys
from collections.abc import Iterator
from pathlib import Path
from gpt2kit import commit
from gpt2kit.errors import UserError
target = Path(sys.argv[1])
def write(content, size=2000, files=3):
    with commit.folder(target, "test") as staging:
        for index in range(files):
            (staging / f"{index}.txt").write_text(content * size)
"""


def test_commit_then_verify_returns_the_manifest(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a"
    with commit.folder(target, "test", {"seed": 3}) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "x.bin").write_bytes(b"abc")
    value = commit.verify(target)
    assert value is not None
    assert (value["format"], value["kind"], value["seed"]) == (1, "test", 3)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2's vector for "abc"
    assert value["files"] == {"sub/x.bin": {"bytes": 3, "sha256": digest}}
    assert names(target.parent) == {"a"}


def test_lineage_is_read_at_the_commit_and_cannot_set_reserved_keys(tmp_path: Path) -> None:
    lineage: dict[str, object] = {"format": 99, "files": {}, "kind": "other"}
    with commit.folder(tmp_path / "a", "test", lineage) as staging:
        (staging / "x").write_text("x")
        lineage["score"] = float("nan")
    value = commit.verify(tmp_path / "a")
    assert value is not None
    assert (value["format"], value["kind"], value["score"], set(value["files"])) == (1, "test", None, {"x"})


def test_replacing_is_complete_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write(tmp_path / "a", "x", files=5)
    write(tmp_path / "a", "y", files=2)
    assert content(tmp_path / "a") == "y"
    assert names(tmp_path / "a") == {"0.txt", "1.txt", "gpt2kit.json"}
    assert names(tmp_path) == {"a"}


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, "x", seed=1, name="诗 \udc80")
    assert (tmp_path / "a/gpt2kit.json").read_bytes() == (tmp_path / "b/gpt2kit.json").read_bytes()
    assert commit.read_json(tmp_path / "a/gpt2kit.json")["name"] == "诗 \udc80"


def fail_inside(target: Path, error: BaseException) -> None:
    with commit.folder(target, "test") as staging:
        (staging / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("mine"), OSError(errno.ENOENT, "mine"), KeyboardInterrupt()])
def test_an_exception_in_the_block_passes_and_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "a", "x")
    with pytest.raises(type(error)) as caught:
        fail_inside(tmp_path / "a", error)
    assert caught.value is error
    assert content(tmp_path / "a") == "x"
    assert names(tmp_path) == {"a"}


def test_a_users_own_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"novel\.txt"):
        write(tmp_path / "mine", "x")
    assert (tmp_path / "mine" / "novel.txt").read_text() == "years of work"
    write(tmp_path / "a", "x")
    (tmp_path / "a" / "notes.txt").write_text("added later")
    with pytest.raises(UserError, match=r"notes\.txt"):
        write(tmp_path / "a", "y")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "file", "x")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "x")
    assert names(tmp_path) == {"mine", "a", "file", "empty"}


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    """`gpt2kit tokenizer train --out MODEL` must not cost anybody the model."""
    write(tmp_path / "a", "x")
    with (
        pytest.raises(UserError, match="a is a test folder, a tokenizer folder would replace it"),
        commit.folder(tmp_path / "a", "tokenizer"),
    ):
        raise AssertionError("refused before the work begins")
    assert content(tmp_path / "a") == "x"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "x")
    (tmp_path / "latest").symlink_to("real")
    write(tmp_path / "latest", "y")
    assert (tmp_path / "latest").is_symlink()
    assert content(tmp_path / "real") == "y"


def test_the_current_folder_can_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path("."), "x")
    assert content(tmp_path / "here") == "x"
    with pytest.raises(UserError):
        write(Path("/"), "x")


# Disks that fail


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_failing_fsync_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """Seven: three files, the manifest, the staging folder, the parent after the renames; and none fails."""
    write(tmp_path / "a", "x")
    calls = 0
    real = os.fsync

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if failing <= 6:
        with pytest.raises(UserError, match="what was there before is untouched") as caught:
            write(tmp_path / "a", "y")
        assert caught.value.hint is not None
        calls = 0
        with pytest.raises(UserError, match="Input/output error"):
            write(tmp_path / "fresh", "y")
    else:
        write(tmp_path / "a", "x")
    monkeypatch.undo()
    assert names(tmp_path) == {"a"}  # put back at once, not only by the next reader
    assert content(tmp_path / "a") == "x"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_rename_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    write(tmp_path / "a", "x")
    calls = 0
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise PermissionError(errno.EACCES, "the virus scanner holds it")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(UserError, match="virus scanner"):
        write(tmp_path / "a", "y")
    monkeypatch.undo()
    assert names(tmp_path) == {"a"}
    assert content(tmp_path / "a") == "x"


def fill_the_disk() -> None:
    """A real write without space on Linux; its errno elsewhere."""
    if not Path("/dev/full").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open("/dev/full", "wb") as full:
        full.write(b"x" * 100_000)


def test_a_write_without_space_is_explained(tmp_path: Path) -> None:
    write(tmp_path / "a", "x")
    with (
        pytest.raises(UserError, match="no space left on the disk") as caught,
        commit.folder(tmp_path / "a", "test"),
    ):
        fill_the_disk()
    assert "free some space" in str(caught.value)
    assert content(tmp_path / "a") == "x"


def test_a_rust_librarys_disk_error_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space left"), commit.folder(tmp_path / "a", "test"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="28"), commit.folder(tmp_path / "a", "test"):
        raise RuntimeError("28 of 30")
    assert not names(tmp_path)


FULL = """
import resource
write("x", size=20_000)
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write("y", size=100_000)
except UserError as error:
    print(error)
assert commit.verify(target)["kind"] == "test"
print({c for p in target.glob("*.txt") for c in p.read_text()}, os.listdir(target.parent))
"""


def test_a_limit_on_the_size_of_files_keeps_the_old_folder(tmp_path: Path) -> None:
    limit = run_child(FULL, tmp_path / "limit" / "a", "limit")
    assert limit.stdout.startswith("could not write"), limit
    assert "File too large" in limit.stdout
    assert limit.stdout.endswith("{'x'} ['a']\n")


def test_a_full_disk_keeps_the_old_folder(tmp_path: Path) -> None:
    """A real file system of 256 KB."""
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=256k none {tmp_path / 'small'} || exit 99"
    try:
        full = run_child(FULL, tmp_path / "small" / "a", "disk", shell=mount)
    except FileNotFoundError:
        pytest.skip("this system has no unshare")
    if full.returncode == 99 or "unshare" in full.stderr:
        pytest.skip("nothing may be mounted here")
    assert full.stdout.startswith("no space left on the disk"), full
    assert full.stdout.endswith("{'x'} ['a']\n")


# Programs that are killed

WRITER = """
print("ready", flush=True)
for round in range(10_000):
    write("abcdefgh"[round % 8], size=20_000)
"""


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_at_random_moments_leaves_one_whole_version(tmp_path: Path, kills: int) -> None:
    target = tmp_path / "a"
    rng = random.Random(0)
    for _ in range(kills):
        command = [sys.executable, "-c", PRELUDE + WRITER, str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            end = time.monotonic() + 30
            while not target.exists() and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        assert content(target) in "abcdefgh"
    write(target, "z")
    assert content(target) == "z"
    assert names(tmp_path) == {"a"}  # the next save has swept up


@pytest.mark.parametrize("step", range(20))
def test_kill_at_every_file_operation_leaves_one_whole_version(tmp_path: Path, step: int) -> None:
    """The process dies inside the step-th rename, rmtree or fsync of a replacement."""
    target = tmp_path / "a"
    write(target, "x")
    code = """
    import shutil
    count = 0
    def dying(real):
        def call(*arguments, **options):
            global count
            count += 1
            if count > int(sys.argv[2]):
                os._exit(9)
            return real(*arguments, **options)
        return call
    for place, name in ((os, "rename"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree")):
        setattr(place, name, dying(getattr(place, name)))
    write("y")
    """
    result = run_child(code, target, step)
    assert result.returncode in (0, 9), result.stderr
    assert content(target) in "xy"
    if result.returncode == 0:
        assert content(target) == "y"
    write(target, "z")
    assert content(target) == "z"
    assert names(tmp_path) == {"a"}


def test_a_reader_gets_the_old_folder_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    write(tmp_path / "a", "x")
    os.rename(tmp_path / "a", tmp_path / ".replaced-a")
    commit.recover(tmp_path / "a")
    assert content(tmp_path / "a") == "x"
    write(tmp_path / "b", "y")
    os.rename(tmp_path / "b", tmp_path / ".replaced-a")
    commit.recover(tmp_path / "a")
    assert content(tmp_path / "a") == "x"
    assert names(tmp_path) == {"a"}
    write(tmp_path / "b", "y")
    commit.discard(tmp_path / "b")
    commit.recover(tmp_path / "nowhere" / "a")
    commit.recover(tmp_path / "absent")
    assert names(tmp_path) == {"a"}


def test_recovery_that_the_disk_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "x")
    os.rename(tmp_path / "a", tmp_path / ".replaced-a")

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="cannot be put back: Permission denied"):
        commit.recover(tmp_path / "a")


# Several at once


def test_concurrent_writers_do_not_mix_and_the_last_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "a"
    code = """
    for _ in range(15):
        write(sys.argv[2], size=5_000)
    """
    children = [
        subprocess.Popen([sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(target), letter])
        for letter in "xy"
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    assert content(target) in "xy"
    assert names(tmp_path) == {"a"}


def test_a_writer_that_starts_between_anothers_renames_waits_before_it_looks_at_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    write(target, "x")
    between, asked, go = threading.Event(), threading.Event(), threading.Event()
    seen: list[bool] = []
    rename, locked, check = os.rename, commit._locked, commit._check_replaceable

    def second() -> bool:
        return threading.current_thread().name == "second"

    def held_rename(source: Path, to: Path) -> None:
        if not second() and to == target:
            between.set()
            assert go.wait(20)
        rename(source, to)

    @contextlib.contextmanager
    def noted_lock(parent: Path) -> Iterator[None]:
        if second():
            asked.set()
        with locked(parent):
            yield

    def noted_look(at: Path, kind: str) -> None:
        if second():
            seen.append(at.exists())
        check(at, kind)

    monkeypatch.setattr(os, "rename", held_rename)
    monkeypatch.setattr(commit, "_locked", noted_lock)
    monkeypatch.setattr(commit, "_check_replaceable", noted_look)
    writers = [threading.Thread(target=write, args=(target, name[0]), name=name) for name in ("first", "second")]
    writers[0].start()
    assert between.wait(20)
    assert not target.exists()
    writers[1].start()
    assert asked.wait(20)
    go.set()
    for writer in writers:
        writer.join(20)
    assert seen == [True, True]
    assert content(target) == "s"
    assert names(tmp_path) == {"a"}


def test_a_running_save_is_not_swept_up_by_another(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with commit.folder(target, "test") as staging:
        (staging / "0.txt").write_text("slow")
        thread = threading.Thread(target=write, args=(target, "f"))
        thread.start()
        thread.join()
        assert content(target) == "f"
        assert (staging / "0.txt").read_text() == "slow"
        (staging / "0.txt").write_text("s")
    assert content(target) == "s"
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_staging_folder_that_another_save_swept_up_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    swept: list[Path] = []

    def sweep() -> None:
        if not swept:
            swept.extend(tmp_path.glob(".partial-*"))
            for path in swept:
                path.rmdir()

    def sweeping(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            sweep()
            return real(*arguments)

        return call

    if moment == "before it is opened":
        monkeypatch.setattr(os, "open", sweeping(os.open))
    else:
        monkeypatch.setattr(commit, "_lock", sweeping(commit._lock))
    write(tmp_path / "a", "x")
    assert len(swept) == 1
    assert content(tmp_path / "a") == "x"
    assert names(tmp_path) == {"a"}


# Into a folder that keeps its other files


def test_files_into_keeps_other_files_and_drops_those_of_the_old_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run / ".model", "x", files=3)
    commit.files_into(run, run / ".model")
    (run / "metrics.jsonl").write_text("{}")
    write(run / ".model", "y", files=2)
    commit.files_into(run, run / ".model")
    assert content(run) == "y"
    assert names(run) == {"0.txt", "1.txt", "gpt2kit.json", "metrics.jsonl"}


@pytest.mark.parametrize("step", range(14))
def test_files_into_killed_at_every_operation_ends_in_the_old_or_the_new(tmp_path: Path, step: int) -> None:
    run = tmp_path / "run"
    for letter, files in (("x", 3), ("y", 2)):
        write(run / ".model", letter, files=files)
        if letter == "x":
            commit.files_into(run, run / ".model")
    code = """
    count = 0
    def dying(real):
        def call(*arguments, **options):
            global count
            count += 1
            if count > int(sys.argv[2]):
                os._exit(9)
            return real(*arguments, **options)
        return call
    for name in ("rename", "replace", "fsync", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    commit.files_into(target, target / ".model")
    """
    result = run_child(code, run, step)
    assert result.returncode in (0, 9), result.stderr
    seen = commit.manifest(run)
    assert seen is not None
    if "2.txt" not in seen["files"]:  # the new manifest comes last: who sees it sees all the files
        commit.verify(run)
    version = content(run)
    assert version == ("x" if step == 0 else "y")
    assert not (run / commit.INCOMING).exists()


def test_files_into_on_a_failing_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not write"):
        commit.files_into(tmp_path / "run", tmp_path / "absent")


# What a reader refuses


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    write(tmp_path / "a", "x")
    return tmp_path / "a"


def test_a_flipped_bit_is_refused_by_name(committed: Path) -> None:
    data = bytearray((committed / "1.txt").read_bytes())
    data[1000] ^= 1
    (committed / "1.txt").write_bytes(data)
    with pytest.raises(UserError, match=r"1\.txt has changed"):
        commit.verify(committed)
    commit.verify(committed, ["0.txt"])
    commit.verify(committed, sizes_only=True)


def test_a_truncated_and_a_missing_file_are_refused_by_name(committed: Path) -> None:
    os.truncate(committed / "2.txt", 1999)
    with pytest.raises(UserError, match=r"2\.txt has 1999 bytes, the manifest says 2000"):
        commit.verify(committed, sizes_only=True)
    (committed / "0.txt").unlink()
    with pytest.raises(UserError, match=r"0\.txt is missing"):
        commit.verify(committed)


def test_a_file_that_the_manifest_does_not_cover_is_refused_by_name(committed: Path) -> None:
    (committed / "extra.txt").write_text("x")
    with pytest.raises(UserError, match=r"extra\.txt is not covered"):
        commit.verify(committed, ["0.txt", "extra.txt"])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "\\x", "", "a\0b"])
def test_names_that_leave_the_folder_are_refused(committed: Path, name: str) -> None:
    with pytest.raises(UserError, match="outside the folder"):
        commit.inside(committed, name)
    value = json.loads((committed / "gpt2kit.json").read_text())
    value["files"][name] = {"bytes": 1, "sha256": "0"}
    (committed / "gpt2kit.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="outside the folder"):
        commit.verify(committed)


def test_links_out_of_the_folder_are_refused_and_links_inside_are_not(committed: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x" * 2000)
    (committed / "0.txt").unlink()
    (committed / "0.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"is a link to .*secret, outside"):
        commit.verify(committed)
    (committed / "0.txt").unlink()
    (committed / "0.txt").symlink_to("1.txt")
    commit.verify(committed)
    (committed / "0.txt").unlink()
    (committed / "0.txt").symlink_to("0.txt")
    with pytest.raises(UserError, match=r"0\.txt"):
        commit.verify(committed)


def test_our_own_staging_folder_may_not_hold_links(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), commit.folder(tmp_path / "a", "test") as staging:
        (staging / "x").symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a gpt2kit manifest"),
        ("{}", "not a gpt2kit manifest"),
        ('{"format": 1, "files": {"a": 3}}', "not a gpt2kit manifest"),
        ('{"format": 1, "files": {"a": {"sha256": "0", "bytes": true}}}', "not a gpt2kit manifest"),
        ('{"format": 2, "files": {}}', "format 2, this version reads format 1"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_damaged_manifests_are_refused(committed: Path, text: str, message: str) -> None:
    (committed / "gpt2kit.json").write_text(text)
    with pytest.raises(UserError, match=message):
        commit.verify(committed)


def test_a_folder_without_manifest_is_another_tools(tmp_path: Path) -> None:
    assert commit.manifest(tmp_path) is None
    assert commit.verify(tmp_path) is None


def test_json_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json does not exist"):
        commit.read_json(path)
    with pytest.raises(UserError, match="cannot be read"):
        commit.read_json(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        commit.read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert commit.read_json(path) == {"a": 1}
    monkeypatch.setattr(commit, "MAX_JSON_BYTES", 5)
    with pytest.raises(UserError, match="too many"):
        commit.read_json(path)


def test_json_has_no_nan(tmp_path: Path) -> None:
    commit.write_json(tmp_path / "x", {"a": (float("inf"), 1.5), "b": {"c": float("nan")}})
    assert json.loads((tmp_path / "x").read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_one_process_at_a_time_fills_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    code = """
    with commit.alone(target):
        print("in", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another process works in"), commit.alone(run):
            pass
        other.kill()
        other.wait()
    with commit.alone(run), pytest.raises(UserError, match="another process"), commit.alone(run):
        pass
    assert not run.exists()  # it stayed empty
    with commit.alone(run):
        (run / "file").write_text("x")
    assert names(run) == {"file"}


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="could not write"), commit.alone(tmp_path / "file" / "run"):
        pass
