"""State tracking against group theory and brute force."""

import itertools

import pytest
import torch

from fpcheck.errors import InputError
from fpcheck.tasks import StateTracking, task_from_dict


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("A3", 3), ("S4", 24), ("A4", 12), ("A5", 60), ("S5", 120)])
def test_it_is_a_group_of_the_right_order(group, order):
    task = StateTracking(group, 4)
    table = task.product
    assert table.shape == (order, order)
    assert task.vocab_size == order + 1
    # Index 0 is the identity, and every row and column is a permutation (a Latin square).
    assert torch.equal(table[0], torch.arange(order))
    assert torch.equal(table[:, 0], torch.arange(order))
    assert all(torch.equal(row.sort().values, torch.arange(order)) for row in [*table, *table.T])
    # Associativity on all triples of the small groups, on random ones of the large.
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randint(0, order, (3, 500), generator=generator)
    assert torch.equal(table[table[a, b], c], table[a, table[b, c]])


def test_products_act_from_the_right_first():
    # (a * b)(i) = a(b(i)). In lexicographic order the permutations of (0, 1, 2) are
    # 0: 012, 1: 021, 2: 102, 3: 120, 4: 201, 5: 210. With a = 102 and b = 021: a(b(0)) = a(0) = 1,
    # a(b(1)) = a(2) = 2, a(b(2)) = a(1) = 0, so a * b = 120 = index 3; the other order gives 201 = index 4.
    task = StateTracking("S3", 2)
    assert task.product[2, 1] == 3
    assert task.product[1, 2] == 4


def test_labels_are_prefix_products():
    task = StateTracking("S3", 5)
    inputs, labels = task.sample(50, torch.Generator().manual_seed(1))
    permutations = list(itertools.permutations(range(3)))
    for tokens, answers in zip(inputs.tolist(), labels.tolist(), strict=True):
        state = (0, 1, 2)
        for token, answer in zip(tokens, answers, strict=True):
            b = permutations[token - 1]
            state = tuple(state[b[i]] for i in range(3))
            assert permutations[answer - 1] == state


def test_splits_are_disjoint_whatever_the_seeds():
    # Length 3 has only 216 sequences, so both splits are drawn completely and must not share one.
    task = StateTracking("S3", 3)
    train, _ = task.sample(3000, torch.Generator().manual_seed(1))
    held, _ = task.sample(300, torch.Generator().manual_seed(2), held_out=True)
    seen, kept = {tuple(r) for r in train.tolist()}, {tuple(r) for r in held.tolist()}
    assert seen.isdisjoint(kept)
    # The hash sends about one sequence in 16 to the held-out split: 13.5 of 216 expected, standard deviation 3.6.
    assert len(seen) + len(kept) == 216
    assert 3 <= len(kept) <= 25


def test_the_same_seed_draws_the_same():
    task = StateTracking("S3", 12)
    one, two = (task.sample(20, torch.Generator().manual_seed(5))[0] for _ in range(2))
    other, _ = task.sample(20, torch.Generator().manual_seed(6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_round_trip_through_a_card():
    task = StateTracking("A4", 7)
    assert task_from_dict(task.to_dict()) == task


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StateTracking("S33"), "did you mean 'S3'"),
        (lambda: StateTracking("Z7"), "valid: S2"),
        (lambda: StateTracking("S3", 0), "length=0; expected an integer >= 1"),
        (lambda: task_from_dict({"kind": "sudoku"}), "kind='sudoku'"),
    ],
)
def test_bad_input_is_refused(make, text):
    with pytest.raises(InputError, match=text):
        make()
