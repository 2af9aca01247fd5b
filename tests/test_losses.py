"""Training losses: closed forms, and the official training segment with its gradients."""

import math

import pytest
import torch
from oracle import Oracle

from fpcheck.errors import InputError
from fpcheck.losses import IGNORED, halt_loss, stablemax_cross_entropy
from fpcheck.solve.official import fpopt_start, fpopt_step


@pytest.mark.parametrize("name", ["v01", "v03"])
def test_one_official_training_segment(name):
    oracle = Oracle(name)
    model = oracle.model().train()
    x = oracle.injection(model)
    options = oracle.options("stepsize_decay_train")
    state = fpopt_start(oracle["y0"], options)
    for _ in range(oracle.config["n_backwards_L"]):
        state = fpopt_step(lambda z: model.block(z, x), state, options)
    logits, labels = model.readout(state.z), oracle["batch/labels"]
    # The official batch loss: a sum over samples, halting at weight 0.5, no q_continue term.
    loss = (
        stablemax_cross_entropy(logits, labels) + 0.5 * halt_loss(model.halt_logits(state.z)[:, 0], logits, labels)
    ).sum()
    # The official sum holds float32 terms of size 1: 2^-24 each.
    assert float(loss.detach()) == pytest.approx(oracle["train/masked_loss"], rel=1e-6)
    (loss / len(labels)).backward()

    from fpcheck.blocks.official import _own_names

    checked = 0
    for key, official in oracle.under("train/grad/").items():
        if key == "inner.puzzle_emb.local_weights":
            # One row per sample there; one per puzzle here. The samples carry puzzles that do not repeat.
            puzzles = oracle["batch/puzzle_identifiers"].long()
            assert len(puzzles.unique()) == len(puzzles)
            got = model.puzzle_emb.weights.grad[puzzles]
        else:
            got = model.get_parameter(next(iter(_own_names({key: official}, "gradients")))).grad
        assert got.shape == official.shape
        # Measured 9e-7 at most: float32 rounding of a backward pass through 4 block calls.
        assert float((got - official).norm() / official.norm()) <= 1e-4, key
        checked += 1
    trained = [p for p in model.parameters() if p.requires_grad]
    assert checked == len(trained)  # every parameter is among them


def test_stablemax_by_hand():
    # w(2) = 3, w(0) = 1, w(-1) = 1/2: p = 3/4.5, 1/4.5, 0.5/4.5.
    logits = torch.tensor([[[2.0, 0.0, -1.0], [2.0, 0.0, -1.0], [2.0, 0.0, -1.0]]])
    for labels, want in [
        ([0, IGNORED, IGNORED], math.log(1.5)),
        ([1, 2, IGNORED], (math.log(4.5) + math.log(9.0)) / 2),  # the mean over labelled tokens
        ([IGNORED, IGNORED, IGNORED], 0.0),
    ]:
        loss = stablemax_cross_entropy(logits, torch.tensor([labels]))
        assert loss.dtype == torch.float64
        assert float(loss[0]) == pytest.approx(want, rel=1e-12)


def test_stablemax_gradient():
    # At logits u >= 0, d(-log p_k)/du_j = 1/sum(w) - [j = k]/w_k; below zero w' = w^2.
    u = torch.tensor([[[1.0, 0.0, -2.0]]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([2.0, 1.0, 1 / 3], dtype=torch.float64)
    slope = torch.tensor([1.0, 1.0, 1 / 9], dtype=torch.float64)
    for k in range(3):
        (got,) = torch.autograd.grad(stablemax_cross_entropy(u, torch.tensor([[k]])).sum(), u)
        want = slope / w.sum()
        want[k] -= slope[k] / w[k]
        torch.testing.assert_close(got[0, 0], want, rtol=1e-12, atol=0)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([[[1e30, -1e30, 0.0]]], requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([[1]]))
    # p = (1e-30) / (1e30 + 1e-30 + 1): -log p = 60 ln 10.
    assert float(loss.detach()[0]) == pytest.approx(60 * math.log(10), rel=1e-6)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_halt_loss_by_hand():
    logits = torch.eye(3)[None].repeat(3, 1, 1)  # predicts 0, 1, 2
    labels = torch.tensor([[0, 1, 2], [0, 1, 1], [IGNORED] * 3])
    q = torch.tensor([2.0, 2.0, -1.0])
    # Right: softplus(-2). Wrong: softplus(2). No labels at all counts as right: softplus(1).
    want = [math.log1p(math.exp(-2)), math.log1p(math.exp(2)), math.log1p(math.exp(1))]
    assert halt_loss(q, logits, labels).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), r"expected \(B, L, V\)"),
        (torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long), r"labels.shape=\(1, 2\)"),
        (torch.zeros(1, 1, 4), torch.tensor([[4]]), r"expected \[0, 4\)"),
        (torch.zeros(1, 1, 4), torch.tensor([[-1]]), r"\[-1, -1\]"),
    ],
)
def test_labels_that_do_not_fit_are_named(logits, labels, words):
    for loss in (stablemax_cross_entropy, lambda *args: halt_loss(torch.zeros(len(logits)), *args)):
        with pytest.raises(InputError, match=words):
            loss(logits, labels)
    with pytest.raises(InputError, match=r"q_halt.shape=\(2,\); expected \(1,\)"):
        halt_loss(torch.zeros(2), torch.zeros(1, 1, 4), torch.tensor([[0]]))
