#!/usr/bin/env bash
# CartPole without velocities over seeds, with its memoryless control; -h explains the options. The table is the one place
# where a row's flags are written.
#    bash benchmark/ppo_lstm_cartpole_novel.sh -w 2

script=ppo_lstm_cartpole_novel.py
ten="1 2 3 4 5 6 7 8 9 10"

# row | environment | further flags | seeds | seeds of the memoryless control
rows="
cartpole-novel | CartPoleNoVel-v0 | | $ten | 1 2 3
"

# shellcheck source=benchmark/run.sh
. "$(dirname "${BASH_SOURCE[0]}")/run.sh"
