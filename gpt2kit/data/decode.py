"""Files -> bytes -> text: decompression and text encodings, in bounded memory.

The encoding is decided on the first chunk that is not plain ASCII, from the bytes alone:

    a byte-order mark          UTF-8, UTF-16, UTF-32
    zero bytes                 UTF-16 where it reads as text, else the file is binary and refused
    valid UTF-8, nearly        UTF-8 (Chinese in another encoding is never nearly valid UTF-8)
    otherwise                  GB18030 (covers GBK and GB2312), Big5 or UTF-16: the one in which the commonest
                               Chinese characters come up; where none is clear the file is refused

Once decided, the encoding stays: a bad byte further on becomes U+FFFD and is counted.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpt2kit.errors import UserError, missing_extra

CHUNK = 1 << 18  # bytes read at a time; also the sample on which the encoding is decided
TELLING = 64  # bytes from the first one on that is not ASCII: fewer could be half a character
MAX_BAD = 0.01  # share of invalid bytes or control characters above which a sample is not text
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
STDIN = "-"

_ZSTD_FEED = 4096  # compressed bytes a step: a block of 4 bytes can unpack to 128 KB, so this is 128 MB at worst
_ASCII = bytes(range(128))
_MARK = "\ufdd0"  # a noncharacter that stands for an invalid sequence until it is counted
_CODECS = {
    "UTF-8": "utf-8",
    "GB18030": "gb18030",
    "Big5": "cp950",
    "UTF-16 LE": "utf-16-le",
    "UTF-16 BE": "utf-16-be",
    "UTF-32 LE": "utf-32-le",
    "UTF-32 BE": "utf-32-be",
}
_WIDE = ("UTF-16 LE", "UTF-16 BE")
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\v\f\r\b\x1b")
_BOMS = (  # UTF-32 LE begins with UTF-16 LE's mark: longest first
    (codecs.BOM_UTF32_LE, "UTF-32 LE"),
    (codecs.BOM_UTF32_BE, "UTF-32 BE"),
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16 LE"),
    (codecs.BOM_UTF16_BE, "UTF-16 BE"),
)
_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive (or .docx, .xlsx, .epub)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x1f\x8b", "gzip data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh", "bzip2 data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"PAR1", "Parquet data"),
    (b"SQLite format 3", "an SQLite database"),
)
_RENAME = {
    "gzip data": ".gz",
    "xz data": ".xz",
    "zstd data": ".zst",
    "bzip2 data": ".bz2",
    "Parquet data": ".parquet",
}

# The commonest characters of modern and classical Chinese in both scripts, with their punctuation: about half
# of any Chinese text, and next to none of the same bytes read in a wrong encoding.
_COMMON = frozenset(
    "，。、；：？！「」『』《》“”‘’（）…—·　"
    "的一是不了在人有我他这这個们個們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着著下自之年过過"
    "发發后後作里裡裏用道行所然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心她"
    "本前开開但因只从從想实實日军軍者意无無力它与與长長把机機十民第公此已工使情明性知全三又关關点點正业業外将將两兩高间間由问問"
    "很最重并並物手应應战戰向头頭文体體政美相见見被利什二等产產或新己制身果加西斯月话話合回特代内內信表化老给給世位次度门門任"
    "常先海通教儿兒原东東声聲提立及比员員解水名真论論处處走义義各入几幾口认認条條平系气氣题題活尔爾更别別打女变變四神总總何"
    "电電数數安少报報才结結反受目太量再感建务務做接必场場件计計管期市直德资資命山金指克许許统統区區保至队隊形社便空决決治展"
    "马馬科司五基眼书書非则則听聽白却卻界达達光放强強即像难難且权權思王象完设設式色路记記南品住告类類求据據程北边邊死张張"
    "花春秋风風云雲夜酒君归歸客江雨落清千万萬里歌飞飛流未不復复树樹独獨愁望古城吃味送店餐买買喜欢歡觉覺让讓吗嗎吧呢啊"
)


@dataclass
class Decoded:
    """What was found while a file was decoded."""

    encoding: str = "UTF-8"
    replaced: int = 0  # invalid sequences that became U+FFFD
    bytes: int = 0  # after decompression


def read_bytes(path: str | Path, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The decompressed bytes of a file ("-": standard input) in chunks.

    `progress` gets the bytes taken from the disk so far.
    Raises UserError for a file that cannot be read or whose compression is damaged or cut short.
    """
    suffix = Path(path).suffix.lower()
    try:
        if str(path) == STDIN:
            yield from _chunks(sys.stdin.buffer, progress)
            return
        with open(path, "rb") as raw:
            if suffix == ".zst":
                yield from _unzstd(_chunks(raw, progress), path)
            elif suffix in COMPRESSED:
                yield from _chunks(_decompressor(raw, suffix), progress, raw)
            else:
                yield from _chunks(raw, progress)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        if suffix == ".bz2" and error.errno is None:  # bz2 reports bad data as a bare OSError
            raise _damaged(path, str(error)) from None
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _damaged(path: str | Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or cut short: {why}", hint="fetch or compress it again, or correct its suffix")


def _decompressor(raw: BinaryIO, suffix: str) -> io.BufferedIOBase:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    return lzma.LZMAFile(raw) if suffix == ".xz" else bz2.BZ2File(raw)


def _chunks(
    file: BinaryIO | io.BufferedIOBase, progress: Callable[[int], None] | None, raw: BinaryIO | None = None
) -> Iterator[bytes]:
    done = 0
    while chunk := file.read(CHUNK):
        done = raw.tell() if raw is not None else done + len(chunk)
        if progress is not None:
            progress(done)
        yield chunk


def _unzstd(chunks: Iterable[bytes], path: str | Path) -> Iterator[bytes]:
    """Frame after frame. The package's own stream reader does not notice a file that was cut short."""
    try:
        import zstandard
    except ImportError:
        raise missing_extra("zstandard", "zstd", f"reading {path}") from None
    frame = None
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _ZSTD_FEED):
                rest = chunk[start : start + _ZSTD_FEED]
                while rest:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(rest)
                    rest = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged(path, str(error)) from None
    if frame is not None:
        raise _damaged(path, "the last frame is incomplete")


def decode(chunks: Iterable[bytes], name: str, found: Decoded) -> Iterator[str]:
    """Text of `chunks`, newlines as "\\n"; what was seen goes into `found`. UserError if it is not text."""
    decoder: codecs.IncrementalDecoder | None = None
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    first = True
    held = b""  # what stands from the first byte on that is not ASCII, while that is too little to decide on
    for read, last in _sampled(chunks):
        found.bytes += len(read)
        chunk, held = held + read, b""
        if decoder is None and not last:
            chunk, held = _undecided(chunk)
        if first:
            _refuse_binary(chunk, name)
        if decoder is None:
            encoding, skip = recognise(chunk, name, first, last)
            if encoding != "ASCII":
                found.encoding = encoding
                decoder = codecs.getincrementaldecoder(_CODECS[encoding])(errors="gpt2kit.mark")
                chunk = chunk[skip:]
        first = False
        text = chunk.decode("ascii") if decoder is None else decoder.decode(chunk, final=last)
        if "\0" in text:
            raise UserError(
                f"{name} holds a zero character in its first {found.bytes:,} bytes: it is not plain text",
                hint="remove the zero characters, or leave the file out",
            )
        if _MARK in text:
            found.replaced += text.count(_MARK)
            text = text.replace(_MARK, "\ufffd")
            if found.replaced > MAX_BAD * found.bytes:
                raise UserError(
                    f"{name}: {found.replaced:,} of its first {found.bytes:,} bytes are not {found.encoding}, as what "
                    "stands before them is",
                    hint="save all of it in one encoding, UTF-8",
                )
        yield newlines.decode(text, final=last)


def _undecided(chunk: bytes) -> tuple[bytes, bytes]:
    """A chunk, and its end from the first byte on that is not ASCII, where that end is too short to tell encodings."""
    end = chunk.lstrip(_ASCII)
    return (chunk[: -len(end)], end) if 0 < len(end) < TELLING else (chunk, b"")


def _sampled(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Chunks of at least CHUNK bytes but for the last, which is marked; small reads of a pipe are joined."""
    held: list[bytes] = []
    size = 0
    previous: bytes | None = None
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            if previous is not None:
                yield previous, False
            previous = b"".join(held)
            held, size = [], 0
    if previous is not None:
        yield previous, not size
    if size or previous is None:
        yield b"".join(held), True


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _MARK, error.end


codecs.register_error("gpt2kit.mark", _mark)


def _refuse_binary(sample: bytes, name: str) -> None:
    for magic, what in _MAGIC:
        if sample.startswith(magic):
            suffix = _RENAME.get(what)
            hint = f"rename it so that it ends in {suffix}" if suffix else "export its text as UTF-8 first"
            raise UserError(f"{name} is {what}, not plain text", hint=hint)


def recognise(sample: bytes, name: str, first: bool, last: bool) -> tuple[str, int]:
    """(encoding, length of the byte-order mark). `first`: the sample starts the file; `last`: it ends it.

    "ASCII" means undecided: nothing but ASCII so far. Raises UserError for binary or unknown data.
    """
    if first:
        for bom, encoding in _BOMS:
            if sample.startswith(bom):
                return encoding, len(bom)
    if first and (b"\0" in sample or len(sample.translate(None, _CONTROLS)) < (1 - MAX_BAD) * len(sample)):
        wide = _best(sample, _WIDE, last)
        if wide is None:
            raise UserError(f"{name} is binary data, not text", hint="leave it out, or export its text as UTF-8")
        return wide, 0
    if sample.isascii():
        return "ASCII", 0
    text = _try(sample, "UTF-8", last)
    bad = text.count(_MARK)
    others = sum(not c.isascii() for c in text) - bad
    if others < 4 * bad:  # not "nearly valid"
        wide_too = first and bad > MAX_BAD * len(sample)  # English with an odd byte is no UTF-16
        other = _best(sample, ("GB18030", "Big5", *(_WIDE if wide_too else ())), last)
        if other is not None:
            return other, 0
    if bad > MAX_BAD * len(sample):
        raise UserError(
            f"{name} is not in an encoding that was recognised: {bad / len(sample):.0%} of its first bytes "
            "are not UTF-8, and it reads as neither GB18030, Big5 nor UTF-16",
            hint="save it as UTF-8, or leave it out if it is not text",
        )
    return "UTF-8", 0


def _try(sample: bytes, encoding: str, last: bool) -> str:
    return codecs.getincrementaldecoder(_CODECS[encoding])(errors="gpt2kit.mark").decode(sample, final=last)


def _best(sample: bytes, encodings: tuple[str, ...], last: bool) -> str | None:
    """The encoding in which `sample` reads as Chinese (UTF-16: or as English), if one is clearly ahead."""
    if "GB18030" in encodings:
        text = _try(sample, "GB18030", last)
        kana = sum("\u3040" <= c <= "\u30ff" for c in text)
        if kana > 0.3 * sum(not c.isascii() for c in text):
            return None  # Japanese in EUC-JP, whose kana lie where GB18030 has them (Big5 shows up to 0.27)
    scores = sorted(((_likeness(sample, e, last), e) for e in encodings), reverse=True)
    (best, encoding), (second, _) = scores[:2]
    # measured on passages of 40 characters: right readings score 0.18 to 0.6, wrong ones 0.14 at most
    return encoding if best >= 0.15 and best >= 2 * second else None


def _likeness(sample: bytes, encoding: str, last: bool) -> float:
    """Share of common characters in `sample` read so: of all in UTF-16, else of those beyond ASCII."""
    text = _try(sample, encoding, last)
    wide = encoding.startswith("UTF-16")
    counted = text if wide else "".join(c for c in text if not c.isascii())
    if not counted or counted.count(_MARK) > 2 * MAX_BAD * len(counted) or (wide and "\0" in text):
        return 0.0
    if not wide and len(counted) < min(4, 0.05 * len(text)):
        return 0.0  # English with two or three odd bytes proves nothing
    common = sum(c in _COMMON or (c.isascii() and (c.isprintable() or c.isspace())) for c in counted)
    return common / len(counted)
