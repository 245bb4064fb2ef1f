#!/usr/bin/env bash
# Makes .venv in the working folder from envs/cpu.lock: `bash envs/setup.sh PYTHON`. Called by `make setup`.
set -euo pipefail

python=$1
stamp=.venv/.ready  # written last: the folder it was made in
unfinished=.venv/.unfinished  # there while pip works: an interrupted set-up starts again from nothing
log=.venv/setup.log

fail() {
    echo "error: $*" >&2
    exit 2
}

trap 'echo "set-up interrupted; make setup starts it again" >&2; exit 130' INT TERM

# step TEXT COMMAND...: one line on the terminal; the output only if it fails
step() {
    echo "setting up .venv: $1 …"
    shift
    if ! "$@" >>"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail "$* failed, see $log; run make setup again once the cause is gone"
    fi
}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    fail "$python cannot be run; name a Python 3.11 or 3.12: make setup PYTHON=/path/to/python3.11"
case $version in
3.11 | 3.12) ;;
*) fail "$python is Python $version, this needs 3.11 or 3.12: make setup PYTHON=/path/to/python3.11" ;;
esac

if [[ -e $unfinished ]] || [[ -e $stamp && $(<"$stamp") != "$PWD" ]]; then
    echo "setting up .venv: removing one that is unfinished or belongs to another folder …"
    rm -rf .venv
fi
mkdir -p .venv
touch "$unfinished"
: >"$log"
[[ -x .venv/bin/python ]] || step "Python $version" "$python" -m venv .venv

pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input install --progress-bar off)
step "PyTorch (the largest part)" "${pip[@]}" "$(grep '^torch==' envs/cpu.lock)"
step "the packages of envs/cpu.lock" "${pip[@]}" --no-deps -r envs/cpu.lock
step "onevision" "${pip[@]}" --no-deps --no-build-isolation -e .
step "checking" .venv/bin/python -m pip --disable-pip-version-check check

rm -f "$unfinished"
echo "$PWD" >"$stamp"
echo "setting up .venv: done"
