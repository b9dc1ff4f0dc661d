#!/bin/sh
# Runs a command with the sanitizers of gcc before all other libraries, as they have to be in a
# process whose program, Python, was not built with them.
#
# - SIGSEGV and SIGBUS are the pager's: they are faults of pages, and no errors.
# - Leaks are not looked for: Python keeps what it has at exit. t/support/soak.py looks for ours.
# - Python's own allocator is off, so that what extensions take from it is looked at, too.
set -eu
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
ASAN_OPTIONS=handle_segv=0:handle_sigbus=0:allow_user_segv_handler=1:detect_leaks=0
ASAN_OPTIONS=$ASAN_OPTIONS:allocator_may_return_null=1:abort_on_error=1
UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
PYTHONMALLOC=malloc
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS PYTHONMALLOC
exec "$@"
