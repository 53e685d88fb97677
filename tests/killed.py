"""`python killed.py HOW N SCRIPT FLAGS...`: a script that kills itself with SIGKILL. HOW is `write`: in the middle of
the N-th file after its first agent.pt, or `rename`: before that file gets its name."""

import os
import runpy
import signal
import sys

how, number, script = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(script))
begun, files, fsync, replace = False, 0, os.fsync, os.replace


def fsync_or_die(file):
    global files
    files += begun
    if how == "write" and files == number:
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)


def replace_or_die(source, target):
    global begun
    if how == "rename" and files == number:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    begun = begun or target.endswith("agent.pt")


os.fsync, os.replace = fsync_or_die, replace_or_die
runpy.run_path(script, run_name="__main__")
