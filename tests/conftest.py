"""Where nothing may be left out (MSGD_NO_SKIP=1, as CI has it) a skipped test is a failed one."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.daemons import Place, scratch_place

# How long an example takes is nothing to fail for.
settings.register_profile("patient", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile("patient")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Somebody runs the tests in the background; what they start and interrupt is not to inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

NO_SKIP = os.environ.get("MSGD_NO_SKIP") == "1"


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a path so short that AF_UNIX addresses (107 bytes) have room below it."""
    path = tempfile.mkdtemp(dir="/tmp", prefix="m")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def place() -> Iterator[Place]:
    """A directory with a smb.conf in which programs of msgd's can be run; they are ended after the test."""
    with scratch_place() as place:
        yield place
