#include "script.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

namespace aclserve {

void ScriptedCall::Ready(int window) {
  window_ = window;
  v1::StreamInferResponse response;
  response.mutable_ready()->set_max_pending_items(window);
  response.mutable_ready()->set_max_message_bytes(1 << 20);
  response.mutable_ready()->set_policy(v1::FRAME_POLICY_WAIT);
  Send(response);
}

void ScriptedCall::Resize(int window) {
  window_ = window;
  v1::StreamInferResponse response;
  response.mutable_window()->set_max_pending_items(window);
  Send(response);
}

void ScriptedCall::Results(const std::vector<v1::InferResult>& results) {
  held_ -= static_cast<int>(results.size());
  v1::StreamInferResponse response;
  for (const v1::InferResult& result : results) *response.mutable_results()->add_results() = result;
  Send(response);
}

void ScriptedCall::Answer(const std::string& id) { Results({Done(id)}); }

std::optional<std::string> ScriptedCall::Item() {
  while (waiting_.empty()) {
    v1::StreamInferRequest request;
    if (!rpc_->Read(&request)) return std::nullopt;
    for (const v1::InferItem& item : request.items().items()) waiting_.push_back(item.id());
    held_ += request.items().items_size();
    EXPECT_LE(held_, window_) << "items are pending beyond the window";
  }
  std::string id = waiting_.front();
  waiting_.erase(waiting_.begin());
  return id;
}

std::vector<std::string> ScriptedCall::Items(int count) {
  std::vector<std::string> ids;
  for (int i = 0; i < count; ++i) {
    if (const auto id = Item()) ids.push_back(*id);
  }
  return ids;
}

void ScriptedCall::WaitForCancellation() {
  while (!context_->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

v1::InferResult Done(const std::string& id) {
  v1::InferResult result;
  result.set_id(id);
  result.mutable_outputs();
  return result;
}

Script::Script(std::vector<Act> acts) : acts_(std::move(acts)) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
}

Script::~Script() { server_->Shutdown(std::chrono::system_clock::now()); }

int Script::calls() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return calls_;
}

grpc::Status Script::StreamInfer(grpc::ServerContext* context, ScriptedCall::Rpc* rpc) {
  size_t number = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    number = std::min<size_t>(calls_++, acts_.size() - 1);
  }
  v1::StreamInferRequest first;
  EXPECT_TRUE(rpc->Read(&first) && first.has_config()) << "the configuration comes first";
  ScriptedCall call(context, rpc);
  return acts_[number](call);
}

grpc::Status Echo(ScriptedCall& call) {
  call.Ready(4);
  while (const auto id = call.Item()) call.Answer(*id);
  return grpc::Status::OK;
}

}  // namespace aclserve
