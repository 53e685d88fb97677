#!/usr/bin/env bash
# Agents for a W&B sweep on this machine; -h explains the options.
#    wandb sweep --project ppo-lstm benchmark/sweep_minigrid.yaml          # prints SWEEP_ID
#    bash benchmark/run_sweep.sh -s ENTITY/PROJECT/SWEEP_ID -g 0,1 -n 4
usage() {
    cat <<'END'
usage: benchmark/run_sweep.sh -s SWEEP_ID [-g GPUS] [-n AGENTS] [-c COUNT]
  -s  the sweep: ID, PROJECT/ID or ENTITY/PROJECT/ID
  -g  GPUs, "0,1"; without it the agents run on the CPU
  -n  agents on each GPU, or on the CPU (1)
  -c  runs of each agent (until the sweep ends)
Environment: PYTHON is the interpreter (python). An agent's output goes to runs/logs/. Ctrl-C or TERM lets the runs save, then
ends; such a run is continued by hand, with --resume.
END
}

sweep='' gpus=cpu agents=1 count=()
while getopts s:g:n:c:h option; do
    case $option in
        s) sweep=$OPTARG ;;
        g) gpus=$OPTARG ;;
        n) agents=$OPTARG ;;
        c) count=(--count "$OPTARG") ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $sweep ]] || { usage >&2; exit 2; }
[[ $agents =~ ^[1-9][0-9]*$ ]] || { echo "error: -n takes a number from 1, got '$agents'" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2 # the sweep names the script as seen from here
mkdir -p runs/logs

pids=() stopping=''
# shellcheck disable=SC2329  # the trap below calls it
stop() {
    [[ -z $stopping ]] || return 0
    stopping=1
    echo "stopping: the runs save and end"
    ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null
}
trap stop INT TERM HUP
for gpu in ${gpus//,/ }; do
    for ((i = 1; i <= agents; i++)); do
        log=runs/logs/sweep_${sweep##*/}_${gpu}_$i.log
        devices=${gpu#cpu}
        # A session of its own: the terminal's Ctrl-C must not reach the agent beside our TERM. The agent passes on each
        # signal that it gets, and at a second one a run ends without saving.
        CUDA_VISIBLE_DEVICES=$devices setsid "${PYTHON:-python}" -m wandb agent --forward-signals "${count[@]}" "$sweep" \
            </dev/null >>"$log" 2>&1 &
        pids+=($!)
        echo "agent $i on $gpu: $log"
    done
done

failed=0
for pid in "${pids[@]}"; do
    while true; do
        wait "$pid"
        status=$?
        kill -0 "$pid" 2>/dev/null || break # else our own signal ended `wait`
    done
    ((status == 0)) || failed=$((failed + 1))
done
[[ -z $stopping ]] || exit 143
((failed == 0)) || { echo "$failed of ${#pids[@]} agents failed; their logs say why" >&2; exit 1; }
