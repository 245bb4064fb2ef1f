#!/usr/bin/env bash
# Makes .venv-consumers/NAME for every envs/consumers-NAME.lock: loaders of exported folders that do not fit into .venv.
# Each sees the packages of .venv and, before them, those of its own lock. Called by `make consumers`.
set -euo pipefail

shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for lock in envs/consumers-*.lock; do
    name=${lock#envs/consumers-}
    name=${name%.lock}
    folder=.venv-consumers/$name
    stamp=$folder/.ready # written last: what it was made of
    if [[ -e $stamp ]] && cmp -s <(cat "$lock" && echo "$shared") "$stamp"; then
        echo "$folder is ready"
        continue
    fi
    echo "setting up $folder …"
    rm -rf "$folder"
    .venv/bin/python -m venv "$folder"
    own=$("$folder"/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$shared" >"$own/shared.pth"
    # What is in .venv too is left there and not looked at from here.
    "$folder"/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps -r "$lock" ||
        { echo "error: $lock could not be installed; run make consumers again once the cause is gone" >&2; exit 2; }
    (cat "$lock" && echo "$shared") >"$stamp"
done
