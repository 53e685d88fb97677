#!/usr/bin/env bash
# MiniGrid over seeds, each row with its memoryless control; -h explains the options.
#    bash benchmark/ppo_lstm_minigrid.sh -w 2 -g memory-s13 -s 1-3
run="ppo_lstm_minigrid.py --env-id MiniGrid"
short="--hidden-size 8 --hidden-layer-size 16 --seq-len 8 --learning-rate 8e-4 --num-steps 1024 --num-envs 16"
long="--num-envs 128 --update-epochs 4 --gamma 0.99 --adam-betas .9 .999 --rand-move-eps 0" # hundreds of steps
maze="$long --total-timesteps 10000000 --hidden-size 128 --ent-coef 0.01 --eval-every 40 --eval-episodes 1000"
both="--eval-env-id MiniGrid-CustomMaze-S13-v0 MiniGrid-CustomMaze-S15-v0"
# a reward comes late and rarely: what a cell of the view shows for the first time in an episode pays a little
novel="$long --hidden-size 64 --novelty-coef 0.005 --eval-every 20"
# one flag at a time: how far can it be moved until MemoryS13 is not learned any more?
for x in learning-rate={0.000625,0.00125,0.005} num-envs={16,32,128,256,512} num-steps={32,64,256,512,1024} \
    seq-len={8,16,64} hidden-size={8,16,64,128,256} num-minibatches={2,4,16,32} update-epochs={2,4,16}; do
    case $x in # evaluations as many steps apart as by default, and with more environments the same batch
    num-envs=*) more="--num-steps $((8192 / ${x#*=})) --seq-len $((${x#*=} < 512 ? 32 : 16))" ;;
    num-steps=*) more="--eval-every $((1280 / ${x#*=}))" ;;
    *) more= ;;
    esac
    points+="$x | ppo_lstm_minigrid.py --${x/=/ } $more | 1-5"$'\n'
done
# name | script and flags | seeds | seeds of the memoryless control
rows="
memory-s13           | $run-MemoryS13-v0                                                      | 1-59 | 1-3
memory-s9            | $run-MemoryS9-v0 --total-timesteps 1000000 --eval-every 4              | 1-59 | 1-3
memory-s7            | $run-MemoryS7-v0 --total-timesteps 600000 --eval-every 4               | 1-59 | 1-3
memory-s17random     | $run-MemoryS17Random-v0 --total-timesteps 5000000                      | 1-5  | 1-3
small-memory-s13     | $run-MemoryS13-v0 --hidden-size 8 --total-timesteps 5000000            | 1-10 | 1
short-memory-s13     | $run-MemoryS13-v0 $short --total-timesteps 10000000                    | 1-10 | 1
maze-s13             | $run-CustomMaze-S13-v0 $maze                                           | 1-10 | 1-3
mazerandom-s15       | $run-CustomMazeRandom-S15-v0 $maze $both                               | 1-5  | 1
obstructedmaze-1dl   | $run-ObstructedMaze-1Dl-v0 $novel --total-timesteps 1000000            | 1-3  | 1
obstructedmaze-1dlh  | $run-ObstructedMaze-1Dlh-v0 $novel --total-timesteps 1500000           | 1-3  | 1
obstructedmaze-1dlhb | $run-ObstructedMaze-1Dlhb-v0 $novel --total-timesteps 2000000          | 1-3  | 1
obstructedmaze-2dlh  | $run-ObstructedMaze-2Dlh-v0 $novel --total-timesteps 2000000           | 1-3  | 1
obstructedmaze-2dlhb | $run-ObstructedMaze-2Dlhb-v1 $novel --total-timesteps 5000000          | 1-2  | 1
$points"
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/run.py" --rows "$rows" "$@"
