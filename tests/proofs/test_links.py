"""From theorem to code and back, and what code with bounds may not hold."""

from pathlib import Path

import pytest

from proofs import load, theorem_ids
from proofs.errors import MalformedError
from proofs.links import citations, citing_files, package_folder, resolve
from proofs.policy import own_numbers, violations
from proofs.registry import file_of


def test_citations_are_read_in_every_form():
    text = "Theorem B2; see Theorems D5, D6 and D8. Theorem 3 of Smith, Theorem IV and theorem b9 are none of ours."
    assert citations(text) == {"B2", "D5", "D6", "D8"}


def test_a_reference_leads_to_the_line():
    link = resolve("fpcheck/spectral/damping.py:critical_step")
    assert link.path.read_text().splitlines()[link.line - 1].startswith("def critical_step")


@pytest.mark.parametrize(
    "reference", ["fpcheck/nowhere.py:x", "fpcheck/spectral/damping.py:no_such_name", "fpcheck/spectral/damping.py"]
)
def test_a_reference_to_nothing_is_refused(reference: str):
    with pytest.raises(MalformedError, match="code="):
        resolve(reference)


def test_every_citation_in_the_package_is_answered_by_the_theorem():
    # Both ways: a module that cites a theorem is among those that the theorem names.
    for path, cited in citing_files(package_folder() / "fpcheck"):
        name = str(path.relative_to(package_folder()))
        if name == "fpcheck/constants.py":
            continue  # written from the theorems
        for identifier in cited:
            named = {reference.partition(":")[0] for reference in load(identifier).code}
            assert name in named, f"{name} cites Theorem {identifier}, which does not name it in code="


def test_the_package_keeps_the_rules():
    assert violations() == []


SOURCE = """
# choice: two lines of reasons
# above a statement
LEVELS = (
    0.3,
    0.7,
)
BOUND = 1.0998
def f(x):
    y = 0.5 * x + 2 ** -53 + x[3]
    for _ in range(7):  # choice: a limit of rounds, no bound rests on it
        y = y / 3
    return inflate(y + 5, 6) + 1
"""


def test_own_numbers_are_seen_and_plain_ones_are_not():
    assert [(n.line, n.text) for n in own_numbers(SOURCE)] == [(8, "1.0998"), (12, "3"), (13, "5")]


def test_a_room_with_a_number_of_its_own_or_an_invented_theorem_is_refused(tmp_path: Path):
    room = tmp_path / "fpcheck" / "certify"
    room.mkdir(parents=True)
    (room / "curvature.py").write_text('"""Source: Theorem Z99."""\nC = 0.3082\n')
    found = violations(tmp_path)
    assert len(found) == 2
    assert "0.3082" in found[0]
    assert "Z99" in found[1]
    (room / "curvature.py").write_text('"""Source: Theorem C1."""\nfrom fpcheck.constants import SILU_SLOPE_MAX as C\n')
    assert violations(tmp_path) == []


def test_unknown_theorems_are_refused_with_the_nearest():
    with pytest.raises(MalformedError, match="D5"):
        file_of("D77")


def test_theorems_use_theorems_that_exist():
    known = theorem_ids()
    assert [(i, u) for i in known for u in load(i).uses if u not in known] == []
