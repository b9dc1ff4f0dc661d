"""What a process imports before it works: counted, not timed."""

import pytest
from support.child import check_child

pytestmark = pytest.mark.once


def imported(code):
    return set(check_child(f"import sys\n{code}\nprint(*sys.modules)").split())


#: each takes a noticeable part of the time that an import takes, and a local file needs none
SLOW = {"ZEO", "asyncio", "ssl", "email", "importlib.metadata", "zodburi", "html", "click"}


def test_arrays_need_neither_networks_nor_metadata_nor_the_command_line():
    new = imported("import wendelin.bigarray.array_zodb") - imported("import numpy, ZODB")
    assert not new & SLOW
    assert not {name for name in new if name.startswith("wendelin.cli")}


def test_a_local_file_needs_no_network(tmp_path):
    new = imported(f"""
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbopen
import transaction
root = dbopen({str(tmp_path / "1.fs")!r})
root["A"] = ZBigArray((1,), float)
transaction.commit()
root["A"][0] = 1
transaction.commit()
assert root["A"][0] == 1
""")
    assert not new & {"ZEO", "asyncio", "ssl"}


def test_help_loads_no_command():
    new = imported("""
from wendelin.cli.program import main
assert main(["--help"]) == 0
""")
    assert not new & {"numpy", "ZODB", "wendelin.cli.ls", "wendelin.demo.command"}


def test_help_says_what_the_commands_say(capsys):
    import click

    from wendelin.cli.program import Commands, main

    assert main(["--help"]) == 0
    ours = capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commands, "format_commands", click.Group.format_commands)
        assert main(["--help"]) == 0
    assert ours == capsys.readouterr().out


def test_the_version_is_known():
    from importlib.metadata import version

    import wendelin

    assert wendelin.__version__ == version("wendelin.core")
