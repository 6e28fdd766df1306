#!/bin/sh
# Status 0 while the process of a run lives and is not at a standstill; else 1, and a line that says why.
#
#   /alive.sh runs/NAME
#
# For a livenessProbe, or `docker run --health-cmd`. The run's first process touches NAME/.running every 5 s. Two looks
# at the file are compared, and no clocks: those of hosts and file servers differ. It is a thread that touches it: a
# training that waits for another GPU is alive here, and is ended by NCCL's own timeout (10 minutes).
set -eu
file=${1:?the directory of the run}/.running

touched() { # opened first, since a network file system then looks anew
    : <"$file" && stat -c %y -- "$file"
} 2>/dev/null

before=$(touched) || { echo "no $file: the run has not begun, or has ended" && exit 1; }
sleep 12
after=$(touched) || { echo "$file has gone: the run has ended" && exit 1; }
[ "$before" != "$after" ] || { echo "$file was last touched at $after: the process of the run stands still" && exit 1; }
