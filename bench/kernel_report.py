"""What every kernel needs of a GPU, from compiling it without one: registers, stack, shared memory, instructions.

``python bench/kernel_report.py`` compiles all that is launched on sm_80 and sm_90 and writes
``bench/results/kernel-report.md``; ``--gates`` compiles the smaller table of continuous integration. It ends with
status 1 if a kernel spills, takes more shared memory than its configuration says, multiplies without tensor cores, or
computes an address in 32 bits that could overflow.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inrfast.activations import ACTIVATIONS as REGISTERED

REPORT = Path(__file__).parent / "results" / "kernel-report.md"
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory a program may have, by compute capability."""

ACTIVATIONS = tuple(kind.device for kind in REGISTERED.values() if kind.device is not None)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kernel as one launch compiles it: ``options`` are its compile-time choices."""

    kernel: str
    format: str
    capability: int
    options: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        """The entry for a reader."""
        chosen = ", ".join(name if value is True else f"{value}" for name, value in self.options if value is not False)
        return f"{self.kernel} {self.format} sm_{self.capability} {chosen}".strip()


def gram(name: str, capability: int, symmetric: bool, aligned: bool = True) -> Entry:
    """``aligned``: sizes and strides are multiples of 16, for which there is machine code of its own."""
    chosen = (("symmetric", symmetric), ("unaligned", not aligned))
    return Entry("gram_tile", name, capability, chosen)


def aligned_candidates(symmetric: Sequence[bool]) -> list[Entry]:
    """What the dense kernel of aligned sizes launches or may launch, by its place: 0 is in use, if it is a row of its
    own."""
    from inrfast.kernels import tiles

    table = []
    for (kernel, f, kind), row in tiles.TILES.items():
        if kernel == "gram_aligned":
            own = row[:-1] != tiles.TILES["gram_tile", f, kind][:-1]
            chosen = tiles.candidates(kernel, f, kind)
            table += [
                Entry(f"gram_{config.design}", f, 90, (("candidate", index), *_aligned(s)))
                for index, config in enumerate(chosen) for s in symmetric if own or index > 0
            ]  # fmt: skip
    return table


def _aligned(symmetric: bool) -> tuple[tuple[str, bool], ...]:
    return ("symmetric", symmetric), ("unaligned", False)


def reduction(kernel: str, name: str, capability: int, **options: Any) -> Entry:
    """An epilogue of the Gram tile: ``"gram_norm"`` or ``"gram_product"``."""
    return Entry(kernel, name, capability, tuple(options.items()))


def factors(name: str, capability: int, activation: str, full: bool) -> Entry:
    return Entry("mlp_slabs", name, capability, (("activation", activation), ("full", full)))


def jacobian(kernel: str, name: str, capability: int, **options: bool) -> Entry:
    """``one_output``, ``identity`` and ``bias_alone`` have machine code of their own."""
    return Entry(kernel, name, capability, tuple(options.items()))


def jacobian_entries(gates: bool) -> list[Entry]:
    """Rows and products; for the gates those of hidden layers, whose sums are the largest programs."""
    products = ("jacobian_product", "jacobian_transposed_product")
    targets = [(f, c) for c in (90, 80) for f in ("fp32", "fp64")]
    if gates:
        chosen = (("fp32", 90), ("fp32", 80), ("fp64", 90))
        return [jacobian("jacobian_rows", "fp32", 90), *(jacobian(k, f, c) for k in products for f, c in chosen)]
    table = [jacobian(k, f, c) for k in ("jacobian_rows", *products) for f, c in targets]
    table += [jacobian(k, f, c, one_output=True) for k in products for f, c in targets]
    table += [jacobian("jacobian_rows", f, c, one_output=True) for f, c in targets]
    kinds = ("identity", "bias_alone")
    return table + [
        jacobian(k, f, c, **{o: True}) for k in ("jacobian_rows", *products) for o in kinds for f, c in targets
    ]


TANGENT = ("transposed_product", "product")


def tangent_entries(gates: bool) -> list[Entry]:
    """Products with a tangent kernel through its operands: both tiles of wide layers, that of narrow ones, ``J p``."""
    kinds = [("transposed_product", {"units": 64}), ("transposed_product", {"units": 128})]
    kinds += [("transposed_product", {"narrow": True}), ("product", {})]
    chosen = kinds[1::2] if gates else kinds
    return [Entry(kernel, "fp64", c, tuple(options.items())) for kernel, options in chosen for c in (90, 80)]


FUSED_LINEAR = ("fused_linear", "layer_errors")


def fused_linear_entries(gates: bool) -> list[Entry]:
    """The fused layer, forward and backward; for the gates a mask and a slope each, in the formats that need most."""
    kinds = (("fp16", "fp16"), ("tf32", "fp32"), ("tf32x3", "fp32"), ("fp64", "fp64"))

    def entry(kernel: str, kind: str, dtype: str, capability: int, activation: str, few: bool = False) -> Entry:
        options = (("dtype", dtype), ("activation", activation), ("few", few))
        return Entry(kernel, kind, capability, options)

    if gates:
        table = [entry(k, "fp16", "fp16", 90, a) for k in FUSED_LINEAR for a in ("relu", "sine")]
        table += [entry(k, "tf32x3", "fp32", 80, "relu") for k in FUSED_LINEAR]
        table += [entry(k, "fp64", "fp64", 90, "relu") for k in FUSED_LINEAR[1:]]
        return [*table, entry("fused_linear", "fp16", "bf16", 80, "sine", few=True)]
    table = [
        entry(k, *kind, c, a) for k in FUSED_LINEAR for kind in (*kinds, ("fp16", "bf16")) for c in (90, 80)
        for a in (ACTIVATIONS if k == "fused_linear" else ("identity", "relu", "sine", "tanh", "softplus"))
    ]  # fmt: skip
    return table + [entry("fused_linear", *kind, c, "sine", few=True) for kind in kinds for c in (90, 80)]


STEP = ("mlp_forward", "mlp_backward", "mlp_weight_gradients", "mlp_update")
SMALL = ("width", "depth", "outputs", "hidden", "weight_columns", "top", "low", "begin", "end", "bottom", "end_layer")
"""Arguments of the training step's kernels that the host holds to a bound."""


def step(kernel: str, kind: str, capability: int, width: int, activation: str = "relu", **options: Any) -> Entry:
    """A kernel of the training step; ``encoded``: its inputs are 256 features, ``drawn``: of a mini-batch."""
    activation_of = (("activation", activation),) if kernel in STEP[:2] else ()
    return Entry(kernel, kind, capability, (("width", width), *activation_of, *options.items()))


def step_entries(gates: bool) -> list[Entry]:
    """The training step; for the gates the widths of both ways from layer to layer, and every kind of product."""
    passes = STEP[:2]
    if gates:
        table = [step(k, "fp16", 90, w, a) for k in passes for w, a in ((64, "sine"), (128, "relu"), (256, "relu"))]
        table += [step(k, "fp16", 90, w, "sine") for k in passes for w in (256, 512)]
        table += [step(k, "fp16", 80, w, "sine") for k in passes for w in (64, 256)]
        table += [step(k, "tf32x3", c, 256, "relu") for k in passes for c in (90, 80)]
        table += [step(k, "fp64", 90, 64, "finer", encoded=True, drawn=True) for k in passes]
        table += [step("mlp_forward", "fp16", 90, 100, "sine"), step("mlp_backward", "fp64", 90, 64, "relu")]
        table += [step(kernel, kind, 90, 256, normed=True) for kernel in passes for kind in ("fp16", "tf32x3")]
        table += [step("mlp_forward", kind, 90, 256, "sine", loss="bce") for kind in ("fp16", "fp64")]
        table += [step("mlp_forward", "fp16", 80, 64, "relu", loss="huber"), step(passes[1], "fp16", 90, 64, loss="l1")]
        table += [step(STEP[2], kind, c, 256) for kind, c in (("fp16", 90), ("fp16", 80), ("tf32x3", 90))]
        return [*table, step(STEP[2], "fp16", 90, 256, encoded=True, drawn=True), step(STEP[3], "fp16", 90, 256)]
    widths, kinds = (16, 64, 100, 128, 256, 512), ("fp16", "tf32x3", "fp64")
    table = [
        step(k, kind, c, w, a) for k in passes for kind in kinds for c in (90, 80) for w in widths
        for a in ("relu", "sine", "gaussian", "finer")
    ]  # fmt: skip
    table += [
        step(k, kind, c, w, "sine", encoded=True, drawn=True) for k in passes for kind in kinds for c in (90, 80)
        for w in (64, 256)
    ]  # fmt: skip
    table += [step(k, kind, c, w, "wire") for k in passes for kind in kinds for c in (90, 80) for w in (64, 256)]
    table += [
        step(k, kind, c, w, "sine", loss=loss) for k in passes for kind in kinds for c in (90, 80) for w in (64, 256)
        for loss in ("l1", "huber", "bce")
    ]  # fmt: skip
    table += [step(STEP[2], kind, c, w) for kind in kinds for c in (90, 80) for w in widths]
    table += [step(STEP[2], kind, c, 256, encoded=True, drawn=True) for kind in kinds for c in (90, 80)]
    return table + [step(STEP[3], kind, c, 256) for kind in kinds for c in (90, 80)]


NORMS = ("mlp_norm_maps", "mlp_norm_fold", "mlp_norm_backward")


def norm_entries(gates: bool) -> list[Entry]:
    """The kernels of batch norms between the passes; ``running``: an evaluation's."""

    def entry(kernel: str, kind: str, capability: int, width: int, running: bool = False) -> Entry:
        return Entry(kernel, kind, capability, (("width", width), ("running", running)))

    kinds, widths = (("fp16", "fp64"), (256,)) if gates else (("fp16", "tf32x3", "fp64"), (16, 100, 256, 512))
    table = [entry(kernel, kind, c, w) for kernel in NORMS for kind in kinds for c in (90, 80) for w in widths]
    return table + [entry(NORMS[0], "fp16", c, 256, running=True) for c in (90, 80)]


WIDTHS = {"mlp_forward": 256, "mlp_on_chip": 128, "mlp_weight_gradients": 256}
"""Widths at which candidates of the training step are compiled: those at which the benchmark times them."""


def product_candidates() -> list[Entry]:
    """What a GPU may choose instead of the tiles in use, as the benchmark times it: by its place among candidates."""
    from inrfast.kernels import tiles

    table: list[Entry] = []
    for (name, kind, _), rows in tiles.PRODUCT_CANDIDATES.items():
        for index in range(len(rows)):
            chosen: dict[str, Any] = {"candidate": index}
            if name in WIDTHS:
                kernels = STEP[2:3] if name == STEP[2] else STEP[:2]
                table += [step(k, kind, 90, WIDTHS[name], "sine", **chosen) for k in kernels]
            elif name in FUSED_LINEAR:
                options = {"dtype": "fp16", "activation": "sine", "few": False} | chosen
                table.append(Entry(name, kind, 90, tuple(options.items())))
            else:
                options = {"narrow": name.endswith("narrow"), "units": 128} | chosen
                table.append(Entry(TANGENT[name == "product"], kind, 90, tuple(options.items())))
    return table


@contextlib.contextmanager
def in_place(entry: Entry) -> Iterator[None]:
    """Have the tables hold an entry's candidate of a product meanwhile."""
    from inrfast.kernels import tiles

    options = dict(entry.options)
    if "candidate" not in options or entry.kernel.startswith("gram"):
        yield
        return
    name = entry.kernel
    if entry.kernel in STEP[:2]:
        name = next(key for key, width in WIDTHS.items() if width == options["width"] and key != STEP[2])
    elif entry.kernel == TANGENT[0]:
        name += "_narrow" if options["narrow"] else "_wide"
    key = next(key for key in tiles.PRODUCT_CANDIDATES if key[0] == name)
    with tiles.chosen(key, tiles.PRODUCT_CANDIDATES[key][options["candidate"]]):
        yield


PIVOTS = "accept_pivots"


def entries(gates: bool) -> list[Entry]:
    """Return the entries of the gates, or all that is launched."""
    formats = ("fp16", "fp16x3", "tf32x3", "fp64")
    pivots = [Entry(PIVOTS, "fp64", capability, ()) for capability in (90, 80)]
    if gates:
        table = pivots + [gram(f, c, True) for c in (90, 80) for f in formats]
        table += [gram(f, 90, False) for f in formats]
        table += [gram(f, 90, True, aligned=False) for f in ("fp16", "fp16x3")]
        table += aligned_candidates((True,))
        table += [reduction("gram_norm", f, 90, symmetric=True) for f in formats]
        table += [reduction("gram_product", f, 90) for f in formats]
        table += [reduction("gram_norm", "fp16x3", 80, symmetric=True), reduction("gram_product", "fp16x3", 80)]
        table += jacobian_entries(gates) + fused_linear_entries(gates) + step_entries(gates) + norm_entries(gates)
        table += tangent_entries(gates)
        table += [factors("fp16x3", 90, activation, False) for activation in ("relu", "sine", "gelu", "softplus")]
        table += [factors("fp16", c, a, False) for c in (90, 80) for a in ("sine", "gelu")]
        table += [factors("fp16", 80, a, True) for a in ("identity", "relu", "sine")]
        table += [step(STEP[3], "fp64", 80, 256)]
        return [*table, factors("tf32x3", 90, "sine", True), factors("fp64", 80, "finer", True)]
    table = pivots + [gram(f, c, s) for c in (90, 80) for f in formats for s in (True, False)]
    table += [gram(f, c, True, aligned=False) for c in (90, 80) for f in formats]
    table += aligned_candidates((True, False)) + product_candidates()
    table += [reduction("gram_norm", f, c, symmetric=s) for c in (90, 80) for f in formats for s in (True, False)]
    table += [reduction("gram_product", f, c) for c in (90, 80) for f in formats]
    table += jacobian_entries(gates) + fused_linear_entries(gates) + step_entries(gates) + norm_entries(gates)
    table += tangent_entries(gates)
    table += [gram(f, c, False, aligned=False) for c in (90, 80) for f in formats]
    return table + [
        factors(f, c, a, full) for c in (90, 80) for f in formats for a in ACTIVATIONS for full in (False, True)
    ]


def is_promoted(entry: Entry) -> bool:
    """Return whether a kernel's bound leaves no room for truncation over long sums: that of training in fp16 does."""
    products = ("jacobian_product", "jacobian_transposed_product", "fused_linear")
    return entry.kernel in products + (STEP if entry.format == "tf32x3" else ()) and entry.format != "fp64"


def measure(entry: Entry) -> dict[str, Any]:
    """Compile one entry; return its title, resources and what is wrong with it."""
    from inrfast.kernels import ahead_of_time

    options = dict(entry.options)
    build = _gram if entry.kernel.startswith("gram") else _factors
    build = _jacobian if entry.kernel.startswith("jacobian") else build
    build = _tangent if entry.kernel in TANGENT else build
    build = _fused_linear if entry.kernel in FUSED_LINEAR else build
    build = _step if entry.kernel in STEP else build
    build = _norm if entry.kernel in NORMS else build
    build = _pivots if entry.kernel == PIVOTS else build
    with in_place(entry):
        kernel, types, constants, warps, stages, tables, limit, *most = build(entry, options)
    small = (*SMALL, "rows") if entry.kernel in NORMS else SMALL
    resources = (entry.capability, warps, stages, tables, small, *most)
    found = ahead_of_time.compile_kernel(kernel, types, constants, *resources)
    tensor = sum(found.instructions[name] for name in ("HGMMA", "HMMA", "DMMA"))
    # A weight gradient has two warp groups of 64 rows each: narrower layers take the older instruction.
    narrow = entry.kernel == "mlp_weight_gradients" and options["width"] < 64
    hopper = entry.kernel.startswith("gram") or (entry.kernel in STEP[:3] and entry.format == "fp16" and not narrow)
    wanted = "HGMMA" if hopper and entry.capability >= 90 and entry.format != "fp64" else None
    faults = [
        fault
        for fault, there in {
            f"{found.stack} bytes of stack": found.stack > 0,
            f"{found.shared} bytes of shared memory, not {limit}": found.shared > limit,
            "no tensor-core instruction": tensor == 0
            and not (
                entry.kernel in ("jacobian_rows", "mlp_update", "layer_errors", *NORMS)
                or options.get("bias_alone")
                or options.get("few")
            ),
            f"no {wanted}": wanted is not None and found.instructions[wanted] == 0,
            "sums stay in the tensor cores": found.instructions["FFMA"] < _promotions(entry),
            f"32-bit offsets: {found.narrow_offsets}": bool(found.narrow_offsets),
            f"Triton before 3.8 forgets what loops carry: {found.forgotten}": bool(found.forgotten),
            f"{len(found.chains)} sums within the tensor cores": bool(found.chains) and is_promoted(entry),
        }.items()
        if there
    ]
    return {
        "title": entry.title,
        "registers": found.registers,
        "warps": warps,
        "stack": found.stack,
        "shared": found.shared,
        "instructions": found.instructions,
        "faults": faults,
    }


def _promotions(entry: Entry) -> int:
    """Return the fewest fused multiply-adds a thread of a kernel whose loops add a tile after every slab.

    One more for the narrow columns: a compiler that made one chain of the sums again would leave fewer.
    """
    from inrfast.kernels import formats

    if not entry.kernel.startswith("gram") or not formats.FORMATS[entry.format].promoted:
        return 0
    config, loops = gram_config(entry), 1 if entry.kernel == "gram_stream" else 3
    return (loops + 1) * config.block**2 // (32 * config.warps)


def gram_config(entry: Entry) -> Any:
    """Return the tiles of a Gram kernel's entry."""
    from inrfast.kernels import formats, tiles

    options = dict(entry.options)
    if "candidate" in options:
        return tiles.candidates("gram_aligned", entry.format, "large")[options["candidate"]]
    capability, product = divmod(entry.capability, 10), entry.kernel == "gram_product"
    return formats.config_for(entry.format, capability, SHARED[entry.capability], product)


def _gram(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    import triton.language as tl

    from inrfast.kernels import formats, gram, gram_reductions

    kernels = gram_reductions if entry.kernel in ("gram_norm", "gram_product") else gram
    layout = formats.FORMATS[entry.format]
    config, product = gram_config(entry), entry.kernel == "gram_product"
    wide = "*" + layout.accumulator
    slabs = f"tensordesc<{layout.dtype}[{config.block},{layout.slab}]>" if config.copy_engine else "*" + layout.dtype
    types = {"rows": slabs, "columns": slabs, "out": wide, "order": "*i32", "segments": "*i32", "values": wide}
    types |= {"places": "*i32", "vectors": wide} | ({"out": "*fp64"} if entry.kernel == "gram_norm" else {})
    types |= {f"{name}_{side}": wide for name in ("narrow", "scale") for side in ("rows", "columns")}
    sixteen = ":16" if options.get("unaligned") is False else ""
    types |= dict.fromkeys(("stride", "model_stride"), "i64" + sixteen) | dict.fromkeys(("n", "m"), "i32" + sixteen)
    types |= {"rows_padded": "i32:16", "columns_padded": "i32:16"}
    types |= dict.fromkeys(("slabs", "narrow", "narrow_layers", "layers", "tiles", "splits", "chunks", "models"), "i32")
    types |= {"one": "fp32"}
    constants = {
        "BLOCK": config.block,
        "SLAB": layout.slab,
        "PLANES": layout.planes,
        "PRECISION": layout.precision,
        "PROMOTED": layout.promoted,
        "ACCUMULATOR": tl.float64 if layout.accumulator == "fp64" else tl.float32,
        "STAGES": config.stages,
        "COPY_ENGINE": config.copy_engine,
    }
    if product:
        constants |= {
            "WIDTH": formats.product_width(config),
            "PRODUCT": formats.product_precision(entry.format),
        }
    else:
        constants |= {name.upper(): options[name] for name in ("symmetric",) if name in options}
    tables = ("order", "places", "segments", "values")
    return getattr(kernels, entry.kernel), types, constants, config.warps, config.stages, tables, config.shared


def _jacobian(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import rows as kernels

    kernel = getattr(kernels, entry.kernel)
    pointers = ("out", "partial", "features", "sensitivities", "parameters", "cotangents")
    counts = ("n", "outputs", "b", "a", "chunks", "blocks", "columns", "splits", "steps")
    types = {name: "i64" for name in kernel.arg_names if name.islower()}
    types |= dict.fromkeys(pointers, "*" + entry.format) | dict.fromkeys(counts, "i32")
    features, identity = not options.get("bias_alone"), bool(options.get("identity"))
    if entry.kernel == "jacobian_rows":
        constants = {
            "FEATURES": features,
            "IDENTITY": identity,
            "COLUMNS": kernels.COLUMNS[1],
            "POINTS": kernels.POINTS,
        }
        warps, stages, registers = kernels.ROW_WARPS, 3, None
    else:
        tile = kernels.tile_of(entry.kernel, entry.format)
        constants = kernels.constants(entry.format, tile, features, identity, True)
        warps, stages, registers = tile.warps, tile.stages, tile.registers
    if options.get("one_output"):
        constants["outputs"] = 1
    types = {name: types[name] for name in kernel.arg_names if name in types and name not in constants}
    return kernel, types, constants, warps, stages, (), kernels.SHARED, registers


def _tangent(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import tangent_product as kernels

    kernel, narrow = getattr(kernels, entry.kernel), bool(options.get("narrow"))
    if entry.kernel == "product":
        tile = kernels.tile_of("product")
        constants = kernels.product_constants(tile)
    else:
        tile = kernels.tile_of("transposed_product_narrow") if narrow else kernels.transposed_tile(options["units"])
        constants = kernels.transposed_constants(tile, narrow)
    types = dict.fromkeys((name for name in kernel.arg_names if name.islower()), "i32")
    types |= dict.fromkeys(("partial", "out", "slabs", "narrow", "parameters", "values"), "*fp64") | {"table": "*i64"}
    types |= {"padded": "i32:16", "size": "i32:16", "vectors": "i32" if entry.kernel == "product" else "*fp64"}
    types = {name: types[name] for name in kernel.arg_names if name in types and name not in constants}
    return kernel, types, constants, tile.warps, tile.stages, ("table", "values"), kernels.SHARED


def _pivots(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import pivots as kernels

    types = dict.fromkeys(("factor", "left", "block", "weights", "lots"), "*fp64")
    types |= dict.fromkeys(("kept", "order", "candidates"), "*i64") | dict.fromkeys(("count", "wanted"), "i32")
    return kernels.accept_pivots, types, kernels.constants(1e-8), kernels.WARPS, kernels.STAGES, (), kernels.SHARED


def _fused_linear(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import fused_linear as kernels

    kernel, pointer = getattr(kernels, entry.kernel), "*" + options["dtype"]
    errors = entry.kernel == "layer_errors"
    config = kernels.config_of("fused_linear" + "_few" * options["few"], entry.format)
    kept = {"identity": kernels.NOTHING, "relu": kernels.MASK, "tanh": kernels.RESULT, "softplus": kernels.RESULT}
    saved = kept.get(options["activation"], kernels.SLOPE).value
    if entry.kernel == "fused_linear" and saved == kernels.RESULT.value:
        saved = kernels.NOTHING.value
    constants = kernels.common(entry.format, config)
    constants |= {"ACTIVATION": options["activation"], "SAVED": saved}
    constants |= {"BIAS": True, "FEW": options["few"]}
    if errors:
        constants |= {"ROWS": kernels.ERROR_ROWS, "COLUMNS": kernels.ERROR_COLUMNS}
    types = {name: "i32:16" for name in kernel.arg_names if name.islower()}
    types |= dict.fromkeys(("x", "weight", "bias", "out", "gradient", "errors"), pointer)
    types |= {"saved": "*u8" if saved == kernels.MASK.value else pointer}
    types |= dict.fromkeys([name for name in kernel.arg_names if name.startswith(("omega", "second"))], "fp32")
    types |= {"sums": "*fp64" if entry.format == "fp64" else "*fp32"}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
    launch = (kernels.ERROR_WARPS, 1) if errors else (config.warps, config.stages)
    return kernel, types, constants, *launch, (), kernels.SHARED, None if errors else config.registers


def _step(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import fused_linear
    from inrfast.kernels import fused_mlp as kernels
    from inrfast.ops.fused_mlp import OPERANDS
    from inrfast.training.optimizers.adam import Adam

    kernel, width, large = getattr(kernels, entry.kernel), options["width"], entry.capability >= 90
    encoded, drawn = bool(options.get("encoded")), bool(options.get("drawn"))
    wide = "*fp64" if entry.format == "fp64" else "*fp32"
    operand = {"float16": "*fp16", "float32": "*fp32", "float64": "*fp64"}[str(OPERANDS[entry.format])[6:]]
    types = dict.fromkeys((name for name in kernel.arg_names if name.islower()), "i32")
    # Parameters begin at multiples of 16, and tiles have as many points.
    places = ("first_bias", "hidden_at", "hidden_pitch", "bias_at", "head", "head_bias")
    types |= dict.fromkeys(("capacity", "parameter_model", *places), "i32:16")
    numbers = (
        "target",
        "weight",
        "numbers",
        "parameters",
        "totals",
        "factors",
        "losses",
        "partials",
        "gradients",
        "means",
    )
    types |= dict.fromkeys((*numbers, "squares", "rates", "moments", "corrections"), wide)
    types |= dict.fromkeys(("operands", "features", "slopes", "errors", "head_errors"), operand)
    types |= {"inputs": operand if encoded else wide, "activation_numbers": "*fp32", "scales": "*fp32", "order": "*i64"}
    types |= {"masks": "*u8", "trained": "*u8", "table": "*i64"}
    constants: dict[str, Any] = {"width": width, "depth": 256 if encoded else 2, "outputs": 3}
    constants |= {"GRADIENT": True, "BIAS": True, "COORDINATES": not encoded, "ENCODED": encoded, "GATHERED": drawn}
    constants |= {"WEIGHTED": False, "SCALED": entry.format == "fp16"}
    # Between norms: from features to statistics, and back from errors through a norm.
    alone = not options.get("normed")
    constants |= dict.fromkeys(("FIRST", "HEAD", "SUMS"), alone) | {"ERRORS": True, "NORMED": not alone}
    if entry.kernel == "mlp_update":
        constants |= kernels.update_constants(entry.format) | {"REDUCE": True, "COPY": entry.format == "fp16"}
        adam = Adam.kernel
        constants |= {"OPTIMIZER": adam.name, "BETA1": adam.beta1, "BETA2": adam.beta2, "EPSILON": adam.epsilon}
        warps, stages, registers, limit = constants["num_warps"], 3, None, 48 * 1024
    else:
        activation = options.get("activation", "relu")
        forward, backward, on_chip = kernels.passes_configs(entry.format, width, activation, large)
        config = backward if entry.kernel == "mlp_backward" else forward
        if entry.kernel == "mlp_weight_gradients":
            config = kernels.weight_gradients_config(entry.format, width, encoded)
        else:
            constants |= {"ACTIVATION": activation, "ON_CHIP": on_chip}
            constants |= {"LOSS": options.get("loss", "mse")}
        constants |= fused_linear.common(entry.format, config)
        warps, stages, registers = config.warps, config.stages, config.registers
        limit = kernels.LARGE_SHARED if large else kernels.SMALL_SHARED
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names and name not in constants}
    tables = ("activation_numbers", "scales", "losses", "rates", "table", "factors")
    return kernel, types, constants, warps, stages, tables, limit, registers


def _norm(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import fused_mlp as kernels

    kernel = getattr(kernels, entry.kernel)
    wide = "*fp64" if entry.format == "fp64" else "*fp32"
    types = dict.fromkeys((name for name in kernel.arg_names if name.islower()), "i32")
    pointers = ("parameters", "folded", "moments", "maps", "means", "variances", "partials", "corrections")
    types |= dict.fromkeys(pointers, wide) | {"operands": "*fp16" if entry.format == "fp16" else wide, "counts": "*i64"}
    forward, _, _ = kernels.passes_configs(entry.format, options["width"], "relu", entry.capability >= 90)
    constants = {"width": options["width"], "RUNNING": options["running"], "EPSILON": 1e-5, "MOMENTUM": 0.1}
    maps, _, backward = (entry.kernel == name for name in NORMS)
    constants |= {
        "COPY": entry.format == "fp16",
        "ROWS": forward.rows if maps else kernels.NORM_ROWS,
        "COLUMNS": kernels.SLOPE_COLUMNS if backward else kernels.NORM_COLUMNS,
        "TILES": kernels.NORM_PARTS,
        "PARTS": kernels.NORM_PARTS,
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for name, kind in types.items() if name not in constants}
    return kernel, types, constants, 4, 3, (), 48 * 1024, kernels.SLOPE_REGISTERS if backward else None


def _factors(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import factors, formats

    layout = formats.FORMATS[entry.format]
    activation = options["activation"]
    types = {"table": "*i64", "slabs": "*" + layout.dtype, "scale": "*" + layout.accumulator}
    types |= dict.fromkeys(("inputs", "parameters", "constants", "scratch"), "*fp64")
    types |= dict.fromkeys(("n", "slab_count", "depth", "hidden", "head", "outputs", "first_output"), "i32")
    types |= {"rows": "i32:16", "width": "i32:16", "floor": "fp32", "input_scale": "fp32"}
    types |= {"input_model": "i64", "parameter_model": "i64"}
    constants = {
        "ACTIVATION": activation,
        "SLAB": layout.slab,
        "PLANES": layout.planes,
        "SCALED": layout.dtype == "fp16",
        "CORRECTED": layout.corrected,
        "FULL": options["full"],
        "POINTS": factors.POINTS,
        "BLOCK": factors.block_for(entry.format, activation),
        "DEPTH": factors.DEPTH,
    }
    tables, registers = ("table", "constants"), factors.REGISTERS
    return factors.mlp_slabs, types, constants, factors.WARPS, factors.STAGES, tables, 48 * 1024, registers


def measure_all(table: Sequence[Entry], processes: int | None = None) -> list[dict[str, Any]]:
    """Compile entries side by side, each process its own share; interpreted kernels would have no machine code."""
    os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(measure, table))


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    import triton

    lines = [
        "# What the kernels need of a GPU",
        "",
        f"Compiled ahead of time by Triton {triton.__version__}; `make kernel-report` writes this page. Where no width",
        "appears the kernel takes it at run time, and one machine code serves all; the training step has one a width.",
        "Stack is local memory a thread (spills); HGMMA, HMMA and DMMA are tensor-core instructions, UTMALDG a copy",
        "engine's load.",
        "",
        "| kernel | registers | warps | stack | shared KiB | HGMMA | HMMA | DMMA | UTMALDG | faults |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        counts = row["instructions"]
        numbers = [row["registers"], row["warps"], row["stack"], f"{row['shared'] / 1024:.1f}"]
        numbers += [counts[name] for name in ("HGMMA", "HMMA", "DMMA", "UTMALDG")]
        lines.append(f"| {row['title']} | {' | '.join(map(str, numbers))} | {'; '.join(row['faults']) or 'none'} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, write the report or print JSON, and return 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gates", action="store_true", help="compile the gates' table alone; print JSON, write nothing"
    )
    parser.add_argument("--processes", type=int, help="how many compile at a time; default: one for every core")
    chosen = parser.parse_args(arguments)
    rows = measure_all(entries(chosen.gates), chosen.processes)
    if chosen.gates:
        print(json.dumps(rows))
        for row in rows:
            if row["faults"]:
                print(f"{row['title']}: {'; '.join(row['faults'])}", file=sys.stderr)
    else:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(render(rows))
        print(f"wrote {REPORT}, {len(rows)} kernels, {sum(bool(row['faults']) for row in rows)} with faults")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
