#!/usr/bin/env bash
# How far can a flag be moved, one at a time, until MemoryS13 is not learned any more? In the middle: the row memory-s13.
#    bash benchmark/sensitivity.sh -w 2 -g "hidden-size=* seq-len=*"; python benchmark/report.py runs
point() { rows+="$1=$2 | ppo_lstm_minigrid.py --$1 $2 ${*:3} | ${seeds:-1-5}"$'\n'; }
for x in 0.000625 0.00125 0.005 0.01; do point learning-rate $x; done
for x in 16 32 128 256; do point num-envs $x --num-steps $((8192 / x)); done # the batch stays as it is
point num-envs 512 --num-steps 16 --seq-len 16
for x in 32 64 256 512 1024; do point num-steps $x --eval-every $((1280 / x)); done
for x in 8 16 64; do point seq-len $x; done
seeds=1-10 point hidden-size 8
for x in 16 64 128 256; do point hidden-size $x; done
for x in 2 4 16 32; do point num-minibatches $x; done
for x in 2 4 16; do point update-epochs $x; done
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/run.py" --rows "$rows" "$@"
