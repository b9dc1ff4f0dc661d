"""Plain files of arrays and matrices, which any language maps; matrices from and to files."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import transaction
from scipy import sparse

from wendelin import ZSparse
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.memory import in_file
from wendelin.cli.files import flat
from wendelin.lib.zodb import dbclose, dbopen

A = np.arange(600 * 700, dtype="f4").reshape(600, 700)
M = sparse.random_array((500, 80), density=0.1, format="csr", random_state=0, dtype="f8")

PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

const void *map(const char *name, const char *part) {
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s.%s", name, part);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st)) { perror(path); exit(1); }
    return mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
}

int main(int argc, char **argv) { /* NAME rows: each row's sum of number times column */
    const double *data = map(argv[1], "data");
    const long *indices = map(argv[1], "indices"), *indptr = map(argv[1], "indptr");
    for (long i = 0; i < atol(argv[2]); i++) {
        double sum = 0;
        for (long k = indptr[i]; k < indptr[i + 1]; k++) sum += data[k] * indices[k];
        printf("%.17g\n", sum);
    }
    return 0;
}
"""


@pytest.fixture
def url(path):
    root = dbopen(path)
    root["A"] = ZBigArray(A.shape, A.dtype, blksize=1 << 16)
    root["F"] = ZBigArray(A.shape, ">f4", "F", blksize=1 << 16)
    root["holes"] = ZBigArray((1 << 18,), "i8", blksize=1 << 16)
    root["c"] = ZBigArray((2, 3), "c8")
    root["S"] = S = ZSparse.csr((0, 80), "f8", blksize=1 << 16)
    transaction.commit()
    root["A"][:] = root["F"][:] = A
    root["holes"][70_000] = 5
    S.append_rows(M)
    transaction.commit()
    dbclose(root)
    return path


def test_an_array_goes_to_plain_files_and_back(url, tmp_path, call):
    for name in "A", "F":
        call("export", f"{url}#{name}", tmp_path / "x.yaml", "--force")
        assert (tmp_path / "x.array").read_bytes() == A.tobytes()
        text = (tmp_path / "x.yaml").read_text()
        assert text == "version: [1, 0]\ndtype: float32\nshape: [600, 700]\n"
        assert sorted(p.name for p in tmp_path.glob("x.*~")) == []
        call("import", tmp_path / "x.yaml", f"{url}#of {name}")
    call("export", f"{url}#holes", tmp_path / "holes.yaml")
    assert os.stat(tmp_path / "holes.array").st_blocks * 512 <= 1 << 17
    root = dbopen(url)
    for name in "A", "F":
        assert np.array_equal(root[f"of {name}"][:], A)
        assert root[f"of {name}"].dtype == "<f4"
    dbclose(root)
    assert np.fromfile(tmp_path / "holes.array", "i8").nonzero()[0].tolist() == [70_000]


def test_the_kernel_copies(url, tmp_path, call, monkeypatch):
    """Our code does not read blocks that lie aligned in the file, also for .npy and raw bytes."""
    copied = []
    real = os.copy_file_range

    def copy(source, target, size, offset, at):
        copied.append((offset % 4096, n := real(source, target, size, offset, at)))
        return n

    monkeypatch.setattr(os, "copy_file_range", copy)
    monkeypatch.setattr(flat, "share_range", lambda *args: False)  # as most file systems
    for name in "x.yaml", "x.npy", "x.raw":
        copied.clear()
        call("export", f"{url}#A", tmp_path / name)
        blocks = A.nbytes >> 16 << 16
        assert sum(n for _, n in copied) >= blocks
        assert all(offset == 0 for offset, _ in copied)
    assert np.array_equal(np.load(tmp_path / "x.npy"), A)
    assert (tmp_path / "x.raw").read_bytes() == A.tobytes()


def test_a_damaged_block_is_not_copied(url, tmp_path, call):
    with open(url, "r+b") as file:
        at = file.read().index(A.tobytes()[1 << 16 : (1 << 16) + 64])
        file.seek(at)
        file.write(b"\1")
    for name in "x.yaml", "x.npy":
        assert "checksum" in call("export", "--check", f"{url}#A", tmp_path / name, code=1).stderr
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("x.") and p.name[2] not in "fl"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc")
def test_c_maps_them(url, tmp_path, call):
    call("export", f"{url}#S", tmp_path / "m.yaml")
    (tmp_path / "program.c").write_text(PROGRAM)
    subprocess.run(["cc", "-O1", "-o", "program", "program.c"], cwd=tmp_path, check=True)
    done = subprocess.run(
        ["./program", "m", "500"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert np.allclose([float(n) for n in done.stdout.split()], M @ np.arange(80))


def test_a_matrix_goes_to_plain_files_and_back(url, tmp_path, call):
    found = call("export", "--json", f"{url}#S", tmp_path / "m.yaml").json
    assert found["nnz"] == M.nnz
    text = (tmp_path / "m.yaml").read_text()
    assert text == (
        "version: [1, 0]\ndata_dtype: float64\nindices_dtype: int64\nindptr_dtype: int64\n"
        f"shape: [500, 80]\nnnz: {M.nnz}\n"
    )
    call("export", f"{url}#S", tmp_path / "m.npz")
    call("export", f"{url}#S", tmp_path / "m.h5ad")
    (tmp_path / "m.indices").write_bytes(M.indices.astype("i4").tobytes())
    (tmp_path / "m.indptr").write_bytes(M.indptr.astype("i4").tobytes())
    (tmp_path / "m.yaml").write_text(text.replace("int64", "int32"))
    call("import", tmp_path / "m.yaml", f"{url}#of yaml")
    call("import", "--as", "sparse", tmp_path / "m.npz", f"{url}#of npz")
    found = call("import", "--json", tmp_path / "m.h5ad", f"{url}#of h5ad").json
    assert (found["shape"], found["nnz"]) == ([500, 80], M.nnz)
    root = dbopen(url)
    for name in "yaml", "npz", "h5ad":
        assert (root[f"of {name}"][:] != M).nnz == 0
    assert root["of yaml"].index_dtype == "i4"
    assert not [name for name in root if "~" in name]
    dbclose(root)


def test_an_array_replaces_the_files_of_a_matrix(url, tmp_path, call):
    call("export", f"{url}#S", tmp_path / "x.yaml")
    done = call("export", f"{url}#A", tmp_path / "x.yaml", code=1)
    assert "exists already" in done.stderr
    call("export", "--force", f"{url}#A", tmp_path / "x.yaml")
    assert sorted(p.name for p in tmp_path.glob("x.*") if ".fs" not in p.name) == [
        "x.array",
        "x.yaml",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: [2, 0]", "1 is known"),
        ("version: [1, 0]\ndtype: float16\nshape: [3]", "'float16'"),
        ("version: [1, 0]\ndtype: float32\nshape: [3, -1]", "shape"),
        ("version: [1, 0]\ndtype: float32\nshape: [4]", "12 bytes from 0 on"),
        ("version: [1, 0]\nshape: [4]", "KeyError"),
        ("[", "is not YAML"),
        ("- 1", "does not describe"),
        (
            "version: [1, 0]\ndata_dtype: float32\nindices_dtype: int32\nindptr_dtype: int32\n"
            "shape: [3, 3]\nnnz: 7",
            "x.data",
        ),
    ],
)
def test_plain_files_that_are_wrong(url, tmp_path, call, text, message):
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "x.array").write_bytes(bytes(12))
    assert message in call("import", tmp_path / "x.yaml", f"{url}#new", code=1).stderr
    root = dbopen(url, read_only=True)
    assert "new" not in root
    dbclose(root)


def test_what_plain_files_cannot_have_is_refused(url, tmp_path, call):
    for name, file, message in [
        ("c", "x.yaml", "complex64: such files have bool, int8"),
        ("S", "x.csv", "sparse matrix: it is written into .npz, .h5ad"),
        ("A", "x.h5ad", "takes a sparse matrix"),
    ]:
        assert message in call("export", f"{url}#{name}", tmp_path / file, code=1).stderr
    assert not [p for p in tmp_path.iterdir() if "~" in p.name or ".part" in p.name]
    np.savez(tmp_path / "x.npz", x=1)
    done = call("import", "--as", "sparse", tmp_path / "x.npz", f"{url}#new", code=1)
    assert "is not a matrix" in done.stderr
    done = call("import", "--as", "sparse", tmp_path / "x.npz", f"{url}#S", code=1)
    assert "exists already" in done.stderr


def test_frozen_views_share_a_mapping(url):
    """As with daf's MMAP_CACHE, views of a file share a mapping; read-only ones are frozen."""
    root = dbopen(url, read_only=True)
    A = root["A"]
    views = [A[:], A[10:20], A[5], A[:, 3]]
    assert len({id(in_file(view)[0]) for view in views}) == 1
    assert np.shares_memory(views[0], views[1])
    assert not any(view.flags.writeable for view in [*views, root["S"][:].data])
    with pytest.raises(ValueError, match="read-only"):
        views[0][0, 0] = 1
    views.clear()
    dbclose(root)
