#!/usr/bin/env bash
# Makes .venv in the working folder from envs/cpu.lock: `bash envs/setup.sh PYTHON`. Called by `make setup`.
set -euo pipefail

python=$1
lock=envs/cpu.lock
stamp=.venv/.ready            # written last: the folder it was made in
unfinished=.venv/.unfinished  # there while packages change: after an interruption nothing can be trusted
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

# Lines of the lock that are not installed; a local part of a version (+cpu, +cu130) is as good.
missing() {
    comm -13 <(.venv/bin/python -m pip freeze --all 2>/dev/null | sed 's/+[a-z0-9]*$//' | LC_ALL=C sort) \
        <(grep '^[A-Za-z]' "$lock" | LC_ALL=C sort)
}

# Do the packages fit each other? Those of the optional locks are left out: what lmms-eval asks for and envs/eval.lock
# leaves out is no mistake.
fitting() {
    ! "${pip[@]}" check | tr _ - | grep -v '^No broken' |
        grep -v -i -f <(grep -h '^[A-Za-z]' envs/eval.lock envs/dali.lock envs/flash-attn-4.lock | sed 's/==.*//; s/_/-/g; s/.*/^& /')
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
: >"$log"
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)
if [[ ! -x .venv/bin/python || -n $(missing) ]]; then
    touch "$unfinished"
    [[ -x .venv/bin/python ]] || step "Python $version" "$python" -m venv .venv
    step "PyTorch (the largest part)" "${pip[@]}" install --progress-bar off "$(grep '^torch==' "$lock")"
    step "the packages of $lock" "${pip[@]}" install --progress-bar off --no-deps -r "$lock"
    step "checking" fitting
    rm -f "$unfinished"
fi
step "onevision" "${pip[@]}" install --no-deps --no-build-isolation -e .
echo "$PWD" >"$stamp"
echo "setting up .venv: done"
