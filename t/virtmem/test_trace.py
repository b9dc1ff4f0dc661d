"""WENDELIN_CORE_TRACE: a line for each transition of a page."""

import re

from support.child import check_child, run_child

PROGRAM = """
    import numpy as np
    from wendelin.bigarray import BigArray
    from wendelin.bigfile import BigFile

    class File(BigFile):
        def __repr__(self):
            return "<F>"

        def loadblk(self, blk, buf):
            if blk == 2:
                raise OSError("gone")
            return b"" if blk == 1 else b"x" * 4096

        def storeblk(self, blk, buf):
            pass

    h = File(4096).fileh_open()
    a = BigArray((3 * 4096,), "u1", h)[:]
    a[0], a[4096]                           # a block of bytes, and a hole
    a[1] = 1
    h.dirty_writeout(3)
    h.invalidate_page(0)
    try:
        h.load(2, 1)
    except Exception as e:
        print(e.__cause__)
"""

LINE = re.compile(r"\d+\.\d{6} \d+ (.*) -> (.*), block (\d+) of <F>")


def test_a_line_for_each_transition(tmp_path):
    file = tmp_path / "trace"
    check_child(PROGRAM, WENDELIN_CORE_TRACE=str(file))
    ways = {0: [], 1: [], 2: []}
    for line in file.read_text().splitlines():
        before, after, blk = LINE.fullmatch(line).groups()
        way = ways[int(blk)]
        # a page that gave back its memory first has none when it becomes EMPTY
        assert before.split()[0] == (way[-1].split()[0] if way else "EMPTY"), line
        way.append(after)
    assert ways == {
        0: ["LOADING", "LOADED MEMFD", "DIRTY MEMFD", "LOADED MEMFD", "EMPTY"],
        1: ["LOADING", "LOADED ZEROS"],
        2: ["LOADING", "EMPTY"],
    }


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / "none" / "trace"
    done = run_child("import wendelin.bigfile", WENDELIN_CORE_TRACE=str(path))
    assert done.returncode != 0
    assert "WENDELIN_CORE_TRACE" in done.stderr
    assert str(path) in done.stderr
