#!/bin/sh
# Makes an environment, installs krl into it, and runs the main job: teacher, student, bundle, answers, one table.
# Everything lands in ./krl-quickstart; PYTHON names the interpreter, 3.10 or later.
set -eu
cd "$(dirname "$0")/.."
environment=krl-quickstart/env

"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "krl needs Python 3.10 or later; name one with PYTHON=python3.12 sh examples/quickstart.sh" >&2
    exit 2
}
if [ ! -x "$environment/bin/krl-runtime" ]; then
    echo "\$ python3 -m venv $environment && $environment/bin/pip install -e '.[all]'   (torch: some minutes, about 6 GB)"
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --upgrade pip
    "$environment/bin/pip" install --quiet -e '.[all]'
fi
PATH="$PWD/$environment/bin:$PATH" exec "$environment/bin/python" examples/01_quickstart.py krl-quickstart/work
