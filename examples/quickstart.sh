#!/bin/sh
# Create an environment, install krl into it, and run 01_quickstart.py: teacher, student, bundle, predictions, one table.
# With --rtx it also installs TensorRT-RTX and builds engines for desktop RTX GPUs, which needs no GPU.
# All files go to ./krl-quickstart. Set PYTHON to choose the interpreter, 3.10 or later.
set -eu
cd "$(dirname "$0")/.."
environment=krl-quickstart/env
extras=all

case "${1-}" in
"") ;;
--rtx) extras=all,rtx ;;
*)
    echo "usage: sh examples/quickstart.sh [--rtx]" >&2
    exit 2
    ;;
esac
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "krl needs Python 3.10 or later; choose one with PYTHON=python3.12 sh examples/quickstart.sh" >&2
    exit 2
}
if [ ! -x "$environment/bin/krl-runtime" ]; then
    echo "\$ python3 -m venv $environment && $environment/bin/pip install -e '.[$extras]'   (with torch: several minutes, about 6 GB)"
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --upgrade pip
    "$environment/bin/pip" install --quiet -e ".[$extras]"
elif [ "$extras" = all,rtx ]; then
    "$environment/bin/pip" install --quiet -e ".[$extras]"
fi
PATH="$PWD/$environment/bin:$PATH" exec "$environment/bin/python" examples/01_quickstart.py krl-quickstart/work "$@"
