#!/bin/sh
# Cross-compile the C++ core for ARM's 64-bit processors, run its check under qemu, and compare with what this machine's
# portable kernels give. Usage, in the repository's root: sh native/tests/aarch64_check.sh FOLDER_OF_CMAKE_AND_NINJA
set -eu
bin=$PWD/$1
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v "$tool" >/dev/null || {
        echo "aarch64-check skipped: there is no $tool (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)"
        exit 0
    }
done
build() {
    "$bin/cmake" --build "$1" --target core_check --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-2}" >>build/aarch64.log
}
here=$(ls -td build/cp3*-linux_*/ | head -n 1) # the one that the package was built in
"$bin/cmake" -S . -B build/aarch64 -G Ninja -DSPLATOPT_CORE_ONLY=ON -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_MAKE_PROGRAM="$bin/ninja" \
    -DPython_EXECUTABLE="$bin/python" >build/aarch64.log
build "$here"
build build/aarch64
"$here/core_check" write build/aarch64/portable.bin
qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/core_check compare build/aarch64/portable.bin
