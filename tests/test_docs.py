"""The docs say what is true: examples run, links lead somewhere, the JSON page names every field."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch

from fpcheck.assess import Row, assess
from fpcheck.blocks import load, shipped_models
from fpcheck.bounds import BoundRow, bound
from fpcheck.everywhere import GlobalRow, everywhere
from fpcheck.report.document import bounds_document, document, global_document, survey_document
from fpcheck.survey import SurveyRow, survey
from fpcheck.target import Data, find_target

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_example_prints_what_it_says(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    complete = [b for b in blocks if "import fpcheck" in b]
    assert len(complete) == 1
    exec(compile(complete[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = [line[2:] for line in complete[0].splitlines() if line.startswith("# ")]
    assert printed == promised


def test_the_worked_example_of_a_proof_runs_and_prints_what_it_says(capsys, monkeypatch):
    shown, *session = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "certify.md").read_text(), re.DOTALL)
    assert shown in (ROOT / "examples" / "my_block.py").read_text()
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.delitem(sys.modules, "my_block", raising=False)  # its own copy: the session widens the weights in place
    names: dict = {}
    for part in session:
        exec(compile(part, "certify.md", "exec"), names)
    monkeypatch.delitem(sys.modules, "my_block")
    promised = [line[2:] for line in "".join(session).splitlines() if line.startswith("# ")]
    assert len(promised) == 4
    assert capsys.readouterr().out.splitlines() == promised


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}
            assert anchor in slugs, f"{page.name} links to {link}"


def named_fields(page: str) -> set[str]:
    """What stands in backticks in the first column of a page's tables."""
    rows = [row for row in (ROOT / "docs" / page).read_text().splitlines() if row.startswith("| `")]
    return set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in rows)))


def test_the_json_pages_name_every_field_and_no_other():
    found = find_target(f"{ROOT / 'examples' / 'my_block.py'}:block", Data(inputs=1))
    for page, held, kind in (
        ("json.md", document(assess(found)), Row),
        ("spectrum-json.md", survey_document(survey(found)), SurveyRow),
        ("bounds-json.md", bounds_document(bound(found)), BoundRow),
        ("global-json.md", global_document(everywhere(found)), GlobalRow),
    ):
        assert named_fields(page) == set(held) | set(held["rows"][0]), page
        assert {f.name for f in dataclasses.fields(kind)} <= set(held["rows"][0])


@pytest.mark.parametrize("name", shipped_models())
def test_the_models_page_matches_the_cards(name):
    card = load(name).card
    text = (ROOT / "docs" / "models.md").read_text()
    assert card["sha256"] in text
    assert f"token accuracy {card['held_out']['token_accuracy']:.2%}" in text


def test_the_loop_in_the_worked_example_differs_from_its_partner_only_in_alpha():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("my_block", ROOT / "examples" / "my_block.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.block.alpha, module.unscaled.alpha) == (0.5, 1.0)
    x = module.inputs(2, 0)
    assert torch.equal(x, module.inputs(2, 0))
    assert not torch.equal(x, module.inputs(2, 1))


@pytest.mark.parametrize("page", ["gradients.md", "from-torchdeq.md", "from-optimistix.md"])
def test_the_python_of_the_gradient_pages_runs(page):
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    held: dict = {}
    exec(compile(source, page, "exec"), held)
    if page == "gradients.md":
        weight = held["layer"].block.mix.weight
        assert weight.grad is not None
        assert float(weight.grad.norm()) > 0
        assert held["layer"].solution.converged
    elif page == "from-torchdeq.md":
        assert float(held["W"].grad.norm()) > 0
    else:
        assert held["H"].shape == (4, 4, 4, 4)
        # Second derivatives commute.
        torch.testing.assert_close(held["H"], held["H"].permute(2, 3, 0, 1))
