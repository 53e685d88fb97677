#!/usr/bin/env bash
# CartPole without velocities over seeds, with its memoryless control; -h explains the options.
#    bash benchmark/ppo_lstm_cartpole_novel.sh -w 2
# name | script and flags | seeds | seeds of the memoryless control
rows="
cartpole-novel | ppo_lstm_cartpole_novel.py | 1-20 | 1-3
"
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/run.py" --rows "$rows" "$@"
