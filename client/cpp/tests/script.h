#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "aclserve/v1/model.grpc.pb.h"

namespace aclserve {

/// One call, seen from the server. It fails the test when more items come than the window has.
class ScriptedCall {
 public:
  using Rpc = grpc::ServerReaderWriter<v1::StreamInferResponse, v1::StreamInferRequest>;

  ScriptedCall(grpc::ServerContext* context, Rpc* rpc) : context_(context), rpc_(rpc) {}

  void Ready(int window);
  void Resize(int window);
  void Send(const v1::StreamInferResponse& response) { rpc_->Write(response); }
  void Results(const std::vector<v1::InferResult>& results);
  void Answer(const std::string& id);
  /// The id of the next item; nothing when the client sends no more.
  std::optional<std::string> Item();
  std::vector<std::string> Items(int count);
  void WaitForCancellation();

 private:
  grpc::ServerContext* context_;
  Rpc* rpc_;
  std::vector<std::string> waiting_;
  int window_ = 0;
  int held_ = 0;
};

v1::InferResult Done(const std::string& id);

/// A server whose calls do what the test says, one function for each; the last serves the rest.
class Script : public v1::ModelService::Service {
 public:
  using Act = std::function<grpc::Status(ScriptedCall&)>;

  explicit Script(std::vector<Act> acts);
  ~Script() override;

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int calls();

  grpc::Status StreamInfer(grpc::ServerContext* context, ScriptedCall::Rpc* rpc) override;

 private:
  std::mutex mutex_;
  int calls_ = 0;
  int port_ = 0;
  std::vector<Act> acts_;
  std::unique_ptr<grpc::Server> server_;
};

/// Answers everything until the client sends no more.
grpc::Status Echo(ScriptedCall& call);

}  // namespace aclserve
