#!/usr/bin/env bash
# Installs the program, of the very commit that this action was taken at, into an environment of its own.
set -euo pipefail

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "::error::Python 3.11 or newer is needed: use ubuntu-24.04, or actions/setup-python before this step"
  exit 1
fi
python3 -m venv "$RUNNER_TEMP/tensorport"
"$RUNNER_TEMP/tensorport/bin/python" -m pip install --quiet --disable-pip-version-check "$GITHUB_ACTION_PATH/../../.."
