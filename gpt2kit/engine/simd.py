"""What Numba's language lacks: vector dot products, lane-ordered sums, atomics. Each is a piece of LLVM code.

The code is built from LLVM's own vector types (16 lanes of 32 bits), so it compiles for any CPU; only the dot product
of four bytes a lane differs by instruction set. **Which one is used is part of a type**: kernels take an `Instructions`
value, a tuple of zeros whose length is the code below, so each set has compiled code of its own in Numba's cache and
several can be run in one process. All sets give the same integers.

    plain         8-bit factors widened to 32 bits, any CPU
    avx512_vnni   vpdpbusd on 512 bits: 64 products an instruction
    avx_vnni      vpdpbusd on 256 bits, two for one of the above
    avx2          bytes widened to 16 bits, vpmaddwd on 256 bits: four for one (x86 without VNNI)
    neon_i8mm     usdot on 128 bits, four for one (Apple M2, Graviton 3 and later)

Lane sums add element 16 i + j to lane j for ascending i, then halves of the lanes: one order on every CPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic as numba_intrinsic

from gpt2kit.errors import UserError, unknown

cgutils: Any = numba_cgutils  # has no types
Decorator = Callable[[Callable[..., Any]], Any]
intrinsic: Decorator = numba_intrinsic
constant_intrinsic: Decorator = numba_intrinsic(prefer_literal=True)  # its integer arguments may be constants

Instructions = tuple[int, ...]
CODES = {"plain": 1, "avx512_vnni": 2, "avx_vnni": 3, "neon_i8mm": 4, "avx2": 5}
LANES = 16
BLOCKS_AHEAD = 3  # blocks of keys and values that are fetched ahead

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
V64I8, V16I32, V16F32 = ir.VectorType(I8, 64), ir.VectorType(I32, 16), ir.VectorType(F32, 16)
V16I16, V8I32 = ir.VectorType(I16, 16), ir.VectorType(I32, 8)


def instructions(name: str = "auto") -> Instructions:
    """The value that makes kernels use the named set; "auto" is this CPU's best. UserError for one it lacks."""
    if name == "auto":
        name = available()[0]
    if name not in CODES:
        raise unknown("instruction set", name, ("auto", *CODES))
    if name not in available():
        raise UserError(
            f"this CPU has no {name}", hint=f"use one of: auto, {', '.join(available())}; plain gives the same text"
        )
    return (0,) * CODES[name]


@cache
def available() -> tuple[str, ...]:
    """The sets that this CPU has, best first."""
    features = llvm.get_host_cpu_features()
    has = [
        ("avx512_vnni", features.get("avx512vnni", False) and features.get("avx512bw", False)),
        ("avx_vnni", features.get("avxvnni", False)),
        ("avx2", features.get("avx2", False)),
        ("neon_i8mm", features.get("i8mm", False)),
        ("plain", True),
    ]
    return tuple(name for name, present in has if present)


# ---------------------------------------------------------------- building blocks of the generated code


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, element: Any) -> Any:
    """The address of element `offset` of a one-dimensional array, as a pointer to `element`."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [offset]), element.as_pointer())


def _load(builder: Any, pointer: Any, kind: Any, align: int = 4) -> Any:
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


def _store(builder: Any, value: Any, pointer: Any, align: int = 4) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    mask = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _part(builder: Any, vector: Any, start: int, count: int) -> Any:
    mask = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _joined(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        count = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, count), list(range(count)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in pairs]
    return parts[0]


def _dot4(builder: Any, code: int, total: Any, unsigned: Any, signed: Any) -> Any:
    """total [16 x i32] + the dot products of four bytes a lane; both factors arrive as [16 x i32]."""
    if code == CODES["avx512_vnni"]:
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", V16I32, [total, unsigned, signed])
    if code == CODES["avx_vnni"]:
        return _halves(builder, "llvm.x86.avx512.vpdpbusd.256", 8, total, unsigned, signed, None)
    if code == CODES["neon_i8mm"]:
        return _halves(
            builder, "llvm.aarch64.neon.usdot.v4i32.v16i8", 4, total, unsigned, signed, ir.VectorType(I8, 16)
        )
    if code == CODES["avx2"]:
        parts = [[_part(builder, v, start, 8) for v in (total, unsigned, signed)] for start in (0, 8)]
        return _joined(builder, [_add_pairs(builder, *part) for part in parts])
    a, b = builder.bitcast(unsigned, V64I8), builder.bitcast(signed, V64I8)
    for byte in range(4):
        mask = ir.Constant(V16I32, list(range(byte, 64, 4)))
        undefined = ir.Constant(V64I8, ir.Undefined)
        x = builder.zext(builder.shuffle_vector(a, undefined, mask), V16I32)
        y = builder.sext(builder.shuffle_vector(b, undefined, mask), V16I32)
        total = builder.add(total, builder.mul(x, y))
    return total


def _add_pairs(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """`_dot4` of 8 lanes: the even bytes, then the odd ones, widened to 16 bits.

    vpmaddubsw, which takes bytes as they are, would saturate: 2 * 255 * 127 is more than 16 bits hold.
    """
    a, b = builder.bitcast(unsigned, V16I16), builder.bitcast(signed, V16I16)
    eight, low = ir.Constant(V16I16, [8] * 16), ir.Constant(V16I16, [255] * 16)
    even = builder.and_(a, low), builder.ashr(builder.shl(b, eight), eight)
    odd = builder.lshr(a, eight), builder.ashr(b, eight)
    for pair in (even, odd):
        total = builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", V8I32, list(pair)))
    return total


def _halves(builder: Any, name: str, width: int, total: Any, unsigned: Any, signed: Any, factor: Any) -> Any:
    """A 16-lane dot product from several of `width` lanes; `factor` is the type of its byte arguments."""
    out = []
    for start in range(0, LANES, width):
        t, a, b = (_part(builder, v, start, width) for v in (total, unsigned, signed))
        if factor is not None:
            a, b = builder.bitcast(a, factor), builder.bitcast(b, factor)
        out.append(_call(builder, name, t.type, [t, a, b]))
    return _joined(builder, out)


def _accumulators(builder: Any, initial: list[Any]) -> list[Any]:
    return [cgutils.alloca_once_value(builder, value) for value in initial]


def _multiply_add(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the CPU can. Used by precision fp32 only: int8 must equal numpy's separate roundings."""
    if _has_fma():
        return _call(builder, "llvm.fma.v16f32", V16F32, [a, b, c])
    return builder.fadd(builder.fmul(a, b), c)


@cache
def _has_fma() -> bool:
    features = llvm.get_host_cpu_features()
    return bool(
        features.get("fma", False) or "aarch64" in llvm.get_process_triple() or "arm64" in llvm.get_process_triple()
    )


def _prefetch(builder: Any, pointer: Any) -> None:
    """Ask for the cache line at `pointer`, to be read once soon."""
    flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # read, keep in all caches, data
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *flags])


def _ahead(builder: Any, entries: Any, block: Any, blocks: Any) -> Any:
    """The table's entry BLOCKS_AHEAD of `block`, or the last."""
    index, last = builder.add(block, _index(BLOCKS_AHEAD)), builder.sub(blocks, _index(1))
    index = builder.select(builder.icmp_signed("<", index, last), index, last)
    return builder.load(builder.gep(entries, [index]))


def _index(value: int) -> Any:
    return ir.Constant(I64, value)


# ---------------------------------------------------------------- products


@constant_intrinsic
def dot_tile(
    typing_context: Any, isa: Any, rows: Any, vectors: Any, x: Any, x_at: Any, x_stride: Any, w: Any, w_at: Any,
    steps: Any, ahead: Any, start: Any, start_at: Any, out: Any, out_at: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """rows x (16 vectors) int32 sums of int8 products over 4 * steps inputs. Weights are fetched `ahead` bytes ahead.

    x int8, row m at x_at + m x_stride; w uint8 [steps, 64, 4], of which 16 vectors outputs from w_at on are used; start
    int32: what row m's sums begin with; out int32, row m at out_at + m out_stride. `rows` and `vectors` are constants.
    """
    code, M, N = isa.count, rows.literal_value, vectors.literal_value
    i = types.int64
    signature = types.void(isa, rows, vectors, x, i, i, w, i, i, i, start, i, out, i, i)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[3], args[3], args[4], I8)
        ws = _pointer(context, builder, sig.args[6], args[6], args[7], I8)
        begin = _pointer(context, builder, sig.args[10], args[10], args[11], I32)
        outs = _pointer(context, builder, sig.args[12], args[12], args[13], I32)
        rows_at = [builder.gep(xs, [builder.mul(args[5], _index(m))]) for m in range(M)]
        first = [_splat(builder, _load(builder, builder.gep(begin, [_index(m)]), I32), V16I32) for m in range(M)]
        sums = _accumulators(builder, [first[m] for m in range(M) for _ in range(N)])
        with cgutils.for_range(builder, args[8]) as loop:
            tile = builder.gep(ws, [builder.mul(loop.index, _index(4 * 64))])
            for n in range(N):
                _prefetch(builder, builder.gep(tile, [builder.add(args[9], _index(64 * n))]))
            weights = [_load(builder, builder.gep(tile, [_index(64 * n)]), V16I32, 1) for n in range(N)]
            at = builder.mul(loop.index, _index(4))
            for m in range(M):
                bytes4 = _splat(builder, _load(builder, builder.gep(rows_at[m], [at]), I32, 1), V16I32)
                for n in range(N):
                    total = sums[m * N + n]
                    builder.store(_dot4(builder, code, builder.load(total), weights[n], bytes4), total)
        for m in range(M):
            row = builder.gep(outs, [builder.mul(args[14], _index(m))])
            for n in range(N):
                _store(builder, builder.load(sums[m * N + n]), builder.gep(row, [_index(16 * n)]))
        return context.get_dummy_value()

    return signature, generate


@constant_intrinsic
def fma_tile(
    typing_context: Any, rows: Any, vectors: Any, x: Any, x_at: Any, x_stride: Any, w: Any, w_at: Any,
    steps: Any, out: Any, out_at: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """rows x (16 vectors) float32 sums of products over `steps` inputs, in ascending order.

    x, out float32 as in `dot_tile`; w float32 [steps, 16 vectors] from w_at.
    """
    M, N = rows.literal_value, vectors.literal_value
    i = types.int64
    signature = types.void(rows, vectors, x, i, i, w, i, i, out, i, i)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[2], args[2], args[3], F32)
        ws = _pointer(context, builder, sig.args[5], args[5], args[6], F32)
        outs = _pointer(context, builder, sig.args[8], args[8], args[9], F32)
        rows_at = [builder.gep(xs, [builder.mul(args[4], _index(m))]) for m in range(M)]
        sums = _accumulators(builder, [ir.Constant(V16F32, [0.0] * 16)] * (M * N))
        with cgutils.for_range(builder, args[7]) as loop:
            tile = builder.gep(ws, [builder.mul(loop.index, _index(16 * N))])
            weights = [_load(builder, builder.gep(tile, [_index(16 * n)]), V16F32) for n in range(N)]
            for m in range(M):
                value = _splat(builder, builder.load(builder.gep(rows_at[m], [loop.index])), V16F32)
                for n in range(N):
                    total = sums[m * N + n]
                    builder.store(_multiply_add(context, builder, weights[n], value, builder.load(total)), total)
        for m in range(M):
            row = builder.gep(outs, [builder.mul(args[10], _index(m))])
            for n in range(N):
                _store(builder, builder.load(sums[m * N + n]), builder.gep(row, [_index(16 * n)]))
        return context.get_dummy_value()

    return signature, generate


@constant_intrinsic
def key_scores(
    typing_context: Any, isa: Any, rows: Any, q: Any, q_stride: Any, keys: Any, keys_at: Any, table: Any, table_at: Any,
    stride: Any, blocks: Any, steps: Any, start: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """Integer scores of `rows` queries with all tokens of `blocks` key blocks.

    Block b begins at keys_at + table[table_at + b] * stride: uint8 [steps, 16 tokens, 4]. q int8, row m at m q_stride;
    start int32 [rows]: what a row's sums begin with; out int32: row m, block b at m out_stride + 16 b.
    """
    code, M = isa.count, rows.literal_value
    i = types.int64
    signature = types.void(isa, rows, q, i, keys, i, table, i, i, i, i, start, out, i)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = _index(0)
        qs = _pointer(context, builder, sig.args[2], args[2], zero, I8)
        ks = _pointer(context, builder, sig.args[4], args[4], args[5], I8)
        entries = _pointer(context, builder, sig.args[6], args[6], args[7], I32)
        begin = _pointer(context, builder, sig.args[11], args[11], zero, I32)
        outs = _pointer(context, builder, sig.args[12], args[12], zero, I32)
        rows_at = [builder.gep(qs, [builder.mul(args[3], _index(m))]) for m in range(M)]
        first = [_splat(builder, _load(builder, builder.gep(begin, [_index(m)]), I32), V16I32) for m in range(M)]
        sums = _accumulators(builder, first)
        with cgutils.for_range(builder, args[9]) as blocks_loop:
            entry = builder.sext(builder.load(builder.gep(entries, [blocks_loop.index])), I64)
            block = builder.gep(ks, [builder.mul(entry, args[8])])
            later = _ahead(builder, entries, blocks_loop.index, args[9])
            next_block = builder.gep(ks, [builder.mul(builder.sext(later, I64), args[8])])
            for m in range(M):
                builder.store(first[m], sums[m])
            with cgutils.for_range(builder, args[10]) as loop:
                line = builder.mul(loop.index, _index(64))
                _prefetch(builder, builder.gep(next_block, [line]))
                tile = _load(builder, builder.gep(block, [line]), V16I32, 1)
                at = builder.mul(loop.index, _index(4))
                for m in range(M):
                    bytes4 = _splat(builder, _load(builder, builder.gep(rows_at[m], [at]), I32, 1), V16I32)
                    builder.store(_dot4(builder, code, builder.load(sums[m]), tile, bytes4), sums[m])
            column = builder.mul(blocks_loop.index, _index(16))
            for m in range(M):
                place = builder.gep(outs, [builder.add(builder.mul(args[13], _index(m)), column)])
                _store(builder, builder.load(sums[m]), place)
        return context.get_dummy_value()

    return signature, generate


@constant_intrinsic
def weigh_values(
    typing_context: Any, isa: Any, rows: Any, vectors: Any, shares: Any, shares_stride: Any, values: Any,
    values_at: Any, table: Any, table_at: Any, stride: Any, blocks: Any, row: Any, out: Any,
) -> Any:  # fmt: skip
    """Integer sums of values weighed by 16-bit shares, for `rows` queries and 16 `vectors` channels of one head.

    shares uint8: for each row the high bytes [16 blocks] and, shares_stride further, the low bytes, then the next row.
    Block b begins at values_at + table[table_at + b] * stride: int8 [4 groups of tokens, channels of the head, 4], a
    group being `row` bytes. out int32 [rows, 2, 16 vectors]: the sums of the high and of the low bytes.
    """
    code, M, N = isa.count, rows.literal_value, vectors.literal_value
    i = types.int64
    signature = types.void(isa, rows, vectors, shares, i, values, i, table, i, i, i, i, out)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = _index(0)
        ps = _pointer(context, builder, sig.args[3], args[3], zero, I8)
        vs = _pointer(context, builder, sig.args[5], args[5], args[6], I8)
        entries = _pointer(context, builder, sig.args[7], args[7], args[8], I32)
        outs = _pointer(context, builder, sig.args[12], args[12], zero, I32)
        parts = [builder.gep(ps, [builder.mul(args[4], _index(part))]) for part in range(2 * M)]
        sums = _accumulators(builder, [ir.Constant(V16I32, [0] * 16)] * (2 * M * N))
        with cgutils.for_range(builder, args[10]) as loop:
            entry = builder.sext(builder.load(builder.gep(entries, [loop.index])), I64)
            block = builder.gep(vs, [builder.mul(entry, args[9])])
            later = _ahead(builder, entries, loop.index, args[10])
            next_block = builder.gep(vs, [builder.mul(builder.sext(later, I64), args[9])])
            for group in range(4):
                at = builder.add(builder.mul(loop.index, _index(16)), _index(4 * group))
                four = [_splat(builder, _load(builder, builder.gep(p, [at]), I32, 1), V16I32) for p in parts]
                start = builder.mul(args[11], _index(group))
                for n in range(N):
                    line = builder.add(start, _index(64 * n))
                    _prefetch(builder, builder.gep(next_block, [line]))
                    value = _load(builder, builder.gep(block, [line]), V16I32, 1)
                    for part in range(2 * M):
                        total = sums[part * N + n]
                        builder.store(_dot4(builder, code, builder.load(total), four[part], value), total)
        for n in range(2 * M * N):
            _store(builder, builder.load(sums[n]), builder.gep(outs, [_index(16 * n)]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any, count: Any) -> Any:
    """Ask for `count` items from array[at], which will be needed soon."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0]).data
        first = builder.bitcast(builder.gep(data, [args[1]]), I8.as_pointer())
        size = _index(context.get_abi_sizeof(context.get_data_type(sig.args[0].dtype)))
        lines = builder.udiv(builder.add(builder.mul(args[2], size), _index(63)), _index(64))
        with cgutils.for_range(builder, lines) as loop:
            _prefetch(builder, builder.gep(first, [builder.mul(loop.index, _index(64))]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


# ---------------------------------------------------------------- reductions in one fixed order


def _reduction(name: str, body: Callable[[Any, Any, Any], Any], join: Callable[[Any, Any, Any], Any]) -> Any:
    def typed(typing_context: Any, x: Any, at: Any, vectors: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            xs = _pointer(context, builder, sig.args[0], args[0], args[1], F32)
            total = cgutils.alloca_once_value(builder, ir.Constant(V16F32, [0.0] * 16))
            with cgutils.for_range(builder, args[2]) as loop:
                value = _load(builder, builder.gep(xs, [builder.mul(loop.index, _index(16))]), V16F32)
                builder.store(body(builder, builder.load(total), value), total)
            vector = builder.load(total)
            for width in (8, 4, 2, 1):
                vector = join(builder, _part(builder, vector, 0, width), _part(builder, vector, width, width))
            return builder.extract_element(vector, ir.Constant(I32, 0))

        return types.float32(x, types.int64, types.int64), generate

    typed.__name__ = name
    return intrinsic(typed)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _larger_size(builder: Any, a: Any, b: Any) -> Any:
    return _larger(builder, a, _call(builder, "llvm.fabs.v16f32", V16F32, [b]))


lane_sum = _reduction("lane_sum", lambda b, a, v: b.fadd(a, v), lambda b, x, y: b.fadd(x, y))
lane_sum.__doc__ = "The lane sum of 16 * vectors float32 from x[at]."
largest_size = _reduction("largest_size", _larger_size, _larger)
largest_size.__doc__ = "max |x| of 16 * vectors float32 from x[at]; NaN is passed over."


@intrinsic
def largest(typing_context: Any, x: Any, at: Any, vectors: Any) -> Any:
    """max of 16 * vectors (at least 16) float32 from x[at]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], args[1], F32)
        total = cgutils.alloca_once_value(builder, _load(builder, xs, V16F32))
        with cgutils.for_range(builder, args[2]) as loop:
            value = _load(builder, builder.gep(xs, [builder.mul(loop.index, _index(16))]), V16F32)
            builder.store(_larger(builder, builder.load(total), value), total)
        vector = builder.load(total)
        for width in (8, 4, 2, 1):
            vector = _larger(builder, _part(builder, vector, 0, width), _part(builder, vector, width, width))
        return builder.extract_element(vector, ir.Constant(I32, 0))

    return types.float32(x, types.int64, types.int64), generate


# ---------------------------------------------------------------- addresses


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An address as a pointer, for numba.carray."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


# ---------------------------------------------------------------- threads


@intrinsic
def atomic_add(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Add to array[at] (int64) and return what was there; ordered with everything (sequentially consistent)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw(
            "add", _pointer(context, builder, sig.args[0], args[0], args[1], I64), args[2], "seq_cst"
        )

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def atomic_load(typing_context: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, sig.args[0], args[0], args[1], I64), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def atomic_store(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the core that this thread waits."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        triple = llvm.get_process_triple()
        if triple.startswith(("x86", "i686", "amd64")):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif triple.startswith(("aarch64", "arm64")):
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typing_context: Any) -> Any:
    """Let another thread that is ready have this core (sched_yield; SwitchToThread on Windows)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "gpt2kit_give_way", I32, [])
        return context.get_dummy_value()

    return types.void(), generate


def _register_give_way() -> None:
    """Cached machine code refers to the function by this name, so it must be known before any is loaded."""
    library: Any = getattr(ctypes, "windll").kernel32 if sys.platform == "win32" else ctypes.CDLL(None)  # noqa: B009
    function = library.SwitchToThread if sys.platform == "win32" else library.sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    llvm.add_symbol("gpt2kit_give_way", address)


_register_give_way()
