#!/usr/bin/env bash
# What tests/slurm/cluster needs of Debian, where it is missing; needs root then.
set -euo pipefail
for tool in slurmctld slurmd scontrol munged; do
    command -v "$tool" > /dev/null && continue
    apt-get update -qq < /dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge < /dev/null
    break
done
