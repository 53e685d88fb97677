#!/usr/bin/env bash
# Agents for a W&B sweep on this machine; -h explains the options.
#    wandb sweep --project ppo-lstm benchmark/sweep_minigrid.yaml          # prints SWEEP_ID
#    bash benchmark/run_sweep.sh -s ENTITY/PROJECT/SWEEP_ID -g 0,1 -n 4
usage() {
    cat <<'END'
usage: benchmark/run_sweep.sh -s SWEEP_ID [-g GPUS] [-n AGENTS] [-c COUNT] [-r]
  -s  the sweep: ID, PROJECT/ID or ENTITY/PROJECT/ID
  -g  GPUs, "0,1"; without it the agents run on the CPU
  -n  agents on each GPU, or on the CPU (1)
  -c  runs of each agent (until the sweep ends)
  -r  first finish the runs of this sweep that were stopped or killed here after their first checkpoint; not while other
      agents of it run here
Environment: PYTHON is the interpreter (python). An agent's output goes to runs/logs/. Ctrl-C or TERM lets the runs save, then
ends; start it again with -r to go on.
END
}

sweep='' gpus=cpu agents=1 count=() resumes=''
while getopts s:g:n:c:rh option; do
    case $option in
        s) sweep=$OPTARG ;;
        g) gpus=$OPTARG ;;
        n) agents=$OPTARG ;;
        c) count=(--count "$OPTARG") ;;
        r) resumes=1 ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[[ $sweep ]] || { usage >&2; exit 2; }
[[ $agents =~ ^[1-9][0-9]*$ ]] || { echo "error: -n takes a number from 1, got '$agents'" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2 # the sweep names the script as seen from here
mkdir -p runs/logs

python=${PYTHON:-python}

# W&B notes each run's id in a file of the sweep and in the name of a folder inside the run's
unfinished=()
if [[ $resumes ]]; then
    shopt -s nullglob
    for config in "${WANDB_DIR:-.}"/wandb/sweep-"${sweep##*/}"/config-*.yaml; do
        id=${config##*/config-}
        for run in runs/*/wandb/*run-*-"${id%.yaml}"; do
            run=${run%/wandb/*}
            [[ -f $run/results.json || ! -f $run/agent.pt ]] || unfinished+=("$run/agent.pt")
            break # each resumption has made another
        done
    done
    echo "${#unfinished[@]} runs to finish first"
fi

pids=() stopping=''
# shellcheck disable=SC2329  # the trap below calls it
stop() {
    [[ -z $stopping ]] || return 0
    stopping=1
    echo "stopping: the runs save and end"
    ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null
}
trap stop INT TERM HUP

await() { # PID, through signals that end `wait`; -> its exit code
    local status
    while true; do
        wait "$1"
        status=$?
        kill -0 "$1" 2>/dev/null || return "$status"
    done
}

agent() { # CHECKPOINT...: finish these, then ask for new runs; in a subshell
    local child='' told='' status=0 checkpoint script
    # Each child has a session of its own: the terminal's Ctrl-C must not reach it beside our TERM. The agent passes on each
    # signal that it gets, and at a second one a run ends without saving.
    trap 'told=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM
    trap '' INT HUP
    for checkpoint; do
        [[ -z $told ]] || return 143
        script=$(grep -aoE '[A-Za-z0-9_-]+\.py' "$checkpoint" | head -n 1) # the first text in it is the script's name
        setsid "$python" "${script:-?}" --resume "$checkpoint" --track &
        child=$!
        [[ -z $told ]] || kill -TERM "$child"
        await "$child" || status=$?
    done
    [[ -z $told ]] || return 143
    setsid "$python" -m wandb agent --forward-signals "${count[@]}" "$sweep" &
    child=$!
    [[ -z $told ]] || kill -TERM "$child"
    await "$child" && return "$status"
}

slots=$((agents * $(wc -w <<<"${gpus//,/ }")))
for gpu in ${gpus//,/ }; do
    for ((i = 1; i <= agents; i++)); do
        [[ -z $stopping ]] || break 2
        log=runs/logs/sweep_${sweep##*/}_${gpu}_$i.log
        own=() # every so-many-th of the unfinished
        for ((j = ${#pids[@]}; j < ${#unfinished[@]}; j += slots)); do own+=("${unfinished[j]}"); done
        export CUDA_VISIBLE_DEVICES=${gpu#cpu}
        agent "${own[@]}" </dev/null >>"$log" 2>&1 &
        pids+=($!)
        [[ -z $stopping ]] || kill -TERM "$!"
        echo "agent $i on $gpu: $log${own[0]:+, first ${#own[@]} to finish}"
    done
done

failed=0
for pid in "${pids[@]}"; do
    await "$pid" || failed=$((failed + 1))
done
[[ -z $stopping ]] || exit 143
((failed == 0)) || { echo "$failed of ${#pids[@]} agents failed; their logs say why" >&2; exit 1; }
