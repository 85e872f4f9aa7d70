"""The rank of a tangent kernel on a full grid, by one process or by several that share its rows.

python examples/shared_spectrum.py [side of the grid]
torchrun --nproc-per-node=2 examples/shared_spectrum.py [side of the grid]
"""

import sys

import torch.distributed as dist

import inrfast as inr
from inrfast.tangent.kernel import TangentKernel


def main() -> None:
    """Print the rank at five tolerances, from the first process alone."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    net, coords = inr.INR(2, 1, width=64, init="rank_expanding", seed=0), inr.grid((side, side))
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")  # "nccl" on GPUs, with net and coords on the process's own
        K: TangentKernel = inr.distributed.ntk(net, coords)
        first = dist.get_rank() == 0
    else:
        K, first = inr.ntk(net, coords), True
    s = K.spectrum(rtol=1e-6)
    if first:
        print(f"{K}\n{s.method}: {s.note}")
        for rtol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            print(f"rank {s.rank(rtol)} at lambda/lambda_1 > {rtol:g}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
