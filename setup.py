"""Build of the compiled modules, and README as an index shows it; pyproject.toml has all else."""

import os
import platform
import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# folder -> import name; the same as [tool.setuptools.package-dir]
PACKAGES = {"bigfile": "wendelin.bigfile", "lib": "wendelin.lib"}
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "auto_pickle": False,
    "autotestdict": False,
}
C_FLAGS = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-cast-function-type"]
if platform.libc_ver()[0] == "glibc":
    # Else glibc allocates a thread's variables of a loaded module when they are first accessed. For
    # ours that is in a signal handler, and without memory it is abort(). musl does it beforehand.
    C_FLAGS.append("-ftls-model=initial-exec")


def cython_path() -> str:
    """Return a folder where sources lie under their import names, for cimport."""
    root = Path("build/cython")
    for folder, name in PACKAGES.items():
        link = root.joinpath(*name.split("."))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
    return str(root)


class cython_build_ext(build_ext):
    """Translate Cython to C before it is compiled."""

    def finalize_options(self) -> None:
        """See Command."""
        from Cython.Build import cythonize

        self.distribution.ext_modules[:] = cythonize(
            self.distribution.ext_modules,
            include_path=[cython_path()],
            compiler_directives=DIRECTIVES,
            build_dir="build/c",
            show_all_warnings=False,
        )
        super().finalize_options()


def readme() -> str:
    """Return README.md with links that work anywhere, to files of the repository."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    source = project["urls"]["Source"]
    text = re.sub(
        r"(!\[[^\]]*\]\()(?!\w+:)", rf"\1{source}/-/raw/master/", Path("README.md").read_text()
    )
    return re.sub(r"(?<=\]\()(?!#|\w+:)", f"{source}/-/blob/master/", text)


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            ".".join((name, *path.relative_to(folder).with_suffix("").parts)),
            [str(path)],
            extra_compile_args=C_FLAGS,
        )
        for folder, name in PACKAGES.items()
        for path in sorted(Path(folder).rglob("*.pyx"))
    ],
    cmdclass={"build_ext": cython_build_ext},
)
