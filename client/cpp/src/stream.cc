#include "aclserve/stream.h"

#include <algorithm>
#include <random>
#include <utility>

namespace aclserve {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;

constexpr int kMaxMessageBytes = 65 << 20;
constexpr int64_t kItemOverheadBytes = 16;  // an item's tag and length, the message around it
constexpr int kPackItems = 32;
constexpr int64_t kPackBytes = 1 << 20;
constexpr nanoseconds kMaxBackoff = std::chrono::seconds(5);

uint64_t InlineBytes(const v1::InferItem& item) {
  uint64_t bytes = 0;
  for (const v1::Tensor& input : item.inputs()) bytes += input.data().size();
  return bytes;
}

void Add(Window::Load& load, uint64_t bytes) {
  load.items += 1;
  load.bytes += bytes;
}

void Remove(Window::Load& load, uint64_t bytes) {
  load.items -= 1;
  load.bytes -= bytes;
}

}  // namespace

// One call. Guarded by the stream's mutex, but for `context` and `rpc`, which are safe by
// themselves.
struct Stream::Call {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StreamInferRequest, v1::StreamInferResponse>> rpc;
  bool connected = false;
  bool going_away = false;
  bool late = false;
  bool over = false;  // nothing more will be received
};

std::shared_ptr<grpc::Channel> Connect(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 330'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

bool Window::Fits(const Load& load, uint64_t item_bytes) const {
  const uint64_t least = std::max<uint64_t>(1, items);
  const uint64_t most = drops ? least + std::max<uint64_t>(least, 32) : least;
  const uint64_t most_bytes = drops ? 2 * bytes : bytes;
  return load.items == 0 ||
         (load.items < most && (most_bytes == 0 || load.bytes + item_bytes <= most_bytes));
}

Stream::Stream(std::shared_ptr<grpc::Channel> channel, v1::StreamConfig config, Handler handler,
               Options options)
    : channel_(std::move(channel)),
      stub_(v1::ModelService::NewStub(channel_)),
      config_(std::move(config)),
      handler_(std::move(handler)),
      options_(options),
      deadline_(options.timeout.count() > 0 ? std::chrono::system_clock::now() + options.timeout
                                            : std::chrono::system_clock::time_point::max()),
      thread_([this] { Run(); }) {
  Lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_ || ended_; });
  if (!ready_) {
    lock.unlock();
    thread_.join();
    throw *error_;
  }
}

Stream::~Stream() {
  Close();
  thread_.join();
}

std::string Stream::Send(v1::InferItem item) {
  Lock lock(mutex_);
  CheckMayWait();
  const uint64_t bytes = InlineBytes(item);
  changed_.wait(lock, [&] { return ended_ || finished_ || window_.Fits(added_, bytes); });
  if (error_) throw *error_;
  if (ended_ || finished_) {
    throw Error(grpc::FAILED_PRECONDITION, "STREAM_FINISHED",
                "the stream is finished; open another one");
  }
  const std::string id = item.id().empty() ? std::to_string(sent_) : item.id();
  item.set_id(id);
  if (pending_.count(id) > 0) {
    throw Error(grpc::ALREADY_EXISTS, "DUPLICATE_ITEM_ID",
                "item '" + id + "' is pending on this stream");
  }
  if (const size_t size = item.ByteSizeLong() + kItemOverheadBytes; size > MessageLimit()) {
    throw Error(grpc::RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE",
                "item '" + id + "' takes " + std::to_string(size) +
                    " bytes; one message may have " + std::to_string(MessageLimit()));
  }
  auto entry = std::make_shared<Entry>();
  entry->item = std::move(item);
  entry->number = sent_++;
  entry->bytes = bytes;
  pending_[id] = entry;
  outgoing_.push_back(std::move(entry));
  Add(added_, bytes);
  changed_.notify_all();
  return id;
}

v1::StreamSummary Stream::Finish() {
  Lock lock(mutex_);
  CheckMayWait();
  finished_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return ended_; });
  if (error_) throw *error_;
  return summary_;
}

void Stream::Close() {
  Lock lock(mutex_);
  closing_ = true;
  if (call_ != nullptr) call_->context.TryCancel();
  changed_.notify_all();
}

v1::StreamReady Stream::Ready() const {
  Lock lock(mutex_);
  return *ready_;
}

int Stream::Resumed() const {
  Lock lock(mutex_);
  return resumed_;
}

void Stream::CheckMayWait() const {
  if (std::this_thread::get_id() == thread_.get_id()) {
    throw std::logic_error("Send and Finish wait for results: not in their handler");
  }
}

size_t Stream::MessageLimit() const {
  const uint64_t stated = ready_->max_message_bytes();
  return stated > 0 ? std::min<uint64_t>(stated, kMaxMessageBytes) : kMaxMessageBytes;
}

// Opens calls until the stream has ended. On the stream's thread.
void Stream::Run() {
  while (true) {
    Call call;
    std::optional<Error> failure;
    try {
      failure = Serve(call);
    } catch (const std::exception& error) {  // the handler's
      failure = Error(grpc::CANCELLED, "RESULT_HANDLER_FAILED",
                      std::string("the handler of results threw: ") + error.what());
    } catch (...) {
      failure = Error(grpc::CANCELLED, "RESULT_HANDLER_FAILED", "the handler of results threw");
    }
    if (!Reopens(call, failure)) {
      End(std::move(failure));
      return;
    }
  }
}

// One call, from its opening to its end; nothing when the server ended it with OK.
std::optional<Error> Stream::Serve(Call& call) {
  if (deadline_ != std::chrono::system_clock::time_point::max()) {
    call.context.set_deadline(deadline_);
  }
  call.rpc = stub_->StreamInfer(&call.context);
  {
    Lock lock(mutex_);
    call_ = &call;
    if (closing_) call.context.TryCancel();
  }
  v1::StreamInferRequest request;
  *request.mutable_config() = config_;
  call.rpc->Write(request);  // where it fails, Finish tells the reason
  std::thread writer([this, &call] { Write(call); });
  std::exception_ptr thrown;
  try {
    for (v1::StreamInferResponse response; call.rpc->Read(&response);) Receive(call, response);
  } catch (...) {
    thrown = std::current_exception();
    call.context.TryCancel();
    for (v1::StreamInferResponse rest; call.rpc->Read(&rest);) {
    }
  }
  {
    Lock lock(mutex_);
    call.over = true;
    call_ = nullptr;
    changed_.notify_all();
  }
  writer.join();
  const grpc::Status status = call.rpc->Finish();
  if (thrown) std::rethrow_exception(thrown);
  if (call.late || (status.ok() && !call.connected)) {
    return Error(grpc::DEADLINE_EXCEEDED, "STREAM_NOT_READY",
                 "the server did not accept the stream within " +
                     std::to_string(options_.open_timeout.count()) + " ms");
  }
  if (status.ok()) return std::nullopt;
  return CallError(status);
}

// Sends on a call what the window admits, until nothing more may be sent on it. On a thread of its
// own, since sending may block.
void Stream::Write(Call& call) {
  Lock lock(mutex_);
  if (!changed_.wait_for(lock, options_.open_timeout,
                         [&] { return call.connected || call.over; })) {
    call.late = true;
    call.context.TryCancel();
    return;
  }
  while (true) {
    v1::StreamInferRequest request;
    changed_.wait(lock, [&] { return Pack(call, *request.mutable_items()); });
    if (request.items().items().empty()) break;
    lock.unlock();
    const bool written = call.rpc->Write(request);
    lock.lock();
    if (!written) return;  // Finish tells the reason
  }
  if (!call.over) {
    lock.unlock();
    call.rpc->WritesDone();
  }
}

// Takes the items that may be sent now, together. False while there are none; true without any when
// none will follow on this call. Holds the mutex.
bool Stream::Pack(const Call& call, v1::ItemList& items) {
  if (call.over || call.going_away || (finished_ && outgoing_.empty())) return true;
  int64_t room = std::min<int64_t>(kPackBytes, MessageLimit());
  while (!outgoing_.empty() && items.items_size() < kPackItems) {
    Entry& entry = *outgoing_.front();
    room -= static_cast<int64_t>(entry.item.ByteSizeLong()) + kItemOverheadBytes;
    if ((items.items_size() > 0 && room < 0) || !window_.Fits(away_, entry.bytes)) break;
    entry.away = true;
    Add(away_, entry.bytes);
    *items.add_items() = entry.item;
    outgoing_.pop_front();
  }
  return items.items_size() > 0;
}

// Takes note of a call's configuration. Holds the mutex.
void Stream::Opened(Call& call, const v1::StreamReady& ready) {
  if (call.late) return;
  call.connected = true;
  if (ready_) ++resumed_;
  ready_ = ready;
  window_ = {ready.max_pending_items(), ready.max_pending_bytes(),
             ready.policy() > v1::FRAME_POLICY_WAIT};
  if (pending_.empty()) failures_ = 0;
}

// Takes one message of the server, and hands its results out.
void Stream::Receive(Call& call, const v1::StreamInferResponse& response) {
  std::vector<v1::InferResult> results;
  {
    Lock lock(mutex_);
    switch (response.response_case()) {
      case v1::StreamInferResponse::kReady:
        Opened(call, response.ready());
        break;
      case v1::StreamInferResponse::kResults:
        for (const v1::InferResult& result : response.results().results()) {
          if (Answered(result)) results.push_back(result);
        }
        failures_ = 0;
        break;
      case v1::StreamInferResponse::kWindow:
        window_.items = response.window().max_pending_items();
        window_.bytes = response.window().max_pending_bytes();
        break;
      case v1::StreamInferResponse::kGoingAway:
        call.going_away = true;
        break;
      default:  // the summary: ours counts over all calls
        break;
    }
    changed_.notify_all();
  }
  Deliver(results);
}

// Takes note of an item's result; false for an item that is not pending. Holds the mutex.
bool Stream::Answered(const v1::InferResult& result) {
  const auto found = pending_.find(result.id());
  if (found == pending_.end()) return false;
  const std::shared_ptr<Entry> entry = found->second;
  pending_.erase(found);
  Remove(added_, entry->bytes);
  if (entry->away) Remove(away_, entry->bytes);
  summary_.set_received_items(summary_.received_items() + 1);
  if (result.has_outputs()) {
    summary_.set_succeeded_items(summary_.succeeded_items() + 1);
  } else if (result.has_dropped()) {
    const std::string name = v1::DropReason_Name(result.dropped().reason());
    summary_.set_dropped_items(summary_.dropped_items() + 1);
    ++(*summary_.mutable_drops())[name.substr(name.find("REASON_") + 7)];
  } else {
    summary_.set_failed_items(summary_.failed_items() + 1);
  }
  return true;
}

void Stream::Deliver(const std::vector<v1::InferResult>& results) {
  for (const v1::InferResult& result : results) handler_(result);
}

// Whether to open the stream again after a call's end; if so, after the wait for that.
bool Stream::Reopens(const Call& call, const std::optional<Error>& failure) {
  Lock lock(mutex_);
  if (closing_ || (finished_ && pending_.empty())) return false;
  const Error away(grpc::UNAVAILABLE, "SERVER_GOING_AWAY", "the server is shutting down");
  const bool moves = !failure && call.going_away;
  if (!moves && !(failure && failure->IsResumable())) return false;
  for (const auto& [id, entry] : pending_) entry->away = false;
  away_ = {};
  outgoing_.clear();
  for (const auto& [id, entry] : pending_) outgoing_.push_back(entry);
  std::sort(outgoing_.begin(), outgoing_.end(),
            [](const auto& a, const auto& b) { return a->number < b->number; });
  const std::optional<nanoseconds> delay = DelayAfter(moves ? away : *failure);
  if (!delay) return false;
  changed_.wait_for(lock, *delay, [this] { return closing_; });
  return !closing_;
}

// When to open a lost stream again; nothing for never. Holds the mutex.
std::optional<nanoseconds> Stream::DelayAfter(const Error& failure) {
  if (++failures_ == 1) {
    give_up_ = steady_clock::now() + (ready_ ? options_.resume_timeout : options_.open_timeout);
  }
  nanoseconds delay{0};
  if (failure.retry_delay.count() > 0) {
    delay = failure.retry_delay;
  } else if (failures_ > 1 || failure.reason != "SERVER_GOING_AWAY") {
    delay =
        std::min(kMaxBackoff, nanoseconds(options_.backoff) * (1 << std::min(failures_ - 1, 16)));
    // Shorter by chance, so that many clients do not come at the same time.
    static thread_local std::minstd_rand random(std::random_device{}());
    const double part = std::uniform_real_distribution<>(0.5, 1)(random);
    delay = nanoseconds(static_cast<int64_t>(static_cast<double>(delay.count()) * part));
  }
  if (failures_ > options_.resume_attempts || steady_clock::now() + delay >= give_up_) {
    return std::nullopt;
  }
  return delay;
}

// The last word: an error, or an answer to all that is left.
void Stream::End(std::optional<Error> failure) {
  std::vector<v1::InferResult> unanswered;
  {
    Lock lock(mutex_);
    const bool handler_failed = failure && failure->reason == "RESULT_HANDLER_FAILED";
    if (finished_ && pending_.empty() && !handler_failed) {
      failure.reset();
    } else if (closing_) {
      failure = Error(grpc::CANCELLED, "STREAM_CLOSED", "the stream was closed");
    }
    if (!failure) {
      for (const auto& [id, entry] : pending_) {
        v1::InferResult& result = unanswered.emplace_back();
        result.set_id(id);
        result.mutable_error()->set_code(grpc::INTERNAL);
        result.mutable_error()->set_reason("ITEM_NOT_ANSWERED");
        result.mutable_error()->set_message(
            "the server ended the stream without answering this item");
      }
      for (const v1::InferResult& result : unanswered) Answered(result);
    }
  }
  try {
    Deliver(unanswered);
  } catch (...) {
    failure = Error(grpc::CANCELLED, "RESULT_HANDLER_FAILED", "the handler of results threw");
  }
  Lock lock(mutex_);
  error_ = std::move(failure);
  ended_ = true;
  changed_.notify_all();
}

}  // namespace aclserve
