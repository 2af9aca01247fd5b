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
        "k[own, earlier] = squares.sqrt() * ROOM",
        "k[own, earlier] = 0.0",
        "test_curvature.py::test_for_a_fourth_power_the_bound_is_the_truth[1.0]",
    ),
    Fault(
        "only the last group of a node counted",
        "curvature.py",
        "out = torch.stack([s for s, _ in sums]).sum(0) * ROOM",
        "out = sums[-1][0] * ROOM",
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
        "error of a stacked matrix dropped",
        "curvature.py",
        "return up(root_up(largest) + float(errors.norm()) * ROOM)",
        "return up(root_up(largest))",
        "test_curvature.py::test_a_stacked_norm_is_the_norm_and_counts_every_error",
    ),
    Fault(
        "error of the map between nodes dropped",
        "curvature.py",
        "rough=True) + float(errors.norm()) * largest * ROOM)",
        "rough=True))",
        "test_curvature.py::test_the_map_between_nodes_counts_with_both_weights_and_its_error",
    ),
    Fault(
        "the change's product with later tangents dropped",
        "curvature.py",
        "_product(shape, E, whole - eye, sizes, proved)",
        "0.0",
        "test_middle.py::test_for_a_fourth_power_the_sharp_bound_is_the_truth[1.0]",
    ),
    Fault(
        "the part beyond first order dropped",
        "curvature.py",
        "split += _product(shape, rest, eye, _sizes(shape, rest), proved)",
        "split += 0.0",
        "test_middle.py::test_for_a_fourth_power_the_sharp_bound_is_the_truth[1.0]",
    ),
    Fault(
        "a node without a form taken for covered",
        "curvature.py",
        "local.e2 if first.covered[own] else local.e",
        "local.e2",
        "test_middle.py::test_for_a_fourth_power_the_sharp_bound_is_the_truth[0.1]",
    ),
    Fault(
        "a norm's second derivative with 2 in place of 3",
        "middle.py",
        "/ (d * d) * 3.0",
        "/ (d * d) * 2.0",
        "test_middle.py::test_gamma_and_tau_are_those_of_autodiff[encoder, pre-norm]",
    ),
    Fault(
        "scores and values in one order only",
        "middle.py",
        'Family(("bqk", "bjk", "bqj"), out, value, score, weight, 2),',
        "",
        "test_middle.py::test_gamma_and_tau_are_those_of_autodiff[attention]",
    ),
    Fault(
        "rounding of Gamma dropped",
        "middle.py",
        "error = up(gamma(roundings) * up(size * size))",
        "error = up(0 * up(size * size))",
        "test_middle.py::test_gamma_is_the_exact_sum_within_its_radius[gates]",
    ),
    Fault(
        "error of the cotangents dropped in tau",
        "middle.py",
        "+ total(c, torch.full_like(g, terms.G.error), a + e, b + e)",
        "",
        "test_middle.py::test_errors_of_the_data_count_in_full[1]",
    ),
    Fault(
        "pairs of different nodes counted once",
        "middle.py",
        "total += part + part.mT",
        "total += part",
        "test_middle.py::test_gamma_and_tau_are_those_of_autodiff[gates]",
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
    Fault(
        "a norm's rows one entry too short",
        "growth.py",
        "return _lanes(shape, dim, root_up(shape[dim]))",
        "return _lanes(shape, dim, root_up(shape[dim] - 1))",
        "test_globally.py::test_fprm_blocks_are_bounded_for_all_states_unless_they_hand_on_everything"
        "[fixed, outer only, output norm]",
    ),
    Fault(
        "copies of a bounded entry counted once",
        "growth.py",
        "factor = torch.where(most > 1, (most.double()).sqrt() * ROOM, 1.0)",
        "factor = torch.ones(len(most), dtype=torch.float64)",
        "test_globally.py::test_every_operator_within_its_bound[means]",
    ),
    Fault(
        "what a sum adds up forgotten",
        "growth.py",
        'factor = root_up(k) if name == "sum" else root_up(up(1 / k))',
        'factor = 1.0 if name == "sum" else root_up(up(1 / k))',
        "test_globally.py::test_every_operator_within_its_bound[means]",
    ),
    Fault(
        "growth beside the linear part forgotten",
        "growth.py",
        "slope = (slope + torch.tensor(pieces, dtype=torch.float64) + spread) * ROOM",
        "slope = (torch.tensor(pieces, dtype=torch.float64) + spread) * ROOM",
        "test_globally.py::test_every_operator_within_its_bound[handed on and gated]",
    ),
    Fault(
        "a norm that is not continuous let through",
        "growth.py",
        "if not eps > 0:",
        "if not eps >= 0:",
        "test_globally.py::test_what_may_jump_is_refused_by_name[a norm without eps]",
    ),
    Fault(
        "condition of the metric dropped",
        "globally.py",
        "rest = up(up(metric.norm * slope) * metric.inverse_norm)",
        "rest = 0.0",
        "test_globally.py::test_in_a_metric_the_rest_grows_by_the_metric_too",
    ),
    Fault(
        "over-relaxation taken for damping",
        "globally.py",
        "single = up(up(abs(1.0 - s)) + up(s * block.lipschitz_bound()))",
        "single = up(up(1.0 - s) + up(s * block.lipschitz_bound()))",
        "test_globally.py::test_damped_and_iterated_contractions_have_their_own_rates",
    ),
    Fault(
        "last outcome of a tail left out",
        "statistical.py",
        "for j in range(k, n + 1):",
        "for j in range(k, n):",
        "test_statistical.py::test_a_wrong_guess_is_corrected_by_the_proof",
    ),
    Fault(
        "correction of a variance ignored",
        "operators.py",
        "- (1 if correction is None else correction)",
        "- 0 * (1 if correction is None else correction)",
        "test_enclosure.py::test_rules_against_300_bits[var]",
    ),
    Fault(
        "one side only at a tie",
        "operators.py",
        "sure = may & (may.sum(dims, keepdim=True) == 1)",
        "sure = may & (may.cumsum(-1) == 1)",
        "test_enclosure.py::test_at_a_tie_the_jacobian_holds_both_sides",
    ),
    Fault(
        "factor of a third derivative forgotten",
        "nodes.py",
        "second * abs(e - 2) * _power_size",
        "second * 1.0 * _power_size",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[curve, reciprocal]",
    ),
    Fault(
        "wrong end of the interval",
        "nodes.py",
        "end = x.abs_upper() if exponent >= 0 else x.abs_lower()",
        "end = x.abs_upper()",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[curve, reciprocal]",
    ),
    Fault(
        "derivatives at the centre only",
        "nodes.py",
        "reach = (self._centre.rad + move) * ROOM",
        "reach = (self._centre.rad + 0 * move) * ROOM",
        "test_nodes.py::test_nothing_beats_the_bounds_and_they_are_nearly_attained[curve, exp]",
    ),
    Fault(
        "the modulus' jump halved",
        "nodes.py",
        'self.jump = 2.0 if name == "abs" else 1.0',
        "self.jump = 1.0",
        "test_nodes.py::test_straight_pieces_bend_at_their_kinks_alone[abs]",
    ),
    Fault(
        "a product with the root taken for a norm",
        "fusion.py",
        'if op.target == ("rsqrt.default" if inverse else "sqrt.default"):',
        'if op.target in ("rsqrt.default", "sqrt.default"):',
        "test_fusion.py::test_what_only_looks_like_a_norm_is_none[times the root]",
    ),
    Fault(
        "norms at the centre a thousandth too small",
        "metric.py",
        "inside = norm_bound(Ball.exact(self.L) @ J @ Ball.exact(self.inverse))",
        "inside = 0.999 * norm_bound(Ball.exact(self.L) @ J @ Ball.exact(self.inverse))",
        "test_arb.py::test_corners[masked rows]",
    ),
    Fault(
        "the Euclidean ball taken by the wrong norm of the metric",
        "certificate.py",
        "self.radius / up(self.metric.norm)",
        "self.radius * self.metric.inverse_norm",
        "test_attacks.py::test_no_claim_of_a_certificate_is_beaten[tanh, damped]",
    ),
    Fault(
        "the reach of a decision a thousandth too large",
        "decision.py",
        "length = inflate(length / (1 - metric.defect) * (1 + 2.0**-50)",
        "length = inflate(length * 0.999",
        "test_attacks.py::test_no_claim_of_a_certificate_is_beaten[fprm, plain]",
    ),
    Fault(
        "an eigenvalue for the computed Jacobian only",
        "repelling.py",
        "moved_by = up(size * distance)",
        "moved_by = 0.0",
        "test_repelling.py::test_every_matrix_within_the_distance_has_the_eigenvalue[flip-0.0001]",
    ),
    Fault(
        "the eigenvalue's modulus without its radius",
        "repelling.py",
        "- radius)\n                return Witness",
        ")\n                return Witness",
        "test_repelling.py::test_every_matrix_within_the_distance_has_the_eigenvalue[flip-0.0001]",
    ),
    Fault(
        "the Jacobian at the centre taken for that at the fixed point",
        "repelling.py",
        "up(held.jacobian_error + change)",
        "held.jacobian_error",
        "test_repelling.py::test_the_jacobian_may_be_that_of_any_state_of_the_ball",
    ),
    Fault(
        "a violation measured without the metric",
        "violation.py",
        "moved = Ball.exact(metric.L) @ column",
        "moved = column",
        "test_violation.py::test_the_metric_counts",
    ),
    Fault(
        "the loop's Jacobian taken for the damped one's",
        "damped.py",
        "jacobian = eye + (Ball.exact(held.jacobian) - eye) * step",
        "jacobian = Ball.exact(held.jacobian) * step",
        "test_damped.py::test_steps_that_eigenvalues_forbid_are_never_proved_in_any_metric",
    ),
    Fault(
        "one rounding for a whole inner product",
        "roundings.py",
        "gamma(k + 4)",
        "gamma(0 * k + 1)",
        "test_roundings.py::test_no_operator_loses_more_than_it_may[mm-float32]",
    ),
    Fault(
        "half a rounding for a product",
        "roundings.py",
        "reach * gamma(1 + inexact)",
        "reach * gamma(0.5 + inexact)",
        "test_roundings.py::test_no_operator_loses_more_than_it_may[mul-float32]",
    ),
    Fault(
        "numbers that the loop computes anew taken as exact",
        "running.py",
        "return carried(op, given, off, reach)",
        "return None if off else None",
        "test_running.py::test_no_computed_step_is_further_from_the_exact_one_than_phi[cancelling-float32]",
    ),
    Fault(
        "the inverse at the centre taken for that of the ball",
        "conditioning.py",
        "defect = up(defect + up(size * change))",
        "defect = up(defect)",
        "test_conditioning.py::test_the_inverse_of_every_matrix_near_is_bounded_and_the_bound_is_near[shear-0.01]",
    ),
    Fault(
        "the room that an injection takes forgotten",
        "inputs.py",
        "up(found.residual + up(moved * injections))",
        "up(found.residual)",
        "test_conditioning.py::test_one_number_has_the_exact_slope_and_all_of_the_radius",
    ),
    Fault(
        "decisions without the fixed point's own distance",
        "progress.py",
        "down(radius - found.error_bound)",
        "down(radius)",
        "test_progress.py::test_a_smaller_margin_needs_more_steps_and_one_below_the_error_none_is_enough",
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
