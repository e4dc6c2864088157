#!/bin/sh
# Try a wheel of dist/ in an environment of its own, on a PATH that holds no compiler.
#
# Usage, in the repository's root: sh tests/wheels/try_wheel.sh OURS PYTHON VERSION full|native [PIP_OPTION …]
#
# PYTHON, of that version, makes the environment. The wheel's native module must compute to the bit what that of the
# interpreter OURS does. With `full` it is installed with all it needs; `splatopt doctor` and a short demo run.
set -eu
ours=$1 python=$2 version=$3 mode=$4
shift 4
tag=cp$(echo "$version" | tr -d .)
wheel=$(ls -t dist/*-"$tag"-*manylinux*.whl | head -n 1)
test -n "$wheel"
folder=$PWD/build/try-$version
rm -rf "$folder"
"$python" -m venv "$folder"
for compiler in c++ g++ clang++ cc gcc clang; do
    if PATH=$folder/bin command -v "$compiler"; then
        echo "try_wheel: $folder/bin has a compiler" >&2
        exit 1
    fi
done
alone() {
    env -u CC -u CXX -u PYTHONPATH PATH="$folder/bin" "$@"
}
install() {
    alone "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
        -c constraints.txt "$@"
}

echo "trying $wheel without a compiler"
if [ "$mode" = full ]; then
    install "$@" "$wheel"
    (cd "$folder" && alone "$folder/bin/splatopt" doctor &&
        alone "$folder/bin/splatopt" demo --steps 60 --out "$folder/demo")
    test -s "$folder/demo/report.html"
else
    install "$@" numpy
    install "$@" --no-deps "$wheel"
    echo "its native module alone, with NumPy; what else it needs is not installed for Python $version"
fi
"$ours" tests/wheels/native_bits.py >"$folder/bits-here.txt"
alone "$folder/bin/python" tests/wheels/native_bits.py >"$folder/bits-wheel.txt"
test -s "$folder/bits-here.txt"
if ! "$(command -v cmp)" "$folder/bits-here.txt" "$folder/bits-wheel.txt"; then
    echo "try_wheel: $wheel computes other bits than the module of $ours" >&2
    exit 1
fi
echo "the same bits as the module of $ours: $(cut -d ' ' -f 1 "$folder/bits-wheel.txt" | tr '\n' ' ')"
