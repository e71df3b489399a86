#!/bin/sh
# Says in one line what this machine lacks to build the kit, and fails; silent where nothing is missing.
packages=
need() { packages="$packages $1"; }
have() { command -v "$1" >/dev/null 2>&1; }
header() { printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | c++ -x c++ -E - >/dev/null 2>&1; }

have c++ || need g++
have cmake || need cmake
have ninja || need ninja-build
have protoc || need protobuf-compiler
have grpc_cpp_plugin || need protobuf-compiler-grpc
if have c++; then
  header google/protobuf/message.h || need libprotobuf-dev
  header grpcpp/grpcpp.h || need libgrpc++-dev
  header gtest/gtest.h || need libgtest-dev
fi
[ -z "$packages" ] && exit 0
echo "missing; on Debian: apt-get install$packages"
exit 1
