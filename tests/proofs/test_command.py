"""`fpcheck prove` and `python -m proofs`: output, exit codes, bad calls."""

import dataclasses
import json
import subprocess
import sys

import pytest

from proofs import command, prove
from proofs.errors import UndecidedError
from proofs.prove import check, check_all


def test_one_theorem_prints_its_steps_and_passes(capsys):
    assert command.main(["B2"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 theorems passed: 3 of 3 steps proved" in out
    assert "cited the fixed point exists" in out
    assert "1 % smaller: refuted" in out


def test_json_holds_the_same(capsys):
    assert command.main(["D5", "B2", "--json", "--processes", "1"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [d["id"] for d in documents] == ["D5", "B2"]
    assert all(d["passed"] and d["failures"] == [] for d in documents)
    assert documents[0]["code"][0].startswith("fpcheck/spectral/damping.py:")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["D77"], "does not exist"), (["--nope"], "No such option"), (["B2", "--draws", "-1"], "draws=-1"),
     (["B2", "--html", "/no/such/folder/x.html"], "folder does not exist")],
)  # fmt: skip
def test_a_wrong_call_ends_2_and_says_why(words, said, capsys):
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_failing_theorem_ends_1_and_is_named(monkeypatch, capsys):
    good = check("B2", draws=0)
    bad = dataclasses.replace(good.steps[0], outcome="refuted", message="it is false")
    report = dataclasses.replace(good, steps=(bad, *good.steps[1:]))
    monkeypatch.setattr(command, "check_all", lambda *_args, **_kwargs: [report])
    assert command.main(["B2"]) == 1
    out = capsys.readouterr().out
    assert "step 1 refuted: it is false" in out
    assert "0 of 1 theorems passed" in out


def test_a_theorem_file_that_does_not_load_is_reported_and_the_others_go_on(monkeypatch):
    real = prove.load

    def load(identifier):
        if identifier == "B2":
            raise KeyError("broken file")
        return real(identifier)

    monkeypatch.setattr(prove, "load", load)
    broken, good = check_all(["B2", "D5"], processes=1, draws=0)
    assert broken.failures() == ["KeyError: 'broken file'"]
    assert good.passed


def test_a_step_without_end_is_undecided(monkeypatch):
    monkeypatch.setattr(prove, "STEP_SECONDS", 1)
    theorem = prove.load("B2")

    class Endless(type(theorem.steps[0])):
        def check(self, context):
            while True:
                pass

    step = theorem.steps[0]
    endless = Endless(step.text, step.expr, step.certificate)
    failure = next(iter(prove._timed_steps(dataclasses.replace(theorem, steps=(endless,)))))[2]
    assert isinstance(failure, UndecidedError)
    assert "1 s" in str(failure)


def test_workers_and_one_process_agree():
    # Times differ, nothing else may.
    alone = check_all(["B2", "D5"], processes=1, draws=50)
    together = check_all(["B2", "D5"], processes=2, draws=50)
    assert [dataclasses.replace(r, seconds=0) for r in alone] == [dataclasses.replace(r, seconds=0) for r in together]


def test_python_m_proofs_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "proofs", "D5", "--draws", "20"], capture_output=True, text=True, check=False
    )
    assert "5 of 5 steps proved" in done.stdout


def test_the_readable_versions_are_written(tmp_path):
    page, paper = tmp_path / "theory.html", tmp_path / "theory.tex"
    assert command.main(["B2", "--draws", "20", "--html", str(page), "--tex", str(paper)]) == 0
    assert "passed" in page.read_text()
    assert paper.read_text().rstrip().endswith(r"\end{document}")
