#!/usr/bin/env bash
# One worker a task of a Slurm array, on a study in a database that every node reaches.
#
#   export DSE_STORAGE=postgresql://me:secret@host/studies DSE_STUDY=digits
#   sbatch --array=0-15 --export=DSE_STORAGE,DSE_STUDY,PATH deploy/slurm.sh
#
# Preemption and the time limit send SIGTERM a minute before the end: the trial in hand goes back,
# and another worker does it. Tasks may join and leave at any time; one that finds the study
# finished ends.
#SBATCH --job-name=dse
#SBATCH --array=0-7
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=4G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
set -euo pipefail
: "${DSE_STORAGE:?is not set: the URL of the database, such as postgresql://me@host/studies}"
: "${DSE_STUDY:?is not set: the name of the study}"

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
arguments=(--study "$DSE_STUDY" --slot "task=${SLURM_ARRAY_JOB_ID:-0}_${SLURM_ARRAY_TASK_ID:-0}")
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    arguments+=(--slot "gpu=$CUDA_VISIBLE_DEVICES")
fi
if [ -n "${DSE_FOLDER:-}" ]; then # where the study's own modules lie
    arguments+=(--folder "$DSE_FOLDER")
fi
# exec: Slurm signals this process. The URL stays in the environment, where 'ps' does not show it.
exec dse worker "${arguments[@]}"
