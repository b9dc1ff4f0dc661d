"""Run a program of this folder: python t/support NAME ARGUMENTS; without a name, list them."""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def programs():
    """Return {name of a program: the first line of its docstring}."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        text = path.read_text()
        if path.name != "__main__.py" and "\nif __name__ ==" in text:
            found[path.stem.replace("_", "-")] = ast.get_docstring(ast.parse(text)).split("\n")[0]
    return found


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    known = programs()
    if name not in known:
        if name not in ("-h", "--help"):
            sys.exit(f"{name!r} is not a program of {HERE}: {', '.join(known)}")
        print("usage: python t/support NAME ARGUMENTS\n")
        print("\n".join(f"{name:20} {about}" for name, about in known.items()))
        return
    del sys.argv[1]
    sys.path[0] = str(HERE.parent)  # to import `support`, whose modules must not hide others
    runpy.run_module(f"support.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)


main()
