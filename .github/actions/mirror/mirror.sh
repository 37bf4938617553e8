#!/usr/bin/env bash
# Mirrors until it is done or the minutes are over: then it stops by SIGTERM, which keeps what is finished.
#
# A trusted publisher's token lives for an hour and is not renewed within a run, so with one the time is cut into
# runs of 50 minutes: each begins with a new token and continues the one before. Inputs are data here: they are
# compared, or handed over as words, and never evaluated.
set -euo pipefail

readonly program="$RUNNER_TEMP/tensorport/bin/tensorport-hub"
readonly token_seconds="${TENSORPORT_TOKEN_SECONDS:-3000}"

refuse() {
  echo "::error::$1" # constant words alone
  exit 2
}

[[ -n $SOURCE ]] || refuse "input 'source' is empty: expected org/model"
[[ $MINUTES =~ ^[0-9]{1,5}(\.[0-9]{1,3})?$ ]] || refuse "input 'minutes' is no number of minutes"
[[ $WHEN_UNFINISHED == fail || $WHEN_UNFINISHED == pass ]] || refuse "input 'when-unfinished' is neither fail nor pass"

if [[ -n $TOKEN ]]; then export HF_TOKEN=$TOKEN; fi
unset TOKEN

seconds=$(awk -v minutes="$MINUTES" 'BEGIN { printf "%d", minutes * 60 }')
slice=$seconds
if [[ $TRUSTED_PUBLISHING == true ]]; then
  [[ -n $DESTINATION ]] || refuse "trusted publishing needs the input 'destination': the Hub trusts a workflow for one repository"
  export HF_OIDC_RESOURCE=$DESTINATION # huggingface_hub exchanges the workflow's identity for a token of this repository
  unset HF_TOKEN
  slice=$token_seconds
fi

OPTIONS=${OPTIONS//$'\r'/}
if [[ $OPTIONS == *$'\n'* ]]; then
  mapfile -t given <<<"$OPTIONS"
else # the form of a workflow that is run by hand has a single line
  read -ra given <<<"$OPTIONS"
fi
words=() lasting=() # all options; and those of a run that continues
for word in "${given[@]}"; do
  if [[ -n $word ]]; then words+=("$word"); fi
  if [[ -n $word && $word != --restart ]]; then lasting+=("$word"); fi
done
if [[ $CONTINUES == true ]]; then words=("${lasting[@]}"); fi

places=("$SOURCE")
if [[ -n $DESTINATION ]]; then places+=("$DESTINATION"); fi

# Runs for so many seconds at most. A cancelled workflow interrupts this script alone: it is passed on.
run() {
  timeout --kill-after=60 "$1" "$program" mirror --no-progress "${@:2}" -- "${places[@]}" &
  local child=$! code=0
  trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`, not the child
    code=0
    wait "$child" || code=$?
  done
  trap - INT TERM
  return "$code"
}

# What the program prints is no command to the runner, whatever names it quotes.
quiet=$(python3 -c 'import secrets; print(secrets.token_hex(16))')
echo "::stop-commands::$quiet"

state=unfinished failed=0
begun=$SECONDS
while left=$((seconds - (SECONDS - begun))) && ((left > 0)); do
  code=0 span=$((left < slice ? left : slice)) since=$SECONDS
  run "$span" "${words[@]}" || code=$?
  if ((code == 0)); then
    state="done" && break
  elif ((code == 124 || (code == 137 && SECONDS - since >= span))); then
    words=("${lasting[@]}") # the time of this run is over
  else
    failed=$code && break
  fi
done

echo "::$quiet::"
if ((failed)); then exit "$failed"; fi
echo "state=$state" >>"$GITHUB_OUTPUT"
if [[ $state == unfinished ]]; then
  echo "::warning::stopped after the given minutes; what is finished is kept, and the same run again continues it"
  printf '### To be continued\n\nThe minutes of this run are over. What is finished is kept on the Hub; %s\n\n' \
    'run the workflow again, and it goes on from there.' >>"$GITHUB_STEP_SUMMARY"
  [[ $WHEN_UNFINISHED == pass ]]
fi
