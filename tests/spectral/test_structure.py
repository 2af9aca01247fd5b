"""Block triangular Jacobians fall apart, and the parts keep the spectrum."""

import pytest
import torch

from fpcheck.blocks import FPRMConfig, FPRMModel
from fpcheck.loop import Loop
from fpcheck.spectral import jacobian, spectrum
from fpcheck.spectral.structure import diagonal_blocks


def sets(matrix) -> list[list[int]]:
    return sorted(part.tolist() for part in diagonal_blocks(torch.tensor(matrix, dtype=torch.float64)))


def test_small_graphs():
    # A cycle through all three entries is one component; a chain is three; an isolated entry is its own.
    assert sets([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) == [[0, 1, 2]]
    assert sets([[1, 0, 0], [1, 1, 0], [1, 1, 1]]) == [[0], [1], [2]]
    assert sets([[0, 1, 0], [1, 0, 0], [1, 0, 5]]) == [[0, 1], [2]]
    assert sets([[0.0]]) == [[0]]


def test_a_permuted_block_triangular_matrix_is_recognised():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A[:2, 2:] = 0
    A[2:5, 5:] = 0
    order = torch.randperm(6, generator=generator)
    found = sorted(sorted(order[part].tolist()) for part in diagonal_blocks(A[order][:, order]))
    assert found == [[0, 1], [2, 3, 4], [5]]


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_block_falls_apart_into_its_tokens_and_another_does_not(causal):
    torch.manual_seed(0)
    config = FPRMConfig(
        vocab_size=5, seq_len=4, hidden_size=8, num_heads=2, L_layers=1, expansion=1.5, mlp_multiple=8, causal=causal
    )
    model = FPRMModel(config).double().eval()
    with torch.no_grad():
        x = model.injection(torch.tensor([[1, 2, 3, 4]])).double()
    J = jacobian(Loop(model.block, x), model.initial_state(x))[0]
    parts = sorted(part.tolist() for part in diagonal_blocks(J))
    tokens = [list(range(8 * t, 8 * t + 8)) for t in range(4)]
    assert parts == (tokens if causal else [list(range(32))])


def test_equal_tokens_are_no_longer_ill_conditioned():
    # Twelve copies of the rotation-scaling [[0.3, -0.4], [0.4, 0.3]] (eigenvalues 0.3 +- 0.4i, modulus 0.5) in a
    # chain: as one matrix, two Jordan blocks of size 12, whose eigenvalues double precision gives to about
    # (1e-16)^(1/12) = 0.05. By blocks they are exact to rounding.
    block = torch.tensor([[0.3, -0.4], [0.4, 0.3]], dtype=torch.float64)
    A = torch.kron(torch.eye(12, dtype=torch.float64), block)
    A += torch.kron(torch.diag(torch.ones(11, dtype=torch.float64), -1), torch.eye(2, dtype=torch.float64))
    spec = spectrum(Loop(lambda z: z @ A.T, z0=torch.zeros(1, 24, dtype=torch.float64)), torch.zeros(1, 24).double())
    assert float(spec.radius.value[0]) == pytest.approx(0.5, rel=1e-14)
    assert float(spec.radius.error[0]) < 1e-13
    assert abs(torch.linalg.eigvals(A).abs().max().item() - 0.5) > 1e-4  # the whole matrix at once: not so
