"""Run a script that kills itself with SIGKILL at a chosen moment after its first agent.pt.

    python killed.py HOW N SCRIPT FLAGS...

HOW is `line`: at the N-th line of the script that is executed; `write`: in the middle of the N-th file; `rename`: before
the N-th gets its name; `never`: not at all, and the last line printed counts both.
"""

import os
import runpy
import signal
import sys

how, number, script = sys.argv[1], int(sys.argv[2]), os.path.abspath(sys.argv[3])
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(script))
begun, lines, files = False, 0, 0
fsync, replace = os.fsync, os.replace


def fsync_or_die(descriptor):
    if how == "write" and begun and files + 1 == number:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)


def replace_or_die(source, target):
    global begun, files
    files += begun
    if how == "rename" and files == number:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    begun = begun or target.endswith("agent.pt")


def count(frame, event, _argument):
    global lines
    if frame.f_code.co_filename != script:
        return None
    lines += begun and event == "line"
    if how == "line" and lines == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return count


os.fsync, os.replace = fsync_or_die, replace_or_die
if how in ("line", "never"):
    sys.settrace(count)
try:
    runpy.run_path(script, run_name="__main__")
finally:
    sys.settrace(None)
    print(lines, files)
