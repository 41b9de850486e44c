"""How fast the parameters of a mixture of two regressions are found under a linear and under an activation gate, both
with a temperature (Nguyen, Akbarian and Ho, arXiv 2401.13875).

    python benchmarks/temperature_gate.py [--replicates 20] [--sizes 316 1000 3162 10000]

y given x is normal around a_i x + b_i with variance nu_i for expert i, drawn with the weights of the gate
softmax((activation(beta1 x) + beta0) / tau, activation(0) / tau). Maximum likelihood in float64 starts near the truth.
Printed are median errors over replicates and the slope of their logarithm over that of n: -1/2 is what a regular
parameter has. Under the linear gate (beta1, beta0, tau) times any number is the same gate, so that tau and beta1 stay
where they started, while their ratio, the experts and the gate itself are found as fast as ever.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.moe.gates.activation import ACTIVATIONS

NAMES = ("beta1", "beta0", "tau", "a1", "a2", "b1", "b2", "nu1", "nu2")
POSITIVE = torch.tensor([name in ("tau", "nu1", "nu2") for name in NAMES])
HALF = 3.0  # x is uniform on (-HALF, HALF)


@dataclass(frozen=True)
class Arm:
    """A gate by its activation, and the true slope of its score."""

    activation: str
    beta1: float

    @property
    def truth(self) -> Tensor:
        """[9] the true parameters, in the order of NAMES."""
        return torch.tensor([self.beta1, 0.5, 1.0, 2.0, -1.0, 0.0, 1.0, 0.2, 0.2], dtype=torch.float64)

    def log_gate(self, theta: Tensor, x: Tensor) -> Tensor:
        """x [n] -> [n, 2] logarithms of the experts' weights."""
        activation = ACTIVATIONS[self.activation]
        scores = torch.stack([activation(theta[0] * x) + theta[1], activation(0 * x)], dim=-1)
        return torch.log_softmax(scores / theta[2], dim=-1)

    def log_density(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x), [n]."""
        mean = x[..., None] * theta[3:5] + theta[5:7]
        normal = -0.5 * ((y[..., None] - mean) ** 2 / theta[7:] + torch.log(2 * math.pi * theta[7:]))
        return torch.logsumexp(self.log_gate(theta, x) + normal, dim=-1)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A sample of n pairs."""
        x = HALF * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        first = torch.rand(n, generator=generator, dtype=torch.float64) < self.log_gate(self.truth, x)[:, 0].exp()
        t, noise = self.truth, torch.randn(n, generator=generator, dtype=torch.float64)
        one, two = t[3] * x + t[5] + t[7].sqrt() * noise, t[4] * x + t[6] + t[8].sqrt() * noise
        return x, torch.where(first, one, two)

    def fit(self, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """The maximum of the likelihood next to `start`; temperature and variances move on a logarithmic scale."""
        free = torch.where(POSITIVE, start.log(), start).requires_grad_()
        search = torch.optim.LBFGS(
            [free], max_iter=400, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            search.zero_grad()
            value = -self.log_density(natural(free), x, y).mean()
            value.backward()
            return value

        search.step(loss)
        return natural(free).detach()


def natural(free: Tensor) -> Tensor:
    """Parameters as NAMES says from those that are searched over."""
    return torch.where(POSITIVE, torch.where(POSITIVE, free, 0).exp(), free)


def fisher(arm: Arm, points: int = 80) -> Tensor:
    """[9, 9] the Fisher information at the truth, by quadrature over x and y."""
    xs, wx = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(points))
    ys, wy = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(5 * points))
    x, y = (v.flatten() for v in torch.meshgrid(HALF * xs, 12 * ys, indexing="ij"))
    weight = torch.outer(wx / 2, 12 * wy).flatten()
    score = torch.func.vmap(torch.func.grad(arm.log_density), in_dims=(None, 0, 0))(arm.truth, x, y)
    density = arm.log_density(arm.truth, x, y).exp()
    return torch.einsum("n,ni,nj->ij", weight * density, score, score)


def errors(arm: Arm, n: int, generator: torch.Generator, noise: float = 0.1) -> dict[str, float]:
    """What one sample of n pairs leaves of the start's noise, and twice the gain in log-likelihood over the truth."""
    x, y = arm.draw(n, generator)
    start = arm.truth + noise * torch.randn(9, generator=generator, dtype=torch.float64)
    start = torch.where(POSITIVE, start.clamp(min=0.05), start)
    found, truth = arm.fit(x, y, start), arm.truth
    gap, grid = (found - truth).abs(), torch.linspace(-HALF, HALF, 201, dtype=torch.float64)
    gates = [arm.log_gate(theta, grid)[:, 0].exp() for theta in (found, truth)]
    gain = arm.log_density(found, x, y).sum() - arm.log_density(truth, x, y).sum()
    return {
        **{name: float(gap[i]) for i, name in enumerate(NAMES[:3])},
        "beta1 / tau": float((found[0] / found[2] - truth[0] / truth[2]).abs()),
        "beta0 / tau": float((found[1] / found[2] - truth[1] / truth[2]).abs()),
        "experts": float(gap[3:].mean()),
        "gate": float((gates[0] - gates[1]).abs().mean()),
        "2 log ratio": float(2 * gain),
    }


def study(arm: Arm, sizes: Sequence[int], replicates: int, seed: int = 0) -> dict[str, list[float]]:
    """Median errors, one for each size."""
    table: dict[str, list[float]] = {}
    for n in sizes:
        runs = [errors(arm, n, torch.Generator().manual_seed(seed + 1000 * r + n)) for r in range(replicates)]
        for name in runs[0]:
            table.setdefault(name, []).append(statistics.median(run[name] for run in runs))
    return table


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of log value over log n."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-300)), 1)[0])


def report(title: str, sizes: Sequence[int], table: Mapping[str, Sequence[float]]) -> str:
    """A table in Markdown."""
    lines = [f"### {title}", "", "| n | " + " | ".join(map(str, sizes)) + " | slope |"]
    lines.append("| --- |" + " --- |" * (len(sizes) + 1))
    for name, values in table.items():
        last = "" if name == "2 log ratio" else f"{slope(sizes, values):.2f}"
        lines.append(f"| {name} | " + " | ".join(f"{v:.3g}" for v in values) + f" | {last} |")
    return "\n".join(lines)


ARMS = {"activation gate (tanh)": Arm("tanh", 3.0), "linear gate": Arm("none", 1.5)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables and the condition of the Fisher information."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[316, 1000, 3162, 10000])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for title, arm in ARMS.items():
        eigenvalues = torch.linalg.eigvalsh(fisher(arm))
        print(report(title, given.sizes, study(arm, given.sizes, given.replicates)))
        print(f"\nleast over greatest eigenvalue of the Fisher information: {eigenvalues[0] / eigenvalues[-1]:.1e}\n")


if __name__ == "__main__":
    main()
