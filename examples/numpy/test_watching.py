import csv
import sys

import numpy as np
import pytest

import watching


def read(folder):
    with (folder / "stats.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table(tmp_path, monkeypatch, capsys):
    """A row for each parameter in every so-many-th step, with all digits; tensorboardX or not."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    infos = []
    trained = watching.train(20, 5, infos.append)
    watching.main([str(tmp_path), "--steps", "20", "--every", "5"])
    rows = read(tmp_path)
    assert [(row["step"], row["parameter"]) for row in rows] == [
        (str(step), name) for step in (1, 6, 11, 16) for name in ("hidden", "out")
    ]
    for info in infos:
        for name, stats in info.stats.items():
            (row,) = [r for r in rows if (r["step"], r["parameter"]) == (str(info.step), name)]
            assert {what: float(row[what]) for what in stats._fields} == stats._asdict()
            assert stats.update_norm > 0
    assert capsys.readouterr().out.startswith("tensorboardX is not installed")
    assert trained["hidden"].shape == (8, 32)


def test_stats_change_nothing():
    watched = watching.train(20, 1)
    rarely = watching.train(20, 1000)
    for name, param in watched.items():
        np.testing.assert_array_equal(param, rarely[name])


def test_curves():
    """What a SummaryWriter is called with, whichever it is."""
    infos, curves = [], {}
    watching.train(3, 1, infos.append)

    class Writer:
        def add_scalar(self, tag, value, step):
            curves.setdefault(tag, []).append((step, value))

    for info in infos:
        watching.add_scalars(Writer(), info)
    assert len(curves) == 2 * 5
    assert curves["grad_norm/out"] == [(i.step, i.stats["out"].grad_norm) for i in infos]
    assert [step for step, _ in curves["update_ratio/hidden"]] == [1, 2, 3]


@pytest.mark.parametrize("package", ["tensorboardX", "torch.utils.tensorboard"])
def test_a_run_for_tensorboard(package, tmp_path):
    """Both writers take it, and the file has the names of the curves."""
    writer_class = pytest.importorskip(package).SummaryWriter
    with writer_class(str(tmp_path)) as writer:
        watching.train(3, 1, lambda info: watching.add_scalars(writer, info))
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"update_ratio/hidden" in events.read_bytes()


def test_program(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    watching.main([str(tmp_path), "--steps", "3", "--every", "1"])
    assert capsys.readouterr().out == f"written to {tmp_path}\n"
    assert len(read(tmp_path)) == 6
    assert list(tmp_path.glob("events.out.tfevents.*"))
