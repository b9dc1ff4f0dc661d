"""wendelin export with wildcards: a file for each array, in a folder that exists."""

import json

import numpy as np
import pytest

import wendelin


@pytest.fixture
def url(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with wendelin.open(path) as g:
        for run in "7", "8":
            for i, name in enumerate(["signal", "noise"]):
                g[f"run/{run}/{name}"] = np.arange(5) + 10 * int(run) + i
        g["run/7/more/deep"] = np.zeros(3)
        g["odd"] = g.create_group("group")
        g["star/a*b"] = np.arange(2)
        g["star/a-b"] = np.arange(3)
        g["star/..\\x"] = np.arange(4)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_several_arrays_go_into_a_folder(url, tmp_path, call):
    done = call("export", f"{url}#run/7/*", "out")
    assert names(tmp_path / "out") == ["noise.npy", "signal.npy"]
    assert np.array_equal(np.load("out/signal.npy"), np.arange(5) + 70)
    assert "left out" in done.stderr
    assert "run/7/more is a group" in done.stderr
    assert "exists already" in call("export", f"{url}#run/7/*", "out", code=1).stderr
    call("export", "--force", f"{url}#run/7/*[::2]", "out/")
    assert np.array_equal(np.load("out/signal.npy"), [70, 72, 74])
    call("export", f"{url}#run/8/signal", "out/", code=1)
    call("export", "--force", f"{url}#run/8/signal", "out")
    assert np.load("out/signal.npy")[0] == 80


def test_a_pattern_names_the_files(url, tmp_path, call):
    done = call("export", "--json", f"{url}#run/8/*", "out/8-*.csv")
    assert names(tmp_path / "out") == ["8-noise.csv", "8-signal.csv"]
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(done.stdout)
    second, _ = decoder.raw_decode(done.stdout[end:].lstrip())
    assert {first["file"], second["file"]} == {"out/8-noise.csv", "out/8-signal.csv"}
    assert first["at"] == second["at"]
    h5py = pytest.importorskip("h5py")
    call("export", f"{url}#run/*", "out/*.h5")
    with h5py.File("out/7.h5") as file:
        assert np.array_equal(file["more/deep"], np.zeros(3))
    call("export", f"{url}#run/8/*", "out/one *.h5:raw/x")
    with h5py.File("out/one noise.h5") as file:
        assert file["raw/x"][0] == 81


def test_a_key_is_not_a_path(url, tmp_path, call):
    call("export", f"{url}#star/*", "out")
    assert names(tmp_path / "out") == [".._x.npy", "a*b.npy", "a-b.npy"]
    call("export", f"{url}#star/a*b", "x.npy")
    assert np.array_equal(np.load("x.npy"), np.arange(2))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["{}#run/*/signal", "out"], 1, "run/7/signal and run/8/signal would both be out/signal"),
        (["{}#run/7/*", "x.npy"], 2, "means 3 objects, and 'x.npy' does not say where each goes"),
        (["{}#run/7/*", "*/*.npy"], 2, "have one * in the place of the names, as in 'out/*.h5'"),
        (["{}#run/9*", "out"], 1, "run/9* matches nothing"),
        (["{}#run/*", "out"], 1, "run/* has nothing that npy files take"),
        (["{}#run/7/*", "nowhere/*.npy"], 1, "nowhere: No such file"),
        (["{}#run/7/*", "out/*"], 2, "has none of the known suffixes"),
    ],
)
def test_an_export_that_is_refused_writes_nothing(url, tmp_path, call, args, code, message):
    args = [arg.format(url) for arg in args]
    assert message in call("export", *args, code=code).stderr
    assert names(tmp_path / "out") == []
