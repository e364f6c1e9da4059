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
export PATH="$PATH:/snap/bin"  # Where images of TPU VMs have gcloud.
export UV_PYTHON_INSTALL_DIR="$BASE/python" UV_CACHE_DIR="$BASE/cache"

say() { echo "lm bootstrap: $*"; }
# Networks, locks of apt and servers of packages have bad minutes.
retry() {
  for attempt in 1 2 3 4 5; do
    if "$@"; then return 0; fi
    say "failed, trying again: $*"
    sleep "${LM_RETRY_SECONDS:-10}"
  done
  "$@"
}

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

# ID, COMMIT, COMMAND and FETCH, quoted for a shell.
eval "$(python3 - "$BASE/run.json" <<'PYTHON'
import json, shlex, sys
run = json.load(open(sys.argv[1]))
print("ID=" + shlex.quote(run["id"]))
print("COMMIT=" + shlex.quote(run["commit"]))
print("COMMAND=" + shlex.quote(" ".join(map(shlex.quote, run["command"]))))
print("FETCH=(" + " ".join(map(shlex.quote, run.get("fetch", []))) + ")")
PYTHON
)"

SOURCE="$BASE/$COMMIT/source" VENV="$BASE/$COMMIT/venv"
if [ ! -e "$BASE/$COMMIT/installed" ]; then
  say "installing $COMMIT"
  rm -rf "${BASE:?}/$COMMIT"
  mkdir -p "$SOURCE"
  retry gcloud storage cp "$WORKDIR/launch/$COMMIT.tar.gz" \
    "$BASE/$COMMIT.tar.gz"
  tar -xzf "$BASE/$COMMIT.tar.gz" -C "$SOURCE"
  rm "$BASE/$COMMIT.tar.gz"
  if ! command -v uv > /dev/null; then
    if ! python3 -m pip --version > /dev/null 2>&1; then
      retry apt-get -o DPkg::Lock::Timeout=300 update -q
      retry apt-get -o DPkg::Lock::Timeout=300 install -q -y python3-pip
    fi
    retry python3 -m pip install --quiet --upgrade --target "$BASE/uv" uv
    export PATH="$BASE/uv/bin:$PATH"
  fi
  retry uv venv --quiet --allow-existing --python 3.11 "$VENV"
  retry uv pip install --quiet --python "$VENV/bin/python" "$SOURCE$EXTRAS"
  touch "$BASE/$COMMIT/installed"
fi

mkdir -p "$BASE/data"
for url in ${FETCH[@]+"${FETCH[@]}"}; do  # Empty arrays are unset for old bash.
  name="$(basename "$url")"
  if [ ! -e "$BASE/data/.$name" ]; then
    say "copying $url"
    retry gcloud storage cp --recursive "$url" "$BASE/data/"
    touch "$BASE/data/.$name"
  fi
done

if [ "$(cat "$BASE/id" 2> /dev/null || true)" != "$ID" ]; then
  systemctl stop lm.service || true  # Another run: it saves, then ends.
fi
echo "$ID" > "$BASE/id"

cat > "$BASE/run.sh" <<END
#!/bin/bash
export PATH="$VENV/bin:\$PATH" VIRTUAL_ENV="$VENV" PYTHONUNBUFFERED=1
export PYTHONPATH="$SOURCE"
cd "$SOURCE"
exec $COMMAND
END

cat > "$BASE/ended.sh" <<END
#!/bin/bash
# systemd says in EXIT_CODE and EXIT_STATUS how the run ended.
export PATH="\$PATH:/snap/bin"
case "\${EXIT_CODE:-}:\${EXIT_STATUS:-}" in
  exited:0|exited:2) ;;
  exited:143|killed:TERM) exit 0 ;;
  *)
    date +%s >> "$BASE/crashes-$ID"
    recent=\$(awk -v since=\$((\$(date +%s) - 86400)) '\$1 > since' \
        "$BASE/crashes-$ID" | wc -l)
    [ "\$recent" -ge @CRASHES@ ] || exit 0 ;;
esac
printf '{"id": "%s", "host": "%s", "status": "%s", "time": %s}\n' "$ID" \
    "\$(hostname)" "\${EXIT_STATUS:-}" "\$(date +%s)" \
  | gcloud storage cp - "$WORKDIR/launch/finished/$ID/\$(hostname).json"
END

cat > "$UNIT" <<END
[Unit]
Description=lm $ID
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=86400
StartLimitBurst=@CRASHES@

[Service]
Environment=HOME=$HOME
ExecStart=/bin/bash $BASE/run.sh
ExecStopPost=/bin/bash $BASE/ended.sh
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec=120
END

systemctl daemon-reload
systemctl reset-failed lm.service || true
systemctl start lm.service  # Does nothing to one that runs.
say "started $ID: $COMMAND"
"""


def script(workdir: str, *, run_file: str = store.RUN,
           extras: str = "[tpu]") -> str:
  """The script for the VMs of a launch.

  Args:
    workdir: gs://BUCKET/FOLDER.
    run_file: below it, what shall run.
    extras: of the package to install, as pip writes them.
  """
  text = _TEMPLATE.replace("@CRASHES@", str(CRASHES))
  for mark, value in (("@WORKDIR@", workdir), ("@RUN_FILE@", run_file),
                      ("@EXTRAS@", extras)):
    text = text.replace(mark, shlex.quote(value))
  return text


def remote(workdir: str) -> str:
  """The command that fetches and runs the script on a VM, over ssh."""
  there = "/tmp/lm-bootstrap.sh"
  return " && ".join(shlex.join(words) for words in (
      ["gcloud", "storage", "cp", f"{workdir}/{store.BOOTSTRAP}", there],
      ["sudo", "bash", there]))
