# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`./configure --without-cluster`: clustering = yes is refused by name, and nothing else is any different."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from build_support import registry
from tests.build_support.conftest import Tree

REFUSAL = "clustering = yes, but this msgd was configured --without-cluster: configure it --with-cluster"


@pytest.fixture
def without(tree: Tree) -> Tree:
    """A tree that is configured without the cluster, with a smb.conf that says clustering = yes."""
    tree.configure("--prefix=/opt/m", "--without-cluster", "--enable-compiled=no", "--quiet")
    configure(tree, "yes")
    return tree


def configure(tree: Tree, clustering: str) -> None:
    directory = tree.path.parent
    names = ("lock directory", "private dir", "pid directory")
    lines = [f"{name} = {directory}/{name.partition(' ')[0]}" for name in names]
    smb_conf("\n".join(["[global]", "messaging type = dgram", f"clustering = {clustering}", *lines, ""]), tree)


def smb_conf(text: str, tree: Tree) -> Path:
    path = tree.path / "smb.conf"
    path.write_text(text)
    return path


def run(tree: Tree, module: str, *arguments: str, expect: int = 0) -> tuple[str, str]:
    """Run a program of the tree with its smb.conf; what it has written."""
    done = tree.run(sys.executable, "-m", module, "-s", "smb.conf", *arguments, expect=expect)
    return done.stdout, done.stderr


def test_the_switch_is_recorded(without: Tree) -> None:
    assert not registry.read(without.path).with_cluster
    assert "cluster: no" in run(without, "msgd.daemon", "-b")[0]
    without.configure("--prefix=/opt/m", "--enable-compiled=no", "--quiet")
    assert registry.read(without.path).with_cluster
    assert "cluster: yes" in run(without, "msgd.daemon", "-b")[0]


def test_programs_refuse_a_clustered_configuration_by_the_name_of_the_switch(without: Tree) -> None:
    (without.path.parent / "lock").mkdir()
    for module, arguments in (("msgd.daemon", ("-i",)), ("msgd.tools.msgcontrol", ("all", "ping"))):
        output, complaint = run(without, module, *arguments, expect=1)
        assert REFUSAL in output + complaint
    done = without.run(sys.executable, "-m", "msgd.bench", "ping", "--cluster", expect=2)
    assert "--without-cluster" in done.stderr
    assert run(without, "msgd.tools.msgstatus")[1] == f"msgstatus: {REFUSAL}\n"  # and the processes are shown


def test_without_clustering_nothing_of_the_cluster_is_loaded(without: Tree) -> None:
    configure(without, "no")
    code = (
        "import sys; from msgd import Config, Messaging; m = Messaging(Config.load('smb.conf'));"
        " m.request(m.server_id, 2); m.close(); print([one for one in sys.modules if one.startswith('msgd.cluster')])"
    )
    assert without.run(sys.executable, "-c", code).stdout == "[]\n"
