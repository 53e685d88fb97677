#!/usr/bin/env bash
# A launcher's jobs as a Slurm array, one task for each. From the repository's folder, with the environment active:
#    jobs=$(bash benchmark/ppo_lstm_minigrid.sh -l | wc -l)
#    sbatch --array="1-$jobs" benchmark/slurm.sh benchmark/ppo_lstm_minigrid.sh -o /path/to/work
# What follows the launcher is passed to it (give -l the same). Submitted again it continues. GPUs: sbatch --gpus=1 ...
#SBATCH --job-name=ppo-lstm
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180

launcher=${1:?the launcher is missing, for example benchmark/ppo_lstm_minigrid.sh}
shift
bash "$launcher" -t "${SLURM_CPUS_PER_TASK:-1}" -j "${SLURM_ARRAY_TASK_ID:?submit it with --array}" "$@" &
child=$! near_limit=''
trap 'near_limit=1; kill -TERM "$child"' USR1 # three minutes before the time limit: save, then queue the task again
trap '[[ $near_limit ]] || kill -TERM "$child"' TERM # preempted or cancelled: most Slurms tell this shell alone
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, the run is still saving
    wait "$child"
    status=$?
done
[[ -z $near_limit ]] || ((status == 0)) || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
