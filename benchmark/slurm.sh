#!/usr/bin/env bash
# A launcher's jobs as a Slurm array, one task for each. From the repository's folder, with the environment active:
#    jobs=$(bash benchmark/ppo_lstm_minigrid.sh -l | wc -l)
#    sbatch --array="1-$jobs" benchmark/slurm.sh benchmark/ppo_lstm_minigrid.sh -o /path/to/work
# What follows the launcher is passed to it (give -l the same -g and -s); -j is the task's number. Submitted again it goes on:
# finished runs are skipped, interrupted ones resumed. Change what is asked for below, or give it to sbatch: --gpus=1, ...
#SBATCH --job-name=ppo-lstm
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180

# The run must be told once: at a second signal it ends without saving. Three minutes before the time limit USR1 comes to
# this shell alone; it goes to the launcher, and from there to the run as one TERM; then the task is queued again. When the
# job is preempted or cancelled, Slurm's TERM comes to every process, to the run too, and nothing is passed on.
launcher=${1:?the launcher is missing, for example benchmark/ppo_lstm_minigrid.sh}
shift
[[ -z ${SLURM_JOB_ID:-} ]] || export TERM_REACHES_ALL=1
child='' told='' near_limit=''
# shellcheck disable=SC2329  # the traps below call it
tell() { # the launcher, once
    [[ -z $told ]] || return 0
    told=1
    [[ -z $child ]] || kill -USR1 "$child" 2>/dev/null
}
trap 'near_limit=1; tell' USR1
trap '[[ ${TERM_REACHES_ALL:-} ]] || tell' TERM

bash "$launcher" -t "${SLURM_CPUS_PER_TASK:-1}" -j "${SLURM_ARRAY_TASK_ID:?submit it with --array}" "$@" &
child=$!
[[ -z $told ]] || kill -USR1 "$child"
status=0
while kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, the launcher goes on
    wait "$child"
    status=$?
done
if [[ $near_limit ]] && ((status != 0)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
