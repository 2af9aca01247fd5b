"""Seeded faults: each breaks one line of a copy of the room, and the named test must fail.

``python tests/certify/faults.py [NAME ...]`` tries all of them, or those named, some five seconds each; the exit status
is the number that nobody caught. A fault whose line is no longer there is not caught: it has to follow the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """One line of ``fpcheck/certify/<file>`` made wrong, and who must notice."""

    name: str
    file: str
    right: str
    wrong: str
    test: str


FAULTS = (
    Fault(
        "RMSNorm's curvature 1 % too small",
        "nodes.py",
        "e = second * move / (root * least)",
        "e = 0.99 * second * move / (root * least)",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[rms, d = 2]",
    ),
    Fault(
        "RMSNorm's third derivative 5 % too small",
        "nodes.py",
        "c.RMS_THIRD * move**2",
        "0.95 * c.RMS_THIRD * move**2",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[rms, d = 2]",
    ),
    Fault(
        "SiLU's third derivative 1 % too small",
        "nodes.py",
        "c.SILU_SECOND, c.SILU_THIRD",
        "c.SILU_SECOND, 0.99 * c.SILU_THIRD",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[entry, silu]",
    ),
    Fault(
        "softmax bounded from below only",
        "nodes.py",
        "delta = p * torch.maximum(above, below)",
        "delta = p * below",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[softmax, 2 keys]",
    ),
    Fault(
        "movement of values forgotten in the scores' bound",
        "nodes.py",
        "on_scores = delta * w + (p + delta) * (nu + out)",
        "on_scores = delta * w + (p + delta) * nu",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[softmax, 2 keys]",
    ),
    Fault(
        "a product's remainder halved",
        "nodes.py",
        "self._scale * a[0][self._row] * a[1][self._column]",
        "0.5 * self._scale * a[0][self._row] * a[1][self._column]",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[scores]",
    ),
    Fault(
        "mask ignored in the node",
        "nodes.py",
        "self._present = (s.mid != -math.inf)",
        "self._present = (s.mid == s.mid)",
        "test_nodes.py::test_masked_keys_count_for_nothing_and_others_fully",
    ),
    Fault(
        "centring by equal weights",
        "nodes.py",
        "return self._p if group == 0 else None",
        "return Ball.exact(torch.full_like(self._p.mid, 1 / self._keys)) if group == 0 else None",
        "test_nodes.py::test_centring_weights_are_the_softmax",
    ),
    Fault(
        "sign of the domain test of a norm",
        "nodes.py",
        "if not bool((least > 0).all()):",
        "if bool((least < -1).any()):",
        "test_nodes.py::test_a_norm_refuses_movements_that_reach_its_zero",
    ),
    Fault(
        "rounding of a product of balls missing",
        "balls.py",
        "rad = self.mid.abs() * b.rad + self.rad * (b.mid.abs() + b.rad) + U * mid.abs() + TINY",
        "rad = self.mid.abs() * b.rad + self.rad * (b.mid.abs() + b.rad)",
        "test_balls.py::test_sums_differences_products_contain_the_exact_ones",
    ),
    Fault(
        "rounding of a tangent's product missing",
        "tangents.py",
        "return _total(_product(gamma(roundings), _frobenius(mid)), _underflow(mid, roundings))",
        "return _underflow(mid, roundings)",
        "test_tangents.py::test_rounding_alone_is_covered",
    ),
    Fault(
        "radius of the factor not propagated",
        "tangents.py",
        "_product(_frobenius(t.mid), spread) if spread else 0.0",
        "0.0",
        "test_tangents.py::test_products_with_numbers",
    ),
    Fault(
        "root of the number of terms forgotten in a sum",
        "tangents.py",
        "return self._through(mid, root_up(k), _total(rounding, _underflow(mid, k)))",
        "return self._through(mid, 1.0, _total(rounding, _underflow(mid, k)))",
        "test_tangents.py::test_an_even_error_is_just_covered[sum]",
    ),
    Fault(
        "softmax's gain halved",
        "operators.py",
        "return _with_gain(t, 0.5, apply)  # Theorem S1",
        "return _with_gain(t, 0.25, apply)",
        "test_tangents.py::test_the_gain_of_softmax_is_attained",
    ),
    Fault(
        "transpose left out in a matrix product's cotangent",
        "operators.py",
        "return _left_product(g, b.mT), _right_product(a.mT, g)",
        "return _left_product(g, b.mT), _right_product(a, g)",
        "test_enclosure.py::test_every_operator_against_torch[softmax of mask]",
    ),
    Fault(
        "mean taken for a sum in a cotangent",
        "operators.py",
        "spread * (Ball.exact(torch.tensor(float(count), dtype=torch.float64)).reciprocal())",
        "spread * 1.0",
        "test_enclosure.py::test_every_operator_against_torch[sums]",
    ),
    Fault(
        "mask upside down",
        "operators.py",
        "[p if m else q for m, p, q in entries]",
        "[q if m else p for m, p, q in entries]",
        "test_enclosure.py::test_every_operator_against_torch[choice]",
    ),
    Fault(
        "layer norm's Jacobian without the mean",
        "operators.py",
        "held = t - t.mean(dim + 1, keepdim=True) if name ==",
        "held = t if name ==",
        "test_enclosure.py::test_every_operator_against_torch[layer norm]",
    ),
    Fault(
        "wrong slope of GELU",
        "functions.py",
        "return (1 + (x / arb(2).sqrt()).erf()) / 2 + x * _normal(x)",
        "return (1 + (x / arb(2).sqrt()).erf()) / 2 + x * x * _normal(x)",
        "test_enclosure.py::test_functions_over_their_range[gelu]",
    ),
    Fault(
        "GELU's tanh form with a coefficient off in the last digit",
        "functions.py",
        "_CUBIC = fmpq(44715, 1000000)",
        "_CUBIC = fmpq(44716, 1000000)",
        "test_enclosure.py::test_functions_over_their_range[gelu_tanh]",
    ),
    Fault(
        "a factor of eps lost in recognising a norm",
        "fusion.py",
        'or op.kwargs.get("alpha", 1) != 1:',
        "or False:",
        "test_enclosure.py::test_every_operator_against_torch[rms norm, alpha]",
    ),
    Fault(
        "writing through a view followed as if it were nothing",
        "trace.py",
        "if target._schema.is_mutable:",
        "if False:",
        "test_enclosure.py::test_what_has_no_rule_is_refused_by_name_and_line[writing through a view]",
    ),
    Fault(
        "cotangents of a tensor used twice not added",
        "enclosure.py",
        "return part if held is None else held + part",
        "return part",
        "test_enclosure.py::test_every_operator_against_torch[encoder, pre-norm]",
    ),
    Fault(
        "local errors without the reach of later operators",
        "enclosure.py",
        "total = up(total + up(own * size)) if own and size else total",
        "total = up(total + 1e-3 * up(own * size)) if own and size else total",
        "test_enclosure.py::test_the_error_of_the_jacobian_follows_a_steep_path",
    ),
    Fault(
        "condition of the metric dropped",
        "metric.py",
        "up(up(self.norm * error) * self.inverse_norm)",
        "error",
        "test_curvature.py::test_the_error_of_a_jacobian_counts_with_the_condition_of_the_metric",
    ),
    Fault(
        "defect of the inverse dropped in a norm",
        "metric.py",
        "inside / down(1 - self.defect)",
        "inside",
        "test_curvature.py::test_a_wrong_inverse_is_paid_for_or_refused",
    ),
    Fault(
        "defect of the inverse dropped in the tangents",
        "curvature.py",
        "lacking = up(size * metric.defect) / (1 - metric.defect) * ROOM",
        "lacking = 0.0",
        "test_curvature.py::test_going_into_a_metric_keeps_the_truth_inside",
    ),
    Fault(
        "error of the maps between nodes dropped",
        "curvature.py",
        "return inflate(squares, M.mid.numel()).sqrt() * ROOM + M.error",
        "return inflate(squares, M.mid.numel()).sqrt() * ROOM",
        "test_curvature.py::test_block_norms_contain_the_error",
    ),
    Fault(
        "nonlinear part of the movement dropped",
        "curvature.py",
        "a = tuple((radius * h + bend) * ROOM",
        "a = tuple((radius * h) * ROOM",
        "test_curvature.py::test_for_a_fourth_power_the_bound_is_the_truth[1.0]",
    ),
    Fault(
        "change of earlier nodes dropped",
        "curvature.py",
        "size += float(squares.sqrt()) * earlier_size * ROOM",
        "size += 0.0",
        "test_curvature.py::test_for_a_fourth_power_the_bound_is_the_truth[1.0]",
    ),
    Fault(
        "only the last group of a node counted",
        "curvature.py",
        "share += _weighted(",
        "share = _weighted(",
        "test_curvature.py::test_for_a_fourth_power_the_bound_is_the_truth[1.0]",
    ),
    Fault(
        "Schur weights on the wrong side",
        "curvature.py",
        "index_add_(0, coupling.into, coupling.bound / theta)",
        "index_add_(0, coupling.into, coupling.bound * theta)",
        "test_curvature.py::test_the_weighted_schur_test_is_a_bound",
    ),
    Fault(
        "the residual's demand on the ball dropped",
        "search.py",
        "if found.kappa < 1 and room >= Y:",
        "if found.kappa < 1:",
        "test_curvature.py::test_a_residual_too_large_for_the_ball_proves_nothing",
    ),
    Fault(
        "the error bound without the rate",
        "search.py",
        "error = up(Y / down(1 - near.kappa))",
        "error = Y",
        "test_curvature.py::test_the_error_bound_pays_for_slow_rates",
    ),
)


def is_caught(fault: Fault) -> bool:
    """Whether the named test fails on a copy with the fault; without it the suite shows that it passes."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "fpcheck", copy / "fpcheck", ignore=shutil.ignore_patterns("models", "__pycache__"))
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("data", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        broken = copy / "fpcheck" / "certify" / fault.file
        text = broken.read_text()
        if text.count(fault.right) < 1:
            print(f"{fault.name}: the line is not in {fault.file} any more", flush=True)
            return False
        broken.write_text(text.replace(fault.right, fault.wrong))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/certify/{fault.test}"]
        run = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
        )
        # 1: a test failed. Anything else (no such test, a crash at import) is no catch.
        caught = run.returncode == 1 and "1 failed" in run.stdout
        print(f"{fault.name}: {'caught' if caught else 'NOT CAUGHT'}", flush=True)
        if not caught:
            print(run.stdout[-1500:])
        return caught


def main(names: list[str]) -> int:
    chosen = [f for f in FAULTS if not names or any(n in f.name for n in names)]
    missed = sum(not is_caught(f) for f in chosen)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
