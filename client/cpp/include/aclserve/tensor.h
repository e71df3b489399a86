#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "aclserve/v1/model.pb.h"

namespace aclserve {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are little-endian on the wire");

template <typename T>
struct DataTypeOf;
// clang-format off
template <> struct DataTypeOf<uint8_t> { static constexpr auto value = v1::DATA_TYPE_UINT8; };
template <> struct DataTypeOf<uint16_t> { static constexpr auto value = v1::DATA_TYPE_UINT16; };
template <> struct DataTypeOf<uint32_t> { static constexpr auto value = v1::DATA_TYPE_UINT32; };
template <> struct DataTypeOf<uint64_t> { static constexpr auto value = v1::DATA_TYPE_UINT64; };
template <> struct DataTypeOf<int8_t> { static constexpr auto value = v1::DATA_TYPE_INT8; };
template <> struct DataTypeOf<int16_t> { static constexpr auto value = v1::DATA_TYPE_INT16; };
template <> struct DataTypeOf<int32_t> { static constexpr auto value = v1::DATA_TYPE_INT32; };
template <> struct DataTypeOf<int64_t> { static constexpr auto value = v1::DATA_TYPE_INT64; };
template <> struct DataTypeOf<float> { static constexpr auto value = v1::DATA_TYPE_FLOAT32; };
template <> struct DataTypeOf<double> { static constexpr auto value = v1::DATA_TYPE_FLOAT64; };
// clang-format on

/// An input from values in row-major order. For a model that batches, the first dimension counts
/// rows.
template <typename T>
v1::Tensor MakeTensor(const std::string& name, const std::vector<int64_t>& shape,
                      const std::vector<T>& values) {
  v1::Tensor tensor;
  tensor.set_name(name);
  tensor.set_data_type(DataTypeOf<T>::value);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  tensor.set_data(values.data(), values.size() * sizeof(T));
  return tensor;
}

/// The elements of an output in row-major order. Throws std::invalid_argument for another type.
template <typename T>
std::vector<T> Values(const v1::Tensor& tensor) {
  if (tensor.data_type() != DataTypeOf<T>::value) {
    throw std::invalid_argument("tensor '" + tensor.name() + "' has elements of " +
                                v1::DataType_Name(tensor.data_type()) + ", asked for " +
                                v1::DataType_Name(DataTypeOf<T>::value));
  }
  std::vector<T> values(tensor.data().size() / sizeof(T));
  if (!values.empty()) {
    std::memcpy(values.data(), tensor.data().data(), values.size() * sizeof(T));
  }
  return values;
}

/// Finds an output by name. Throws std::invalid_argument where there is none.
inline const v1::Tensor& Output(const v1::Outputs& outputs, const std::string& name) {
  for (const v1::Tensor& tensor : outputs.tensors()) {
    if (tensor.name() == name) return tensor;
  }
  throw std::invalid_argument("no output '" + name + "' in the result");
}

}  // namespace aclserve
