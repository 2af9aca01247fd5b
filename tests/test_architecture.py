"""The map of docs/architecture.md, enforced: imports point one way, public names are pinned and documented."""

import ast
import inspect
from pathlib import Path

import pytest

import fpcheck

ROOT = Path(fpcheck.__file__).parent
# A module imports only from rooms to its left, or from its own.
ORDER = [
    "_version",
    "errors",
    "status",
    "constants",
    "loop",
    "blocks",
    "solve",
    "adjoint",
    "spectral",
    "check",
    "certify",
    "halting",
    "testing",
    "tasks",
    "losses",
    "train",
    "target",
    "settle",
    "assess",
    "survey",
    "bounds",
    "everywhere",
    "report",
    "cli",
]
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "fpcheck" else [f"fpcheck.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("fpcheck.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    room = room_of(path)
    later = {r for r in imported_rooms(path.read_text()) if ORDER.index(r) > ORDER.index(room)}
    assert not later, f"{path.name} in room {room!r} imports from later rooms {sorted(later)}"


def test_an_import_against_the_order_is_seen():
    # The partner that must be rejected: the loop may not know the command line.
    rooms = imported_rooms("from fpcheck.cli import main\nimport fpcheck.report.table\nfrom fpcheck import train\n")
    assert rooms == {"cli", "report", "train"}
    assert all(ORDER.index(r) > ORDER.index("loop") for r in rooms)


def test_the_checker_knows_nothing_of_the_maker():
    # Its verdict is worth something because it shares no arithmetic with the room whose certificates it checks.
    files = sorted((ROOT / "check").glob("*.py"))
    assert len(files) > 5
    rooms = set().union(*(imported_rooms(path.read_text()) for path in files))
    assert rooms <= {"check", "constants", "errors", "_version"}
    assert not any("torch" in path.read_text() for path in files)


def test_importing_fpcheck_loads_no_command_line_and_no_plotting():
    # A library user pays for neither; checked in a fresh interpreter because this one has loaded everything.
    import subprocess
    import sys

    code = "import sys, fpcheck; print([m for m in ('typer', 'matplotlib', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PUBLIC = {
    "Arithmetic",
    "CertificateFileError",
    "EstimatedConstants",
    "Fast",
    "GlobalCertificate",
    "GlobalVerdict",
    "GradientErrorBound",
    "GradientErrorEstimate",
    "ProvedConstants",
    "Sensitivity",
    "Share",
    "Sharp",
    "Study",
    "Violation",
    "Witness",
    "certify_global",
    "check",
    "gradient_error",
    "save",
    "share_bound",
    "statistical",
    "steps_to_decision",
    "steps_to_tolerance",
    "violation",
    "GMRES",
    "AdjointConvergenceError",
    "DirectSolve",
    "FixedPoint",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "TruncatedWindow",
    "Unrolled",
    "Certificate",
    "UnsupportedOperatorError",
    "Verdict",
    "certify",
    "enclose",
    "Anderson",
    "Auto",
    "BatchCouplingError",
    "BlockError",
    "BlockOutputError",
    "Blocks",
    "CheckpointError",
    "ConfigError",
    "ConvergenceError",
    "Damped",
    "Dense",
    "Diagnosis",
    "Estimate",
    "Finding",
    "FpcheckError",
    "GradientNotAvailableError",
    "ImpureBlockError",
    "InputError",
    "JacobianOperator",
    "Krylov",
    "Loop",
    "Multistart",
    "NonFiniteError",
    "OfficialFPOPT",
    "OutputError",
    "Picard",
    "ProbabilisticBound",
    "Regime",
    "Solution",
    "Spectrum",
    "Status",
    "Target",
    "TargetError",
    "ToleranceError",
    "assess",
    "blocks",
    "diagnose",
    "fixed_point",
    "jacobian",
    "load",
    "measured_rate",
    "multistart",
    "shipped_models",
    "spectral",
    "spectrum",
    "survey",
    "tasks",
}


def test_public_names_are_pinned():
    assert set(fpcheck.__all__) == PUBLIC
    assert all(hasattr(fpcheck, name) for name in PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_documented(name: str):
    thing = getattr(fpcheck, name)
    assert inspect.getdoc(thing), f"fp.{name} has no docstring"
    pages = (ROOT.parent / "docs" / "api.md").read_text()
    assert f"`{name}" in pages, f"fp.{name} is missing from docs/api.md"


@pytest.mark.parametrize("name", sorted(fpcheck.spectral.__all__))
def test_names_of_the_spectral_room_are_documented(name: str):
    thing = getattr(fpcheck.spectral, name)
    assert inspect.getdoc(thing), f"fp.spectral.{name} has no docstring"
    pages = (ROOT.parent / "docs" / "api.md").read_text()
    assert f"`{name}" in pages, f"fp.spectral.{name} is missing from docs/api.md"
