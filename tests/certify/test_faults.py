"""Every seeded fault of tests/certify/faults.py is caught by the test that it names."""

import importlib.util
import sys
from pathlib import Path

import pytest

# The script lies beside this file, not in a package.
_SPEC = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("faults.py"))
faults = sys.modules["faults"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(faults)


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda f: f.name)
def test_a_fault_is_caught(fault):
    assert faults.is_caught(fault)


def test_faults_follow_the_code():
    # Quick: each fault's line is there, once, so that none of them is silently out of date.
    for fault in faults.FAULTS:
        text = (faults.ROOT / "fpcheck" / "certify" / fault.file).read_text()
        assert text.count(fault.right) == 1, fault.name
        assert fault.wrong not in text or fault.wrong in fault.right, fault.name
    assert len(faults.FAULTS) >= 20
