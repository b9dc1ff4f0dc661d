"""Thousands of small arrays in one process: descriptors, memory, and what a commit looks at."""

import os

import pytest
from support.child import check_child

#: 10,000 with a limit of 1024 descriptors, as the long form
N, NOFILE = (10_000, 1024) if os.environ.get("WENDELIN_CORE_TEST_MANY") else (600, 128)


@pytest.mark.database
@pytest.mark.only("fs")
def test_thousands_of_arrays_at_few_descriptors(tmp_path):
    check_child(
        """
        import os, resource, sys
        import transaction
        from BTrees.IOBTree import IOBTree
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.bigfile.virtmem.handle import ram_stat
        from wendelin.lib.zodb import dbclose, dbopen
        path, n, nofile = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, hard))
        OS = os.sysconf("SC_PAGESIZE")
        root = dbopen(path)
        root["arrays"] = arrays = IOBTree()
        for i in range(n):
            arrays[i] = ZBigArray((100,), "f8")
        transaction.commit()
        views = [arrays[i][:] for i in range(n)]
        before = ram_stat()
        for turn in (1, 2):
            for i, view in enumerate(views):
                view[i % 100] = turn * i
            assert ram_stat()[2] - before[2] == n * OS, (ram_stat(), before)
            transaction.commit()
            assert ram_stat()[1] - before[1] <= n * OS, (ram_stat(), before)
        assert len(os.listdir("/proc/self/fd")) < 40
        savepoint = None
        views[0][5] = 7
        savepoint = transaction.savepoint()
        views[0][5] = 8
        savepoint.rollback()
        assert views[0][5] == 7 and ram_stat()[2] - before[2] == OS
        transaction.commit()
        del views, view
        dbclose(root)
        root = dbopen(path)
        assert all(root["arrays"][i][i % 100] == 2 * i for i in range(0, n, 7))
        assert root["arrays"][0][5] == 7
        dbclose(root)
        """,
        str(tmp_path / "x.fs"),
        str(N),
        str(NOFILE),
        timeout=600,
        WENDELIN_CORE_RAM="256M",
    )


@pytest.mark.database
@pytest.mark.only("fs")
def test_a_view_of_a_small_array_is_little_work(tmp_path):
    """Python calls of a view, and what it keeps for the garbage collector to look at."""
    check_child(
        """
        import cProfile, gc, pstats, sys
        import transaction
        from BTrees.IOBTree import IOBTree
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.lib.zodb import dbopen
        N = 50
        root = dbopen(sys.argv[1])
        root["arrays"] = arrays = IOBTree()
        for i in range(2 * N):
            arrays[i] = ZBigArray((100,), "f8")
        transaction.commit()
        root._p_jar.cacheMinimize()
        keep = [arrays[i][:] for i in range(N)]   # what the first ones make once
        some = [arrays[i] for i in range(N, 2 * N)]
        for A in some:
            A._p_activate()
            A.zfile._p_activate()

        def calls(function):
            profile = cProfile.Profile()
            gc.collect()
            gc.disable()
            before = len(gc.get_objects())
            result = profile.runcall(function)
            n = len(gc.get_objects()) - before
            gc.enable()
            keep.append(result)
            return pstats.Stats(profile).total_calls / N, n / N

        first, objects = calls(lambda: [A[:] for A in some])
        assert first < 200, first                 # it was 255
        assert objects < 21, objects              # it was 35
        again, objects = calls(lambda: [A[:] for A in some])
        assert again < 30, again                  # it was 60
        assert objects < 1.1, objects
        transaction.commit()
        for view in keep[-1]:
            view[3] = 7
        transaction.commit()
        assert all(A[3] == 7 for A in some)
        """,
        str(tmp_path / "x.fs"),
        WENDELIN_CORE_READY="100",  # in the time of a busy machine, too
    )
