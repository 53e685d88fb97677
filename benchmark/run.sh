# The engine of the launchers: each sets `script` and `rows`, then sources this file. Linux, bash 4.3 or newer.
# shellcheck shell=bash disable=SC2154  # script and rows are the launcher's
usage() {
    cat <<'END'
usage: benchmark/LAUNCHER.sh [-w WORKERS] [-s "SEEDS"] [-g "ROWS"] [-o DIR] [-t THREADS] [-j NUMBER] [-l] [-- FLAGS...]
  -w  runs at a time (1)
  -s  these seeds instead of the table's, "1 2 3"
  -g  these rows of the table only; patterns work: "memory-s7 maze-*"
  -o  folder to work in (.): runs go to DIR/runs/, their logs to DIR/runs/logs/
  -t  CPU threads of each run (1)
  -j  only job NUMBER of the list, counted from 1
  -l  list the jobs, run nothing
  --  further flags for every run: -- --total-timesteps 100000
Environment: PYTHON is the interpreter (python). Start it again to go on: finished runs are skipped, interrupted ones are
resumed. Ctrl-C or TERM lets the runs save, then ends.
END
}

workers=1 seeds='' groups='*' folder=. threads=1 number='' list=''
while getopts w:s:g:o:t:j:lh option; do
    case $option in
        w) workers=$OPTARG ;;
        s) seeds=$OPTARG ;;
        g) groups=$OPTARG ;;
        o) folder=$OPTARG ;;
        t) threads=$OPTARG ;;
        j) number=$OPTARG ;;
        l) list=1 ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
extra=("$@")
python=${PYTHON:-python}
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for count in "$workers" "$threads" "${number:-1}"; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "error: -w, -t and -j take a number from 1, got '$count'" >&2; exit 2; }
done

# The list of jobs: "row|environment|seed|flags". A row's controls are its own flags and --memoryless.
jobs=() known=() matched=()
set -f # patterns in -g are for the rows' names, not for files
add_jobs() { # ROW ENV FLAGS SEEDS
    local pattern seed
    known+=("$1")
    for pattern in $groups; do
        # shellcheck disable=SC2053  # the right side is a pattern on purpose
        [[ $1 == $pattern ]] || continue
        matched+=("$pattern")
        for seed in ${seeds:-$4}; do jobs+=("$1|$2|$seed|$3"); done
        return
    done
}
while IFS='|' read -r row env flags row_seeds control_seeds; do
    read -r row <<<"$row"
    [[ $row ]] || continue
    read -r env <<<"$env"
    read -r control_seeds <<<"$control_seeds"
    add_jobs "$row" "$env" "$flags" "$row_seeds"
    [[ -z $control_seeds ]] || add_jobs "$row-memoryless" "$env" "$flags --memoryless" "$control_seeds"
done <<<"$rows"
for pattern in $groups; do
    [[ " ${matched[*]} " == *" $pattern "* ]] || { echo "error: -g $pattern matches no row of: ${known[*]}" >&2; exit 2; }
done
set +f
if [[ $number ]]; then
    ((number <= ${#jobs[@]})) || { echo "error: -j $number, but there are ${#jobs[@]} jobs" >&2; exit 2; }
    jobs=("${jobs[number - 1]}")
fi
if [[ $list ]]; then
    for i in "${!jobs[@]}"; do
        IFS='|' read -r row env seed flags <<<"${jobs[i]}"
        read -ra flags <<<"$flags"
        echo "$((${number:-1} + i)) $row seed $seed: --env-id $env" "${flags[@]}" "${extra[@]}"
    done
    exit 0
fi

mkdir -p "$folder/runs/logs" && cd "$folder" || exit 2
export OMP_NUM_THREADS=$threads PYTHONUNBUFFERED=1
outcomes=$(mktemp)
trap 'rm -f "$outcomes"' EXIT
tell() { # OUTCOME ROW SEED TEXT
    echo "$1" >>"$outcomes"
    printf '%s %-9s %s seed %s: %s\n' "$(date +%T)" "$@"
}

forward() { # one signal to the run and never two: at a second one it would end without saving
    stopped=1
    [[ $child && -z $forwarded ]] || return 0
    forwarded=1
    kill -TERM "$child" 2>/dev/null
}

run_job() { # ROW ENV SEED FLAGS, in a subshell: make, continue or skip one run, and tell what became of it
    local row=$1 env=$2 seed=$3 log=runs/logs/$1__$3.log resume='' run='' before status flags command text commit
    commit=$(git -C "$repository" describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)
    child='' stopped='' forwarded=''
    trap forward USR1 TERM
    # Slurm sends its TERM to every process of a job, so the run has it already; slurm.sh asks with USR1
    [[ -z ${TERM_REACHES_ALL:-} ]] || trap 'stopped=1' TERM
    trap '' INT HUP
    read -ra flags <<<"$4"
    command=("$script" --env-id "$env" --exp-name "$row" --seed "$seed" "${flags[@]}" "${extra[@]}")
    text="python ${command[*]}"
    exec 9>>"$log" # the log is the lock too; the run inherits it and holds it as long as it lives
    flock -n 9 || { tell elsewhere "$row" "$seed" "another launcher has it"; return; }
    shopt -s nullglob
    for run in runs/"${env}__${row}__${seed}__"*; do
        if [[ -f $run/results.json ]]; then
            grep -q '"eval_only": true' "$run/results.json" && continue
            before=$(tail -n 1 "$run/command.txt" 2>/dev/null)
            if [[ $before && ${before#*: } != "$text" ]]; then
                tell FAILED "$row" "$seed" "another command made $folder/$run; move that away to run this one"
                printf '    %s\n' "then: ${before#*: }" "now:  $text"
            else
                tell finished "$row" "$seed" "$folder/$run"
            fi
            return
        elif [[ -f $run/agent.pt ]]; then
            resume=$run/agent.pt
        else # it ended before its first checkpoint
            mkdir -p runs/abandoned && mv "$run" runs/abandoned/
        fi
    done
    [[ -z $stopped ]] || return
    command+=(--num-threads "$threads" ${resume:+--resume "$resume"})
    echo "\$ python ${command[*]}  # commit $commit" >&9
    tell "$([[ $resume ]] && echo resumed || echo started)" "$row" "$seed" "$folder/$log"
    # a session of its own, so that the terminal's Ctrl-C does not reach the run beside our TERM
    setsid "$python" "$repository/${command[0]}" "${command[@]:1}" </dev/null >&9 2>&1 &
    child=$!
    [[ -z $stopped ]] || forward
    wait "$child"
    status=$?
    while kill -0 "$child" 2>/dev/null; do # our own signal ended `wait`, the run is still saving
        wait "$child"
        status=$?
    done
    run=${resume%/*}
    if [[ -z $run ]]; then
        for run in runs/"${env}__${row}__${seed}__"*; do :; done # the newest
    fi
    ((status == 2)) || [[ -z $run ]] || echo "$commit: $text" >>"$run/command.txt"
    if ((status == 0)); then
        tell "done" "$row" "$seed" "$(grep "^$env after" "$log" | tail -n 1)"
    elif [[ $stopped ]]; then
        tell stopped "$row" "$seed" "$folder/$log"
    else
        tell FAILED "$row" "$seed" "exit code $status; the end of $folder/$log:"
        tail -n 8 "$log" | sed 's/^/    /'
    fi
}

# shellcheck disable=SC2329  # the traps below call it
stop() { # SIGNAL
    [[ -z $stopping ]] || return 0
    stopping=1
    echo "$(date +%T) stopping: the runs save and end"
    [[ $1 == TERM && ${TERM_REACHES_ALL:-} ]] || ((${#pids[@]} == 0)) || kill -USR1 "${pids[@]}" 2>/dev/null
}

stopping='' pids=()
trap 'stop TERM' TERM
trap 'stop USR1' USR1 INT HUP
for job in "${jobs[@]}"; do
    while [[ -z $stopping ]] && (($(jobs -rp | wc -l) >= workers)); do wait -n; done
    [[ -z $stopping ]] || break
    IFS='|' read -r row env seed flags <<<"$job"
    run_job "$row" "$env" "$seed" "$flags" &
    pids+=($!)
done
while [[ $(jobs -rp) ]]; do wait; done

count() { grep -cx "$1" "$outcomes"; }
echo "${#jobs[@]} jobs: $(($(count "done") + $(count finished))) finished, $(count FAILED) failed," \
    "$(count stopped) stopped, $(count elsewhere) in other launchers"
[[ -z $stopping ]] || { echo "start it again to go on"; exit 143; }
(($(count FAILED) == 0))
exit # here, not in the launcher, so that its table may be edited while it runs
