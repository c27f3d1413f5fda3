"""Folders that are whole or absent: write beside, fsync, manifest with SHA-256, rename, fsync the parent.

A committed folder holds `gpt2kit.json`:
    {"format": 1, "kind": ..., (lineage), "files": {name: {"bytes": n, "sha256": hex}}}
A reader calls `recover`, then `verify`, and refuses what the manifest does not cover, by name.

Names beside a target `runs/a` while it is being written; a kill at any moment leaves at most these behind:
    runs/.partial-a-<random>  being written, or being deleted; the next save of runs/a removes it
    runs/.replaced-a          the old folder, between the two renames of a replacement; `recover` puts it back
    runs/a/.incoming          files on their way into a folder that keeps its others; `recover` brings them in
    runs/a/.lock              of the process that fills a run's folder little by little; it locks nothing after its end
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gpt2kit.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

MANIFEST = "gpt2kit.json"
FORMAT = 1
STAGING = ".partial-"
REPLACED = ".replaced-"
INCOMING = ".incoming"
LOCK = ".lock"  # in a run's folder while a process fills it
RESERVED = ("format", "kind", "files")  # keys of the manifest that a lineage cannot set
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave in folders
MAX_JSON_BYTES = 256 * 2**20  # the largest tokenizer.json in use is about 30 MB
STALE_SECONDS = 24 * 3600  # where a folder cannot be locked, age tells a leftover from a running save
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Push a file, or a folder's entries, to the disk. Windows cannot fsync a folder: there it is a no-op."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        if sys.platform == "darwin":  # plain fsync on macOS stops at the drive's own cache
            with contextlib.suppress(OSError):
                fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno == errno.EINVAL):  # some network disks do not fsync folders
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON; same value, same bytes. NaN and infinities become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    path.write_bytes(text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes its JSON escape


def replace_json(path: Path, value: Any) -> None:
    """Write `value` at `path` whole or not at all, whatever happens on the way."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(temporary, value)
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(error, path) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file; one that is missing, unreadable, huge or not JSON is a UserError that names it."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for a settings file")
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not JSON, or a number of 5,000 digits
        raise UserError(f"{path} is not valid JSON: {error}", hint="restore the file from a backup") from None


def inside(folder: Path, name: str) -> Path:
    """`folder / name`. Raises UserError where that leads out of the folder: `..`, an absolute name, a link.

    One exception: a snapshot in the Hugging Face cache consists of links to its own `blobs` folder.
    """
    windows = PureWindowsPath(name)
    if (
        not name
        or "\0" in name
        or windows.drive
        or windows.root
        or ".." in windows.parts
        or PurePosixPath(name).is_absolute()
    ):
        raise UserError(f"{folder} names the file {name!r}, which lies outside the folder")
    path = folder / name
    allowed = [folder.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a ring of links
        raise UserError(f"{path} is a link that leads nowhere") from None
    if not any(real.is_relative_to(root) for root in allowed):
        raise UserError(f"{path} is a link to {real}, outside the folder", hint="put the file itself there")
    return path


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold all other processes off a folder that is filled little by little, made here where it is not there.

    UserError where one holds it. A disk without locks goes without. A folder that is still empty in the end goes.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock_file(path)
    except OSError as error:
        raise write_error(error, folder) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)  # also unlocks
        with contextlib.suppress(OSError):
            folder.rmdir()


def _lock_file(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                _lock(handle, wait=False)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                os.close(handle)
                raise UserError(
                    f"another process works in {path.parent}", hint="wait for its end, or choose another folder"
                ) from None
        with contextlib.suppress(OSError):  # who held it may have removed it between our two calls
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _lock(handle: int, wait: bool = True) -> None:
    """Lock an open folder until it is closed or the process dies. Not for Windows."""
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """Hold other writers off the folders inside `parent`. A disk without locks goes without."""
    if sys.platform == "win32":  # a folder cannot be locked there: a file named after it, in the temp folder
        digest = hashlib.sha256(os.path.realpath(parent).encode("utf-8", "replace")).hexdigest()[:32]
        handle = os.open(Path(tempfile.gettempdir()) / f"gpt2kit-{digest}.lock", os.O_RDWR | os.O_CREAT)
        try:
            while True:
                with contextlib.suppress(OSError):  # it gives up after ten seconds
                    msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
                    break
            yield
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        finally:
            os.close(handle)
    else:
        handle = os.open(parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                _lock(handle)
            yield
        finally:
            os.close(handle)  # also unlocks


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, locked while this process lives: so others know it is no leftover."""
    handle = -1
    while True:
        path = target.parent / f"{STAGING}{target.name}-{secrets.token_hex(4)}"
        path.mkdir()
        if sys.platform == "win32":
            break
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for a leftover
            continue
        with contextlib.suppress(OSError):
            _lock(handle)
        if path.is_dir():  # else the other process was between its lock and its deletion
            break
        os.close(handle)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def sweep(parent: Path, name: str) -> None:
    """Delete what killed saves of folders inside `parent` have left, of those whose names begin with `name`."""
    for path in parent.glob(f"{STAGING}{glob.escape(name)}-*"):
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                _lock(handle, wait=False)  # fails where a running save holds it
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _files(folder: Path) -> list[Path]:
    """All files below, sorted. A link among them is our bug: what it points to would not be committed."""
    paths = sorted(folder.rglob("*"))
    assert not any(path.is_symlink() for path in paths), f"links in {folder}"
    return [path for path in paths if path.is_file()]


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    names = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name, path in sorted(names.items())
        if name != MANIFEST
    }


def write_error(error: OSError, target: Path) -> UserError:
    """What to say where `target` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left on the disk while writing {target}; what was there before is untouched",
            hint="free some space and run the same command again",
        )
    return UserError(
        f"could not write {target}: {error.strerror or error}; what was there before is untouched",
        hint="check the disk and the folder's permissions, then run the same command again",
    )


def _as_disk_error(error: Exception, staging: Path | None) -> OSError | None:
    """The OSError of a failed write, or None where the failure is something else.

    `staging` is None in our own steps, else the folder that the caller is filling: other errors are its own.
    Rust libraries (safetensors, tokenizers) put theirs into a text: "No space left on device (os error 28)".
    """
    if isinstance(error, OSError):
        if staging is None:
            return error
        ours = isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(staging)
        return error if ours or error.errno in DISK_ERRORS else None
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


def _destination(target: Path) -> Path:
    """The folder to replace: a link to a folder stays a link; `.` and `a/..` get their names."""
    target = Path(target)
    if target.is_symlink():
        target = target.resolve()
    if target.name in ("", ".."):
        target = Path(os.path.abspath(target))
    if not target.name:
        raise UserError(f"{target} cannot be replaced: name a folder inside it")
    return target


def _covered(folder: Path) -> set[str]:
    """The names in `folder`, without those in its folders, that its manifest accounts for."""
    known = manifest(folder)
    return set() if known is None else {name.split("/")[0] for name in known["files"]} | {MANIFEST}


def _check_replaceable(target: Path, kind: str) -> None:
    """Refuse to replace what we did not write, or wrote as something else: it would be gone."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file, a folder is to be written there", hint="choose another --out")
    entries = sorted(p.name for p in target.iterdir() if p.name not in LITTER)
    covered = _covered(target) if entries else set()
    foreign = [name for name in entries if name not in covered and name not in (INCOMING, LOCK)
               and not name.startswith(STAGING)]  # fmt: skip
    if foreign:
        raise UserError(
            f"{target} exists and holds {foreign[0]!r}, which gpt2kit did not write there: it would be lost",
            hint="choose another --out, or move that folder away",
        )
    held = (manifest(target) or {}).get("kind", kind)
    if held != kind:
        raise UserError(f"{target} is a {held} folder, a {kind} folder would replace it", hint="choose another --out")


@contextlib.contextmanager
def folder(target: Path, kind: str, lineage: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield an empty staging folder; commit it as `target` on a clean exit, else leave no trace.

    What was at `target` is replaced; UserError if it holds files that no manifest covers: they would be lost.
    `lineage` may be filled inside the block: it is read at the commit. Several writers of one target wait for
    each other at the renames; the last one wins. Raises UserError where the disk fails.
    """
    target = _destination(target)
    filling: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):  # between another writer's two renames the target is absent
            _recover(target)
            _check_replaceable(target, kind)
        sweep(target.parent, target.name)
        with _staging(target) as staging:
            filling = staging
            yield staging
            filling = None
            extra = {key: item for key, item in (lineage or {}).items() if key not in RESERVED}
            files = _describe(staging)
            write_json(staging / MANIFEST, {"format": FORMAT, "kind": kind, **extra, "files": files})
            for path in _files(staging):
                fsync_path(path)
            for path in [*(p for p in staging.rglob("*") if p.is_dir()), staging]:
                fsync_path(path)
            with _locked(target.parent):
                _recover(target)
                _check_replaceable(target, kind)
                _swap(staging, target)
    except UserError:
        raise
    except Exception as error:
        disk = _as_disk_error(error, filling)
        if disk is None:
            raise
        raise write_error(disk, target) from error


def _swap(staging: Path, target: Path) -> None:
    """Two renames. If one fails, the old folder is put back; after a kill between them `recover` does it."""
    old = target.parent / f"{REPLACED}{target.name}"
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(staging, target)
        fsync_path(target.parent)
    except BaseException:
        if not staging.exists() and target.exists():
            os.rename(target, staging)  # the caller deletes it
        if old.exists():
            os.rename(old, target)
        raise
    discard(old)


def discard(path: Path) -> None:
    """Delete a folder; renamed first, so that a half-deleted one is never taken for a whole one."""
    if path.exists():
        trash = path.parent / f"{STAGING}{path.name.removeprefix(REPLACED)}-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            os.rename(path, trash)
            shutil.rmtree(trash, ignore_errors=True)


def recover(target: Path) -> None:
    """Finish what a killed writer of `target` left half done; to be called before deciding that it is absent.

    It waits for a writer that is between its renames. Raises UserError where the disk refuses the repair.
    """
    target = _destination(target)
    old = target.parent / f"{REPLACED}{target.name}"
    unfinished = old.exists() or (target / INCOMING).exists()
    if not target.parent.is_dir() or (target.exists() and not unfinished):
        return
    try:
        with _locked(target.parent):
            _recover(target)
    except OSError as error:
        if not unfinished:
            return
        raise UserError(
            f"{target} was being replaced when the machine or the program stopped, and cannot be put back: "
            f"{error.strerror or error}",
            hint=f"check the permissions of {target.parent}",
        ) from error


@contextlib.contextmanager
def held(target: Path) -> Iterator[None]:
    """Hold writers off a folder while it is read. Nothing may be saved beside it inside: that would wait for itself."""
    target = _destination(target)
    with _locked(target.parent):
        _recover(target)
        yield


def _recover(target: Path) -> None:
    old = target.parent / f"{REPLACED}{target.name}"
    if old.exists():
        if target.exists():
            discard(old)
        else:
            os.rename(old, target)
            fsync_path(target.parent)
    if (target / INCOMING).is_dir():
        _bring_in(target)


def files_into(target: Path, source: Path, over: dict[str, Any] | None = None) -> None:
    """Move a committed folder's files into `target`, which keeps its other files (checkpoints, metrics).

    One rename decides: before it `target` is as it was; after it `recover` finishes the move.
    Files that only the old manifest covers are deleted. `source` must lie on the same disk.
    `over`: the manifest that `target` must still have; UserError where another process has written there since.
    """
    target = _destination(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            _recover(target)
            if over is not None and manifest(target) != over:
                raise UserError(f"{target} was written by another process meanwhile", hint="run the same command again")
            os.rename(source, target / INCOMING)
            fsync_path(target)
            _bring_in(target)
    except OSError as error:
        raise write_error(error, target) from error


def _bring_in(target: Path) -> None:
    """Move the entries of `.incoming` into `target`, the manifest last. Safe to repeat after a kill."""
    incoming = target / INCOMING
    if (incoming / MANIFEST).exists():  # else all but the empty folder has been moved
        new = _covered(incoming)
        with contextlib.suppress(UserError, OSError):  # a damaged old manifest is on its way out
            known = manifest(target)
            for name in [] if known is None else known["files"]:
                if name.split("/")[0] not in new:
                    inside(target, name).unlink(missing_ok=True)
    for path in sorted(incoming.iterdir(), key=lambda p: (p.name == MANIFEST, p.name)):
        if path.name == MANIFEST:
            fsync_path(target)
        if path.is_dir() and (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        os.replace(path, target / path.name)
    fsync_path(target)
    incoming.rmdir()


def manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where there is none (a folder made by another tool)."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    value = read_json(path)
    if isinstance(value, dict) and value.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path} has format {value['format']!r}, this version reads format {FORMAT}",
            hint="run: pip install --upgrade gpt2kit",
        )
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(v, dict) and isinstance(v.get("sha256"), str) and type(v.get("bytes")) is int for v in files.values()
    ):
        raise UserError(f"{path} is not a gpt2kit manifest", hint="restore the folder from a backup")
    return dict(value)


def verify(folder: Path, names: Collection[str] | None = None, sizes_only: bool = False) -> dict[str, Any] | None:
    """Check the files that the manifest names: size, then SHA-256. Returns the manifest; None: there is none.

    With `names`, check those files only, and refuse one that is there although the manifest does not name it.
    Raises UserError naming the first file that is missing, truncated, changed or not covered.
    """
    value = manifest(folder)
    if value is None:
        return None
    files = value["files"]
    hint = "the folder is damaged: restore it from a backup or an earlier checkpoint"
    for name in [] if names is None else sorted(names):
        if name not in files and (folder / name).exists():
            raise UserError(
                f"{folder / name} is not covered by {MANIFEST}: it was put there by something else",
                hint=f"remove it, or remove {MANIFEST} to load the folder unverified",
            )
    for name, expected in files.items():
        path = inside(folder, name)
        if names is not None and name not in names:
            continue
        if not path.is_file():
            raise UserError(f"{path} is missing, though the manifest lists it", hint=hint)
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(f"{path} has {size} bytes, the manifest says {expected['bytes']}", hint=hint)
        if not sizes_only and sha256_file(path) != expected["sha256"]:
            raise UserError(
                f"{path} has changed since it was written (its SHA-256 differs from the manifest)", hint=hint
            )
    return value
