"""The gates: every kernel compiled for GPUs that are not there must keep within their resources."""

import re

from inrfast.kernels.ahead_of_time import _chains, _forgotten, _narrow_offsets
from inrfast.kernels.tiles import SMALLEST_SHARED


def test_no_kernel_has_a_fault(compiled_kernels):
    """No spill, shared memory as configured, tensor cores in use (wgmma on Hopper), 64-bit offsets."""
    assert [f"{row['title']}: {row['faults']}" for row in compiled_kernels if row["faults"]] == []
    assert len(compiled_kernels) >= 30


def test_kernels_use_what_they_are_written_for(compiled_kernels):
    by_title = {row["title"]: row["instructions"] for row in compiled_kernels}
    for title, counts in by_title.items():
        hopper, fp64 = "sm_90" in title, "fp64" in title
        # Rows, errors and norms multiply nothing but two numbers an entry, a few columns are summed by multiply-adds.
        if title.startswith(("jacobian_rows", "layer_errors", "mlp_update", "mlp_norm")) or title.endswith("few"):
            continue
        if title.startswith("mlp_slabs") or fp64:
            assert counts["DMMA"] > 0
        else:
            assert counts["HGMMA" if hopper else "HMMA"] > 0
        if title.startswith("gram") and hopper:
            assert counts["UTMALDG"] > 0


def test_small_configurations_fit_small_gpus(compiled_kernels):
    assert all(row["shared"] <= SMALLEST_SHARED for row in compiled_kernels if "sm_80" in row["title"])


def test_offsets_that_could_overflow_are_found():
    """The proof of 64-bit offsets can fail: a product of run-time numbers in 32 bits is reported, ranges are not."""
    code = """
      %c = arith.constant dense<4> : tensor<8xi32> loc(#loc)
      %range = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32> loc(#loc)
      %scaled = arith.muli %range, %c : tensor<8xi32> loc(#loc)
      %n_0 = tt.splat %n : i32 -> tensor<8xi32> loc(#loc)
      %bad = arith.muli %range, %n_0 : tensor<8xi32> loc(#loc)
      %wide = arith.extsi %bad : tensor<8xi32> to tensor<8xi64> loc(#loc)
      %p = tt.splat %data : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>> loc(#loc)
      %1 = tt.addptr %p, %scaled : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      %2 = tt.addptr %p, %wide : tensor<8x!tt.ptr<f32>>, tensor<8xi64> loc(#loc)
      %3 = tt.addptr %p, %bad : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      %4 = tt.addptr %data, %n : !tt.ptr<f32>, i32 loc(#loc)
      %5 = tt.addptr %data, %m : !tt.ptr<f32>, i64 loc(#loc)
      %6 = tt.addptr %order, %n : !tt.ptr<i32>, i32 loc(#loc)
    """
    found = [re.match(r"%(\d)", line)[1] for line in _narrow_offsets(code, ("order",))]
    assert found == ["3", "4"]


def test_offsets_are_bounded_by_what_they_are_made_of():
    """Of arguments that are small by contract two may be multiplied, three may not; loops end where they end.

    A name that a later region uses for something else keeps its meaning before.
    """
    code = """
      %c = arith.constant dense<16> : tensor<8xi32> loc(#loc)
      %width_0 = tt.splat %width : i32 -> tensor<8xi32> loc(#loc)
      %square = arith.muli %width_0, %width_0 : tensor<8xi32> loc(#loc)
      %cube = arith.muli %square, %width_0 : tensor<8xi32> loc(#loc)
      %half = arith.divsi %cube, %c : tensor<8xi32> loc(#loc)
      %p = tt.splat %data : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>> loc(#loc)
      %1 = tt.addptr %p, %square : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      %2 = tt.addptr %p, %cube : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      %3 = tt.addptr %p, %half : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      scf.for %k = %c0 to %width step %c1  : i32 {
        %x = tt.splat %k : i32 -> tensor<8xi32> loc(#loc)
        %4 = tt.addptr %p, %x : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      }
      scf.for %k = %c0 to %n step %c1  : i32 {
        %x = tt.splat %k : i32 -> tensor<8xi32> loc(#loc)
        %5 = tt.addptr %p, %x : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
      }
      %6 = tt.addptr %p, %unknown : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#loc)
    """
    found = [re.match(r"%(\d)", line)[1] for line in _narrow_offsets(code, (), ("width",))]
    assert found == ["2", "3", "5", "6"]


def test_sums_within_the_tensor_cores_are_found():
    """A product that adds to what its loop carries is a chain; one from zero, or after another product, is none."""
    code = """
      %t:2 = scf.for %i = %c0 to %n step %c1 iter_args(%arg1 = %zero, %arg2 = %c0) -> (tensor<64x64xf32>, i32)  : i32 {
        %1 = tt.dot %a, %b, %arg1, inputPrecision = tf32 : tensor<64x32xf32>
        %2 = ttng.warp_group_dot %a#0, %b, %arg1 {isAsync = true} : tensor<64x32xf32>
        %3 = tt.dot %a, %b, %zero : tensor<64x32xf32>
        %4 = ttng.warp_group_dot %a, %b, %3#0 {isAsync = true} : tensor<64x32xf32>
        %5 = arith.addf %arg1, %4 : tensor<64x64xf32>
    """
    assert [line[1] for line in _chains(code)] == ["1", "2"]


def test_loops_that_older_tritons_forget_are_found():
    """A carried number that bounds an inner loop and does nothing else; one that is read, stored or kept is none."""

    def loop(after="", inside="", start="%place"):
        return f"""
      %t:2 = scf.for %i = %c0 to %n step %c1 iter_args(%sum = %zero, %place = %c0) -> (f32, i32)  : i32 {{
        %end_0 = tt.addptr %ends, %i : !tt.ptr<i32>, i32 loc(#loc)
        %end = tt.load %end_0 : !tt.ptr<i32> loc(#loc)
        %next = arith.addi %place, %c1 : i32 loc(#loc)
        {inside}
        %sum_1 = scf.for %k = {start} to %end step %c1 iter_args(%sum_2 = %sum) -> (f32)  : i32 {{
          %p = tt.addptr %data, %k : !tt.ptr<f32>, i32 loc(#loc)
          %x = tt.load %p : !tt.ptr<f32> loc(#loc)
          %sum_3 = arith.addf %sum_2, %x : f32 loc(#loc)
          scf.yield %sum_3 : f32 loc(#loc)
        }} loc(#loc)
        scf.yield %sum_1, %end : f32, i32 loc(#loc)
      }} loc(#loc)
      tt.store %out, %t#0 : !tt.ptr<f32> loc(#loc)
      {after}
    """

    test = "%more = arith.cmpi slt, %place, %n : i32 loc(#loc)"
    branch = "scf.if %more {\n %end_4 = arith.addi %c0, %c0 : i32\n BODY\n } else {\n BODY\n } loc(#loc)"
    for forgotten in (
        loop(),
        loop(start="%next"),
        loop(start="%c0").replace("to %end step", "to %place step"),
        loop(inside=f"{test}\n{branch.replace('BODY', '')}"),
        loop() + loop(after="tt.store %ends, %t#1 : !tt.ptr<i32> loc(#loc)"),  # names of another loop
    ):
        (line,) = _forgotten(forgotten)
        assert "%place = %c0" in line
    for kept in (
        loop(start="%c0"),
        loop(after="tt.store %ends, %t#1 : !tt.ptr<i32> loc(#loc)"),
        loop(inside="tt.store %ends, %place : !tt.ptr<i32> loc(#loc)"),
        loop(inside=f"{test}\n{branch.replace('BODY', 'tt.store %ends, %i : !tt.ptr<i32>')}"),
        loop().replace("tt.addptr %data, %k", "tt.addptr %data, %place"),
        loop().replace("yield %sum_1, %end", "yield %sum_1, %n"),
    ):
        assert _forgotten(kept) == ()
