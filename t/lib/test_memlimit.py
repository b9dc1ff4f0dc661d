"""lib/memlimit.py: how much memory this process may use."""

import os

import pytest

from wendelin.lib.memlimit import memory_limit, parse_share, ram_limit

RAM = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
M = 1 << 20
V1_NONE = str(0x7FFFFFFFFFFFF000)  # what version 1 says for "no limit"


@pytest.fixture
def machine(tmp_path):
    """Return a function that makes files of a machine from {path: text}; it returns their root."""

    def make(files: dict[str, str]) -> str:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return str(tmp_path)

    return make


def test_this_machine():
    assert 0 < memory_limit() <= RAM


def test_no_cgroups(machine):
    assert memory_limit(machine({})) == RAM


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_version_2(machine, mount):
    """The smallest limit holds, at whatever level it is."""
    files = {
        "proc/self/cgroup": "0::/user.slice/a.service",
        f"{mount}/user.slice/a.service/memory.max": str(64 * M),
        f"{mount}/user.slice/memory.max": "max",
    }
    assert memory_limit(machine(files)) == 64 * M
    assert memory_limit(machine({f"{mount}/user.slice/memory.max": str(32 * M)})) == 32 * M


def test_version_1(machine):
    mount = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a/b\n3:cpuset:/\n0::/",
        f"{mount}/memory.limit_in_bytes": V1_NONE,
        f"{mount}/a/memory.limit_in_bytes": str(64 * M),
        f"{mount}/a/b/memory.limit_in_bytes": V1_NONE,
    }
    assert memory_limit(machine(files)) == 64 * M


def test_container(machine):
    """The group's name is the host's; what is mounted is the group itself."""
    files = {
        "proc/self/cgroup": "4:memory:/docker/0123\n0::/../../other",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(64 * M),
    }
    assert memory_limit(machine(files)) == 64 * M


@pytest.mark.parametrize("text", ["", "garbage", "0::", "4:memory", "max:max:max"])
def test_what_makes_no_sense_limits_nothing(machine, text):
    files = {"proc/self/cgroup": text, "sys/fs/cgroup/memory.max": "nonsense"}
    assert memory_limit(machine(files)) == RAM


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1000000", 1_000_000),
        ("64K", 64 << 10),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        (" 2G ", 2 << 30),
        ("1T", 1 << 40),
        ("9007199254740993", 9007199254740993),  # exact: no float has it
        ("100%", memory_limit()),
        ("25%", memory_limit() // 4),
        ("12.5%", memory_limit() // 8),
    ],
)
def test_sizes(text, size):
    assert parse_share(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "0%", "101%", "M", "%", "1X", "1 000", "1e9", "nan", "inf%", "ten", "5%%", "٣"],
)
def test_texts_that_are_not_shares(text):
    with pytest.raises(ValueError, match=r"1\.5G; or a part of the memory, as in 25%") as e:
        parse_share(text)
    assert repr(text) in str(e.value)


def test_ram_limit(monkeypatch):
    monkeypatch.delenv("WENDELIN_CORE_RAM", raising=False)
    assert ram_limit() == memory_limit() // 2
    monkeypatch.setenv("WENDELIN_CORE_RAM", "512M")
    assert ram_limit() == 512 * M
    monkeypatch.setenv("WENDELIN_CORE_RAM", "lots")
    with pytest.raises(ValueError, match=r"WENDELIN_CORE_RAM.*'lots'"):
        ram_limit()
