#!/usr/bin/env bash
# Puts the packages of cpu.lock into an image of PyTorch: `bash image-install.sh LOCK FOLDER`, as Dockerfile and
# onevision.def do it. They go into FOLDER, a virtual environment that also sees the image's own packages. So nothing of
# the image is replaced: its torch, Transformer Engine, apex and DALI stay what they were compiled and tested as.
set -euo pipefail

lock=$1
folder=$2
kept='torch|numpy|setuptools'  # the image's: its torch, and what its torch was compiled with

fail() {
    echo "error: $*" >&2
    exit 1
}

torch_of() {
    "$1" -c 'import importlib.metadata as m; print(m.version("torch"), m.distribution("torch").locate_file(""))'
}

names() {
    sed 's/[= ].*//' | tr 'A-Z_' 'a-z-'
}

before=$(torch_of python3 2>/dev/null) || fail "the image has no torch: it must be built from an image of PyTorch"
list=$(mktemp)
grep '^[A-Za-z]' "$lock" | grep -vE "^($kept)==" >"$list"

# Without pip of its own: the image's is seen, and its Python may come without ensurepip.
python3 -m venv --system-site-packages --without-pip "$folder"
# NGC images pin the versions of their own packages through PIP_CONSTRAINT; FOLDER leaves those as they are.
PIP_CONSTRAINT='' "$folder/bin/python" -m pip install --no-cache-dir --no-deps --disable-pip-version-check -r "$list"

after=$(torch_of "$folder/bin/python")
[[ $after == "$before" ]] || fail "torch was replaced: $before before, $after now"
# What the image's own packages say of each other is not ours to judge.
unmet=$({ "$folder/bin/python" -m pip check || true; } |
    awk 'NR == FNR { ours[$1]; next } tolower($1) in ours' <(names <"$list") -)
[[ -z $unmet ]] || fail "packages do not fit those of the image: $unmet"
rm "$list"
