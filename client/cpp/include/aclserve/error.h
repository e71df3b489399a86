#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "aclserve/v1/model.pb.h"

namespace aclserve {

/// Says why a call failed or an item has no outputs.
class Error : public std::runtime_error {
 public:
  Error(grpc::StatusCode code, std::string reason, const std::string& message)
      : std::runtime_error(message + " (" + reason + ")"), code(code), reason(std::move(reason)) {}

  grpc::StatusCode code;
  /// Stable, such as SHAPE_MISMATCH; the name of the code where the server gave none.
  std::string reason;
  std::map<std::string, std::string> metadata;
  /// Above zero where the same may succeed later: when to try again.
  std::chrono::nanoseconds retry_delay{0};

  /// True where the server was lost, and where it says that another attempt may succeed.
  bool IsResumable() const;
};

/// The error of one item; nothing for a result without one.
std::optional<Error> ItemError(const v1::InferResult& result);

/// What the failure of a call of the generated stubs means.
Error CallError(const grpc::Status& status);

}  // namespace aclserve
