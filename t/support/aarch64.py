"""Builds the pager for aarch64, and runs its decoding of faults there: python t/support aarch64

It needs a cross compiler and qemu-user; without them, it prints what to install. The decoding says
whether a fault was a read or a write. It is C code, and taken from pagefault.pyx. It is tried with
contexts that are made here, and with faults that happen.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support import ROOT

COMPILER = "aarch64-linux-gnu-gcc"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"

MAIN = r"""
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
%(decoding)s

static int failures;
#define CHECK(what) do { if (!(what)) { failures++; printf("FAILED: %%s\n", #what); } } while (0)

static unsigned char *put(unsigned char *rec, uint32_t magic, uint32_t size) {
    memcpy(rec, &magic, 4);
    memcpy(rec + 4, &size, 4);
    return rec + size;
}

static int decoded(int fpsimd, int with_esr, uint64_t esr) {
    static ucontext_t uc;
    unsigned char *rec = uc.uc_mcontext.__reserved;
    memset(&uc, 0xff, sizeof(uc));
    if (fpsimd)
        rec = put(rec, 0x46508001, 528);
    if (with_esr) {
        memcpy(rec + 8, &esr, 8);
        rec = put(rec, 0x45535201, 16);
    }
    put(rec, 0, 0);
    return wc_fault_is_write(&uc);
}

static sigjmp_buf back;
static volatile int seen, has_esr;

static void on_fault(int sig, siginfo_t *info, void *context) {
    unsigned char *rec = ((ucontext_t *)context)->uc_mcontext.__reserved;
    uint32_t *r = (uint32_t *)rec;
    while (r[0] != 0 && r[1] != 0 && (unsigned char *)r < rec + 4000) {
        has_esr |= r[0] == 0x45535201;
        r = (uint32_t *)((unsigned char *)r + r[1]);
    }
    seen = wc_fault_is_write(context);
    siglongjmp(back, 1);
}

int main(void) {
    /* a data abort from user space (EC 0x24), translation fault; WnR is bit 6 */
    uint64_t read = 0x92000007, write = 0x92000047;
    for (int fpsimd = 0; fpsimd < 2; fpsimd++) {
        CHECK(decoded(fpsimd, 1, read) == 0);
        CHECK(decoded(fpsimd, 1, write) == 1);
        CHECK(decoded(fpsimd, 0, 0) == 0);
    }
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    volatile char *page = mmap(NULL, 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile char c;
    seen = -1;
    if (!sigsetjmp(back, 1))
        c = page[5];
    CHECK(seen == 0);
    seen = -1;
    if (!sigsetjmp(back, 1))
        page[5] = 1;
    if (has_esr)
        CHECK(seen == 1);
    mprotect((void *)page, 65536, PROT_READ);
    seen = -1;
    c = page[5];
    CHECK(seen == -1);
    if (!sigsetjmp(back, 1))
        page[5] = c;
    if (has_esr)
        CHECK(seen == 1);
    printf("made contexts: decoded; faults: %%s\n",
           has_esr ? "decoded" : "not asked, as this emulator tells no ESR");
    return failures != 0;
}
"""


def decoding() -> str:
    """Return the C that decodes faults, out of pagefault.pyx."""
    text = (ROOT / "bigfile" / "virtmem" / "pagefault.pyx").read_text()
    blocks = re.findall(r'cdef extern from \*:\n    """\n(.*?)"""', text, re.DOTALL)
    (block,) = [b for b in blocks if "wc_fault_is_write" in b]
    return str(block)


def build(folder: Path) -> None:
    """Build all compiled modules with this Python's headers, which fit all 64-bit Linuxes."""
    shutil.copytree(ROOT / "bigfile", folder / "bigfile")
    shutil.copytree(ROOT / "lib", folder / "lib")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "wendelin").mkdir()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "-b", "out", "-j", str(os.cpu_count())],
        check=True,
        cwd=folder,
        env=os.environ
        | {"CC": COMPILER, "LDSHARED": f"{COMPILER} -shared", "CFLAGS": "-Werror=implicit"},
    )
    built = list((folder / "out").rglob("*.so"))
    sources = [path for top in ("bigfile", "lib") for path in (ROOT / top).rglob("*.pyx")]
    assert len(built) == len(sources), built
    for path in built:
        assert path.read_bytes()[18:20] == b"\xb7\x00", f"{path} is not for aarch64"
    print(f"{len(built)} modules are built for aarch64")


def decode(folder: Path, emulator: str) -> None:
    """Compile the decoding and its checks, and run them in an emulator."""
    (folder / "decode.c").write_text(MAIN % {"decoding": decoding()})
    flags = ["-O2", "-Wall", "-Wno-unused-variable", "-static"]
    program = folder / "decode"
    subprocess.run([COMPILER, *flags, "-o", program, f"{program}.c"], check=True)
    subprocess.run([emulator, program], check=True)


def main() -> None:
    emulator = next(filter(shutil.which, EMULATORS), None)
    if shutil.which(COMPILER) is None or emulator is None:
        why = f"there is no {COMPILER}, or no {EMULATORS[0]}: apt-get install {PACKAGES}"
        print(f"SKIPPED: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="wendelin-aarch64-") as name:
        decode(Path(name), emulator)
        build(Path(name))


if __name__ == "__main__":
    main()
