#include "aclserve/error.h"

#include <google/protobuf/duration.pb.h>

#include "status_details.pb.h"

namespace aclserve {
namespace {

constexpr char kDomain[] = "aclserve";

std::chrono::nanoseconds Nanoseconds(const google::protobuf::Duration& duration) {
  return std::chrono::seconds(duration.seconds()) + std::chrono::nanoseconds(duration.nanos());
}

std::string CodeName(grpc::StatusCode code) {
  static const char* const kNames[] = {"OK",
                                       "CANCELLED",
                                       "UNKNOWN",
                                       "INVALID_ARGUMENT",
                                       "DEADLINE_EXCEEDED",
                                       "NOT_FOUND",
                                       "ALREADY_EXISTS",
                                       "PERMISSION_DENIED",
                                       "RESOURCE_EXHAUSTED",
                                       "FAILED_PRECONDITION",
                                       "ABORTED",
                                       "OUT_OF_RANGE",
                                       "UNIMPLEMENTED",
                                       "INTERNAL",
                                       "UNAVAILABLE",
                                       "DATA_LOSS",
                                       "UNAUTHENTICATED"};
  return code >= 0 && code <= grpc::UNAUTHENTICATED ? kNames[code] : "UNKNOWN";
}

// The message in a detail of the given kind; nothing for a detail of another kind.
template <typename Message>
std::optional<Message> Unpack(const google::protobuf::Any& detail, const char* kind) {
  Message message;
  const bool is_kind = detail.type_url() == std::string("type.googleapis.com/google.rpc.") + kind;
  return is_kind && message.ParseFromString(detail.value()) ? std::optional(message) : std::nullopt;
}

}  // namespace

bool Error::IsResumable() const {
  // What gRPC reports, without a reason, for a connection torn down under a call; and our own.
  return code == grpc::UNAVAILABLE || retry_delay.count() > 0 || reason == "CANCELLED" ||
         reason == "UNKNOWN" || reason == "INTERNAL" || reason == "STREAM_NOT_READY";
}

std::optional<Error> ItemError(const v1::InferResult& result) {
  if (!result.has_error()) return std::nullopt;
  const v1::ItemError& from = result.error();
  Error error(static_cast<grpc::StatusCode>(from.code()), from.reason(), from.message());
  error.metadata = {from.metadata().begin(), from.metadata().end()};
  error.retry_delay = Nanoseconds(from.retry_delay());
  return error;
}

Error CallError(const grpc::Status& status) {
  std::string reason = CodeName(status.error_code());
  std::map<std::string, std::string> metadata;
  std::chrono::nanoseconds retry_delay{0};
  kit::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      if (const auto info = Unpack<kit::ErrorInfo>(detail, "ErrorInfo");
          info && info->domain() == kDomain) {
        reason = info->reason();
        metadata = {info->metadata().begin(), info->metadata().end()};
      } else if (const auto retry = Unpack<kit::RetryInfo>(detail, "RetryInfo")) {
        retry_delay = Nanoseconds(retry->retry_delay());
      }
    }
  }
  Error error(status.error_code(), reason, status.error_message());
  error.metadata = std::move(metadata);
  error.retry_delay = retry_delay;
  return error;
}

}  // namespace aclserve
