"""Compare the numerical ranks of two starts of one network, at several tolerances."""

import inrfast as inr

coords = inr.grid((64, 64))
starts = {
    "torch default": inr.INR(2, 1, width=128, hidden_layers=2, seed=0),
    "rank-expanding": inr.INR(2, 1, width=128, hidden_layers=2, init="rank_expanding", seed=0),
}
for name, net in starts.items():
    report = inr.diagnose(net, coords, ntk_points=1024, jacobian_pixels=16)
    assert report.kernel is not None  # as it would be with ntk_points=0
    inlet = next(found for found in report.representations if found.name == "layers.0")
    print(f"{name}, first layer, full {len(coords):,}-point grid, and NTK on {report.kernel.label}:")
    for rtol, features, kernel in zip(report.rtols, inlet.spectrum.ranks, report.kernel.whole.ranks, strict=True):
        print(f"  above {rtol:g}: rank {features} of {inlet.spectrum.columns}; NTK {kernel}")
