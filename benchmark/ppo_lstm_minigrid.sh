#!/usr/bin/env bash
# MiniGrid over seeds, each row with its memoryless control; -h explains the options. The table is the one place where a
# row's flags are written.
#    bash benchmark/ppo_lstm_minigrid.sh -w 2 -g memory-s13 -s "1 2 3"

script=ppo_lstm_minigrid.py
ten="1 2 3 4 5 6 7 8 9 10"
maze="--total-timesteps 10000000 --hidden-size 128 --encoder-size 64 --seq-len 32 --num-steps 128 --num-envs 256 --gamma 0.99"
maze="$maze --learning-rate 5e-4 --update-epochs 4 --eval-every 20 --eval-episodes 1000"
# small steps and advantages as they are, so that while no reward comes noise does not end the exploring
obstructed="--view-size 7 --hidden-size 64 --encoder-size 64 --seq-len 32 --num-steps 128 --gamma 0.99 --learning-rate 1e-3"
obstructed="$obstructed --no-anneal-lr --update-epochs 4 --no-norm-adv --ent-coef 0.005 --vf-coef 0.5 --eval-every 10"

# row | environment | further flags | seeds | seeds of the memoryless control
rows="
memory-s13           | MiniGrid-MemoryS13-v0            | --eval-env-id MiniGrid-MemoryS17Random-v0     | $ten      | 1 2 3
memory-s9            | MiniGrid-MemoryS9-v0             | --total-timesteps 1500000 --eval-every 4      | $ten      | 1 2 3
memory-s7            | MiniGrid-MemoryS7-v0             | --total-timesteps 1000000 --eval-every 4      | $ten      | 1 2 3
memory-s17random     | MiniGrid-MemoryS17Random-v0      |                                               | 1 2 3 4 5 | 1 2 3
small-memory-s13     | MiniGrid-MemoryS13-v0            | --hidden-size 8                               | 1 2 3 4 5 |
maze-s13             | MiniGrid-CustomMaze-S13-v0       | $maze                                         | $ten      | 1 2 3
mazerandom-s15       | MiniGrid-CustomMazeRandom-S15-v0 | $maze --eval-env-id MiniGrid-CustomMaze-S13-v0 MiniGrid-CustomMaze-S15-v0 | $ten      | 1 2 3
obstructedmaze-1dl   | MiniGrid-ObstructedMaze-1Dl-v0   | $obstructed --total-timesteps 3000000         | 1 2 3     | 1
obstructedmaze-1dlh  | MiniGrid-ObstructedMaze-1Dlh-v0  | $obstructed --total-timesteps 5000000         | 1         | 1
obstructedmaze-1dlhb | MiniGrid-ObstructedMaze-1Dlhb-v0 | $obstructed --total-timesteps 10000000        | 1         | 1
obstructedmaze-2dlh  | MiniGrid-ObstructedMaze-2Dlh-v0  | $obstructed --total-timesteps 6000000         | 1         | 1
"

# shellcheck source=benchmark/run.sh
. "$(dirname "${BASH_SOURCE[0]}")/run.sh"
