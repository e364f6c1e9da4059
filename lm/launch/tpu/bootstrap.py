"""The script that every VM runs, as root, at every boot and for `lm tpu run`.

It looks up in WORKDIR what shall run, installs that commit once, and starts it
as the systemd unit `lm`, which outlives the connection. As the startup-script
it also does so after a reboot, and on a VM that was made again, so that a run
goes on without anybody (docs.cloud.google.com/compute/docs/instances/
startup-scripts/linux; for TPUs docs.cloud.google.com/tpu/docs/queued-resources,
"startup script"). Python 3.11 comes from uv, since images of TPU VMs have older
ones: docs.astral.sh/uv/getting-started/installation ("PyPI"),
docs.astral.sh/uv/reference/environment. pip's --target also works where the
system's Python is "externally managed" (PEP 668).

How the unit ends: 0 (finished) and 2 (a fault of the input) are noted in
WORKDIR/launch/finished, and so is the fifth crash in a day; SIGTERM is nobody's
failure. freedesktop.org/software/systemd/man/latest/{systemd.service,
systemd.exec}: Restart, RestartPreventExitStatus, KillMode, $EXIT_STATUS.
"""

import shlex

from lm.launch.tpu import store

UNIT = "lm.service"
CRASHES = 5  # In a day; then the unit is left alone.

_TEMPLATE = r"""#!/bin/bash
# Made by `lm tpu`. Runs as root at every boot, and again for `lm tpu run`.
set -euo pipefail

WORKDIR=@WORKDIR@
RUN_FILE=@RUN_FILE@
EXTRAS=@EXTRAS@
ROOT="${LM_ROOT:-}"  # Another root folder, for tests.
BASE="$ROOT/opt/lm"
UNIT="$ROOT/etc/systemd/system/lm.service"
export HOME="${HOME:-/root}"
export UV_PYTHON_INSTALL_DIR="$BASE/python" UV_CACHE_DIR="$BASE/cache"

say() { echo "lm bootstrap: $*"; }

mkdir -p "$BASE" "$(dirname "$UNIT")"
exec 9> "$BASE/lock"
flock 9  # At a boot, and by `lm tpu run`, both may come.

# The network, or the rights of the service account, may be late.
found=
for attempt in 1 2 3 4 5 6; do
  if gcloud storage cat "$WORKDIR/$RUN_FILE" > "$BASE/run.json" 2> "$BASE/error"
  then found=yes; break; fi
  if grep -q "matched no objects" "$BASE/error"; then
    say "nothing is to run yet"
    exit 0
  fi
  say "cannot read $WORKDIR/$RUN_FILE: $(tail -n 1 "$BASE/error")"
  sleep "${LM_RETRY_SECONDS:-10}"
done
[ -n "$found" ] || exit 1

# ID, COMMIT and COMMAND, quoted for a shell.
eval "$(python3 - "$BASE/run.json" <<'PYTHON'
import json, shlex, sys
run = json.load(open(sys.argv[1]))
print("ID=" + shlex.quote(run["id"]))
print("COMMIT=" + shlex.quote(run["commit"]))
print("COMMAND=" + shlex.quote(" ".join(map(shlex.quote, run["command"]))))
PYTHON
)"

SOURCE="$BASE/$COMMIT/source" VENV="$BASE/$COMMIT/venv"
if [ ! -e "$BASE/$COMMIT/installed" ]; then
  say "installing $COMMIT"
  rm -rf "${BASE:?}/$COMMIT"
  mkdir -p "$SOURCE"
  gcloud storage cp "$WORKDIR/launch/$COMMIT.tar.gz" "$BASE/$COMMIT.tar.gz"
  tar -xzf "$BASE/$COMMIT.tar.gz" -C "$SOURCE"
  rm "$BASE/$COMMIT.tar.gz"
  if ! command -v uv > /dev/null; then
    if ! python3 -m pip --version > /dev/null 2>&1; then
      apt-get update -q
      apt-get install -q -y python3-pip
    fi
    python3 -m pip install --quiet --upgrade --target "$BASE/uv" uv
    export PATH="$BASE/uv/bin:$PATH"
  fi
  uv venv --quiet --python 3.11 "$VENV"
  uv pip install --quiet --python "$VENV/bin/python" "$SOURCE$EXTRAS"
  touch "$BASE/$COMMIT/installed"
fi

if [ "$(cat "$BASE/id" 2> /dev/null || true)" != "$ID" ]; then
  systemctl stop lm.service || true  # Another run: it saves, then ends.
fi
echo "$ID" > "$BASE/id"

cat > "$BASE/run.sh" <<EOF
#!/bin/bash
export PATH="$VENV/bin:\$PATH" VIRTUAL_ENV="$VENV" PYTHONUNBUFFERED=1
export PYTHONPATH="$SOURCE"
cd "$SOURCE"
exec $COMMAND
