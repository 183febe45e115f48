#!/usr/bin/env bash
# Fails where a change of the model, the recipe or the code costs accuracy: what a CI job runs on every change.
# The first run writes baseline.json; keep it in the repository, or as an artifact of the main branch.
set -euo pipefail
recipe=${1:?usage: gate.sh RECIPE [options of perf]}
shift

repo-builder build "$recipe" --json > build.json
repo-builder validate --strict
name=$(python -c 'import json; print(json.load(open("build.json"))["name"])')
if [ -f baseline.json ]; then
    repo-builder perf "$name" --baseline baseline.json --accuracy-tolerance 0.5 --latency-tolerance 25 \
        --json current.json --report report.html "$@"
else
    repo-builder perf "$name" --json baseline.json --report report.html "$@"
fi
