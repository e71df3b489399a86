#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "aclserve/error.h"
#include "aclserve/tensor.h"
#include "aclserve/v1/model.grpc.pb.h"

namespace aclserve {

/// A connection that suits the server: its message size, quick reconnection, probes.
std::shared_ptr<grpc::Channel> Connect(const std::string& address,
                                       const std::shared_ptr<grpc::ChannelCredentials>&
                                           credentials = grpc::InsecureChannelCredentials());

/// How a stream is opened.
struct Options {
  /// Bounds the time until the stream is ready.
  std::chrono::milliseconds open_timeout{30'000};
  /// Bounds how long a stream that was ready may be without a server.
  std::chrono::milliseconds resume_timeout{120'000};
  /// How often a lost stream is opened again without an answer in between.
  int resume_attempts = 30;
  /// The wait before the second attempt; it doubles, up to 5 s.
  std::chrono::milliseconds backoff{100};
  /// Bounds the whole stream; zero for no limit.
  std::chrono::milliseconds timeout{0};
};

/// How much may be on its way. Where the frame policy gives items up (`drops`), the server must see
/// those that are too many, so as many again may be on their way, at least 32.
struct Window {
  /// So many items of so many bytes of inline inputs.
  struct Load {
    uint64_t items = 0;
    uint64_t bytes = 0;
  };

  uint64_t items = 0;
  uint64_t bytes = 0;
  bool drops = false;

  bool Fits(const Load& load, uint64_t item_bytes) const;
};

/// Sends items to a server and hands out one result for each, over as many calls as that takes:
/// when the server is lost or goes away, the stream is opened again and items without an answer are
/// sent again. An item may so run twice; it still has one result.
///
/// Results go to a handler, one after the other, on a thread of the stream; while it works, nothing
/// is received, so it may take its time. All methods may be called from any thread; Send and Finish
/// wait, and so not from the handler. The handler must not destroy the stream.
class Stream {
 public:
  using Handler = std::function<void(const v1::InferResult&)>;

  /// Opens a stream and waits until the server has accepted its configuration. Throws Error.
  Stream(std::shared_ptr<grpc::Channel> channel, v1::StreamConfig config, Handler handler,
         Options options = {});
  /// Gives the stream up, if it has not ended.
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// Hands an item over, after waiting for room in the window, and returns its id: its own, or its
  /// position in the stream. Throws Error.
  std::string Send(v1::InferItem item);
  /// Says that no item follows, and waits until all have their results. Returns how many there were
  /// over all calls; throws the Error that broke the stream.
  v1::StreamSummary Finish();
  /// Gives the stream up, if it has not ended. What waits in Send and Finish then throws.
  void Close();
  /// What the server answered to the configuration: window, order, policy.
  v1::StreamReady Ready() const;
  /// How often the stream was opened again.
  int Resumed() const;

 private:
  struct Call;
  /// An item that is not answered.
  struct Entry {
    v1::InferItem item;
    uint64_t number = 0;
    uint64_t bytes = 0;
    bool away = false;
  };
  using Lock = std::unique_lock<std::mutex>;

  void Run();
  std::optional<Error> Serve(Call& call);
  void Write(Call& call);
  bool Pack(const Call& call, v1::ItemList& items);
  void Opened(Call& call, const v1::StreamReady& ready);
  void Receive(Call& call, const v1::StreamInferResponse& response);
  bool Answered(const v1::InferResult& result);
  void Deliver(const std::vector<v1::InferResult>& results);
  bool Reopens(const Call& call, const std::optional<Error>& failure);
  std::optional<std::chrono::nanoseconds> DelayAfter(const Error& failure);
  void End(std::optional<Error> failure);
  void CheckMayWait() const;
  size_t MessageLimit() const;

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::ModelService::Stub> stub_;
  const v1::StreamConfig config_;
  const Handler handler_;
  const Options options_;
  const std::chrono::system_clock::time_point deadline_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  Call* call_ = nullptr;
  std::unordered_map<std::string, std::shared_ptr<Entry>> pending_;
  std::deque<std::shared_ptr<Entry>> outgoing_;  // those of pending_ that are still to be sent
  Window window_;
  Window::Load added_;  // of pending_
  Window::Load away_;   // of those that the server has
  v1::StreamSummary summary_;
  std::optional<v1::StreamReady> ready_;
  std::optional<Error> error_;
  bool finished_ = false;
  bool closing_ = false;
  bool ended_ = false;
  uint64_t sent_ = 0;
  int resumed_ = 0;
  int failures_ = 0;
  std::chrono::steady_clock::time_point give_up_;  // for the attempts since the first failure

  std::thread thread_;
};

}  // namespace aclserve
