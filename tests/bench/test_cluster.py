"""The same suite on Ray: the same numbers, and a failure that stops nothing."""

from __future__ import annotations

import importlib.util
import json

import pytest

from bench.cases import numbers, toy_suite
from splatopt.bench import cluster
from splatopt.bench.cells import make_cells
from splatopt.bench.measure import run_cell
from splatopt.bench.session import Start, run_suite
from splatopt.cli import main
from splatopt.core import native, plugins
from splatopt.core.checks import InputError
from splatopt.core.optimizer import OPTIMIZERS

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: splatopt[ray]")


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
@pytest.mark.timeout(300)
def test_two_workers_come_to_the_numbers_of_one_process(capture, tmp_path):
    suite, said = toy_suite(capture), []
    out = tmp_path / "out"
    results = run_suite(suite, out, Start("splatopt bench", ray="local:2"), say=said.append)
    assert len(results.done) == 4
    assert results.sources[0]["side_by_side"] is True
    assert sorted(line.split()[0] for line in said) == ["1/4", "2/4", "3/4", "4/4"]
    alone = [numbers(run_cell(cell)) for cell in make_cells(suite, tmp_path / "alone", {})]
    assert [numbers(cell) for cell in results.cells] == alone
    # One cell anew, whose folder holds another run, fails before anything is run; a failure is kept.
    (out / "state" / "toy.slow.seed1.failed").write_text(json.dumps({"reason": "no luck"}))
    record = out / "cells" / "toy.slow.seed1" / "cell.json"
    record.write_text(record.read_text().replace('"done"', '"running"'))
    again = run_suite(suite, out, Start("splatopt bench", ray="local:2"), say=said.append)
    assert [cell["failure"] for cell in again.failed] == ["no luck"]
    assert len(again.done) == 3


def test_without_ray_it_is_named(monkeypatch, capture, tmp_path, capsys):
    import builtins

    real = builtins.__import__

    def missing(name, *rest):
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    words = ["--scenes", str(capture), "--optimizers", "adam", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(["bench", *words, "--ray", "local"]) == 2
    assert "install splatopt[ray]" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("local:2", {"address": "local", "num_cpus": 2, "include_dashboard": False}),
        ("head.example:6379", {"address": "head.example:6379"}),
        ("auto", {"address": "auto"}),
    ],
)
def test_the_address_says_where(monkeypatch, address, expected):
    import sys
    import types

    given = {}
    fake = types.ModuleType("ray")
    monkeypatch.setattr(fake, "init", lambda **settings: given.update(settings), raising=False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert cluster._connect(address) is fake
    assert {name: given[name] for name in expected} == expected


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    import sys
    import types

    def init(**settings):
        raise ConnectionError("nobody there")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(InputError, match=r"no Ray answers at head:1 \(nobody there\)"):
        cluster._connect("head:1")


def test_a_node_loads_the_plugins_of_its_cell(capture, tmp_path, monkeypatch):
    plugin = tmp_path / "node_plugin.py"
    plugin.write_text(
        "import splatopt\nfrom splatopt.optim import Adam, AdamOptions\n"
        "splatopt.register('node-adam', Adam, AdamOptions)\n"
    )
    suite = toy_suite(capture, plugins=[str(plugin)], optimizers=[{"name": "node-adam"}])
    cell, ran = make_cells(suite, tmp_path / "out", {})[0], []
    monkeypatch.setattr(cluster, "run_process", lambda suite_folder, cell, weights: ran.append(cell))
    written = json.loads(json.dumps(cell.to_json()))
    OPTIMIZERS.forget("node-adam")
    plugins._files.clear()
    try:
        cluster._run(str(tmp_path / "out"), written, None)
        assert [one.config.schedule.optimizer for one in ran] == ["node-adam"]
        assert "node-adam" in OPTIMIZERS.names()
        # Another process would read the file anew.
        plugin.write_text(plugin.read_text() + "# another\n")
        OPTIMIZERS.forget("node-adam")
        plugins._files.clear()
        with pytest.raises(InputError, match="has changed since the suite was started"):
            cluster._run(str(tmp_path / "out"), written, None)
        assert "node-adam" not in OPTIMIZERS.names(), "it was run before it was found to have changed"
    finally:
        if "node-adam" in OPTIMIZERS.names():
            OPTIMIZERS.forget("node-adam")
        plugins._files.clear()
