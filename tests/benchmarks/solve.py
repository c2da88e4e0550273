"""Measure MEMIT's solve: ``OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/solve.py``.

CPU time of ``torch.linalg.solve(weight * C + K^T K, K^T)`` in float64, as the published program has it (it solves for
the keys; the product with the residuals is left out here), over that of `memit_update`, alternating in one process;
the median of the ratios. "Cached": the Cholesky factor of C is at hand, as it is in `memit_edit` for every layer but
in its first use; "cold": it is not, and both forms are tried. Beside it how far the two changes are apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tl_edit import memit_update

MUST, AIM = {10: 40.0, 100: 12.0, 1000: 2.5}, {10: 58.0, 100: 16.0, 1000: 3.0}
GATE = 1e-8
WEIGHT = 15000.0


def problem(d_mlp: int, n: int, d_model: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A moment of condition number 1e7, keys and residuals."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(d_mlp, d_mlp, dtype=torch.float64))[0]
    root = rotation * torch.logspace(-3.5, 0, d_mlp, dtype=torch.float64)
    noise = torch.randn(n, d_mlp, dtype=torch.float64)
    return root @ root.T, noise @ root.T, torch.randn(n, d_model, dtype=torch.float64)


def seconds(run: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Print a row for each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-mlp", type=int, default=3072)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--n", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forms", action="store_true", help="both forms with the factor cached: where they cross")
    args = parser.parse_args()
    print(f"d_mlp {args.d_mlp}, d_model {args.d_model}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    names = ["dual", "primal"] if args.forms else ["cached", "cold"]
    print(f"| requests | {' | '.join(names)} | must, aim | relative difference |\n|---|{'---|' * len(names)}---|---|")
    for n in args.n:
        C, K, R = problem(args.d_mlp, n, args.d_model)
        factor = torch.linalg.cholesky(C)

        def published(C: torch.Tensor = C, K: torch.Tensor = K) -> torch.Tensor:
            return torch.linalg.solve(WEIGHT * C + K.T @ K, K.T)

        def ours(form: str = "auto", known: torch.Tensor | None = factor, C=C, K=K, R=R):
            return memit_update(C, K, R, weight=WEIGHT, factor=known, form=form)

        runs = {
            "cached": ours,
            "cold": lambda ours=ours: ours(known=None),
            "dual": lambda ours=ours: ours("dual"),
            "primal": lambda ours=ours: ours("primal"),
        }
        ratios: dict[str, list[float]] = {name: [] for name in names}
        ours()
        for _ in range(args.repeats):
            base = seconds(published)
            for name in names:
                ratios[name].append(base / seconds(runs[name]))
        expected = published() @ R
        apart = max(float((runs[name]().matrix - expected).norm() / expected.norm()) for name in names)
        cells = " | ".join(f"{statistics.median(ratios[name]):.1f}" for name in names)
        goal = f"{MUST[n]:g}, {AIM[n]:g}" if n in MUST else ""
        verdict = "" if apart < GATE else " (too far)"
        print(f"| {n} | {cells} | {goal} | {apart:.1e}{verdict} |", flush=True)


if __name__ == "__main__":
    main()
