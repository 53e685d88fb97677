"""Run a script that kills itself with SIGKILL at a chosen moment after its first checkpoint.

    python killed.py HOW N SCRIPT FLAGS...

HOW is `line`: at the N-th line of the script that is executed; `write`: in the middle of the N-th file; `rename`: before the
N-th gets its name; `never`: not at all, and the last line printed counts both. Lines are counted from the first agent.pt on,
which is the second file with --save-every 1.
"""

import os
import runpy
import signal
import sys

how, number, script = sys.argv[1], int(sys.argv[2]), os.path.abspath(sys.argv[3])
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(script))
lines, files = 0, 0
fsync, replace = os.fsync, os.replace


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fsync_or_die(descriptor):
    if how == "write" and files == number:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        die()
    fsync(descriptor)


def replace_or_die(source, target):
    global files
    if how == "rename" and files == number:
        die()
    replace(source, target)
    files += 1


def count(frame, event, _argument):
    global lines
    if frame.f_code.co_filename != script:
        return None
    if event == "line" and files > 1:
        lines += 1
        if how == "line" and lines == number:
            die()
    return count


os.fsync, os.replace = fsync_or_die, replace_or_die
if how in ("line", "never"):
    sys.settrace(count)
try:
    runpy.run_path(script, run_name="__main__")
finally:
    sys.settrace(None)
    print(lines, files)
