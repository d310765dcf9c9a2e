# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures that all tests share, and MSGD_NO_SKIP=1, with which CI turns a skipped test into a failed one."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.daemons import Place, scratch_place

# A slow machine is no reason for a test to fail, and no test here needs a fixture of its own for each example.
_HEALTHY = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("patient", settings(deadline=None, suppress_health_check=_HEALTHY))
settings.load_profile("patient")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell that starts the tests in the background ignores SIGINT. The programs under test must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    "tests/build_support/test_bootstrap.py",
    "tests/build_support/test_install.py",
    "tests/build_support/test_pip.py",
    "tests/packages/test_debian.py",
    "tests/packages/test_rpm.py",
    "tests/systemd/test_booted.py",
    "tests/tools/test_msgcontrol.py",
    "tests/backends/contract/test_10_broadcast.py",
    "tests/daemon/gateway/test_limits.py",
    "tests/bench/test_measuring.py",
    "tests/build_support/test_configure.py",
)
"""The files that take longest.  They come first, so that no worker has one of them left in the end."""

NO_SKIP = os.environ.get("MSGD_NO_SKIP") == "1"


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {reason}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: two workers for each processor, since tests wait half of the time."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist's own order: files with few tests, however long, come last


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {path: number for number, path in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONG)))


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


@pytest.fixture(autouse=True)
def _levels_of_the_log() -> Iterator[None]:
    """A test that changes the debug levels of its own process does so for itself: others read warnings."""
    loggers = logging.getLogger(), logging.getLogger("msgd")
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory whose path is short, so that AF_UNIX addresses (107 bytes) fit below it."""
    path = tempfile.mkdtemp(dir="/tmp", prefix="m")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def place() -> Iterator[Place]:
    """A directory with a smb.conf, in which msgd's programs can be run. They are stopped after the test."""
    with scratch_place() as place:
        yield place
