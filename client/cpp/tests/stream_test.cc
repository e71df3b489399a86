#include "aclserve/stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "script.h"
#include "status_details.pb.h"

namespace aclserve {
namespace {

using std::chrono::milliseconds;

class StreamTest : public testing::Test {
 protected:
  StreamTest() {
    config_.set_model("digits");
    options_.open_timeout = milliseconds(20'000);
    options_.backoff = milliseconds(1);
  }

  std::unique_ptr<Stream> Open(const Script& script) {
    return std::make_unique<Stream>(
        Connect(script.address()), config_,
        [this](const v1::InferResult& result) { results_.push_back(result); }, options_);
  }

  // The error of a stream that cannot be opened.
  Error Refusal(const Script& script) {
    try {
      Open(script);
    } catch (const Error& error) {
      return error;
    }
    return Error(grpc::OK, "", "the stream was opened");
  }

  v1::StreamSummary Exchange(Stream& stream, int count) {
    for (int i = 0; i < count; ++i) stream.Send({});
    const v1::StreamSummary summary = stream.Finish();
    EXPECT_EQ(Ids(), Numbers(0, count));
    return summary;
  }

  std::vector<std::string> Ids() const {
    std::vector<std::string> ids;
    for (const v1::InferResult& result : results_) ids.push_back(result.id());
    return ids;
  }

  static std::vector<std::string> Numbers(int begin, int end) {
    std::vector<std::string> numbers;
    for (int i = begin; i < end; ++i) numbers.push_back(std::to_string(i));
    return numbers;
  }

  template <typename Function>
  static void ExpectError(Function function, grpc::StatusCode code, const std::string& reason) {
    try {
      function();
      FAIL() << "no error, expected " << reason;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, code);
      EXPECT_EQ(error.reason, reason);
    }
  }

  v1::StreamConfig config_;
  Options options_;
  std::vector<v1::InferResult> results_;
};

TEST_F(StreamTest, EveryItemHasOneResult) {
  Script script({Echo});
  const auto stream = Open(script);
  const v1::StreamSummary summary = Exchange(*stream, 20);
  EXPECT_EQ(summary.received_items(), 20u);
  EXPECT_EQ(summary.succeeded_items(), 20u);
  ExpectError([&] { stream->Send({}); }, grpc::FAILED_PRECONDITION, "STREAM_FINISHED");
}

// The server answers only when the window is full: too few items hang, too many are a fault.
TEST_F(StreamTest, Window) {
  Script script({[](ScriptedCall& call) {
    call.Ready(3);
    const auto held = call.Items(3);
    call.Resize(1);
    for (const std::string& id : held) call.Answer(id);
    for (int i = 0; i < 5; ++i) call.Answer(*call.Item());
    call.Resize(2);
    for (int i = 0; i < 3; ++i) {
      for (const std::string& id : call.Items(2)) call.Answer(id);
    }
    return grpc::Status::OK;
  }});
  Exchange(*Open(script), 14);
}

TEST_F(StreamTest, WindowInBytes) {
  const aclserve::Window window{10, 100, false};
  EXPECT_TRUE(window.Fits({0, 0}, 500)) << "one alone always fits";
  EXPECT_TRUE(window.Fits({1, 60}, 40));
  EXPECT_FALSE(window.Fits({1, 60}, 41));
  EXPECT_FALSE(window.Fits({10, 0}, 0));
  const aclserve::Window drops{10, 0, true};
  EXPECT_TRUE(drops.Fits({41, 0}, 0)) << "a policy that drops takes the window and 32 items more";
  EXPECT_FALSE(drops.Fits({42, 0}, 0));
}

TEST_F(StreamTest, ResumesALostStream) {
  std::vector<std::string> again;
  Script script(
      {[](ScriptedCall& call) {
         call.Ready(4);
         call.Answer(call.Items(4).front());
         return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
       },
       [](ScriptedCall&) { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet"); },
       [&](ScriptedCall& call) {
         call.Ready(2);
         v1::StreamInferResponse known;  // answered before: not handed out again
         *known.mutable_results()->add_results() = Done("0");
         call.Send(known);
         while (const auto id = call.Item()) {
           again.push_back(*id);
           call.Answer(*id);
         }
         return grpc::Status::OK;
       }});
  const auto stream = Open(script);
  EXPECT_EQ(Exchange(*stream, 10).received_items(), 10u);
  EXPECT_EQ(stream->Resumed(), 1);
  EXPECT_EQ(again, Numbers(1, 10));
  EXPECT_EQ(script.calls(), 3);
}

TEST_F(StreamTest, GoesElsewhereWhenTheServerGoesAway) {
  Script script({[](ScriptedCall& call) {
                   call.Ready(4);
                   const auto ids = call.Items(2);
                   v1::StreamInferResponse response;
                   response.mutable_going_away()->set_last_accepted_id(ids[1]);
                   call.Send(response);
                   call.Results({Done(ids[0]), Done(ids[1])});
                   while (call.Item()) {  // the client must half-close
                   }
                   return grpc::Status::OK;
                 },
                 Echo});
  Exchange(*Open(script), 10);
  EXPECT_EQ(script.calls(), 2);
}

TEST_F(StreamTest, RefusalIsNotTriedAgain) {
  kit::ErrorInfo info;
  info.set_domain("aclserve");
  info.set_reason("MODEL_NOT_FOUND");
  (*info.mutable_metadata())["model"] = "x";
  kit::Status details;
  details.set_code(grpc::StatusCode::NOT_FOUND);
  details.add_details()->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
  details.mutable_details(0)->set_value(info.SerializeAsString());
  Script script({[&](ScriptedCall&) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model", details.SerializeAsString());
  }});
  const Error error = Refusal(script);
  EXPECT_EQ(error.code, grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(error.reason, "MODEL_NOT_FOUND");
  EXPECT_EQ(error.metadata.at("model"), "x");
  EXPECT_EQ(script.calls(), 1);
}

TEST_F(StreamTest, GivesUp) {
  options_.resume_attempts = 3;
  Script script(
      {[](ScriptedCall&) { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone"); }});
  EXPECT_EQ(Refusal(script).reason, "UNAVAILABLE");
  EXPECT_EQ(script.calls(), 4);
}

TEST_F(StreamTest, ServerThatDoesNotAcceptTheStream) {
  options_.resume_attempts = 0;
  options_.open_timeout = milliseconds(50);
  Script script({[](ScriptedCall& call) {
    call.WaitForCancellation();
    return grpc::Status::CANCELLED;
  }});
  EXPECT_EQ(Refusal(script).reason, "STREAM_NOT_READY");
}

TEST_F(StreamTest, ItemsThatCannotBeSent) {
  Script script({[](ScriptedCall& call) {
    call.Ready(4);
    const auto id = call.Item();
    if (call.Item()) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "one item was good");
    call.Answer(*id);
    return grpc::Status::OK;
  }});
  const auto stream = Open(script);
  v1::InferItem item;
  item.set_id("a");
  stream->Send(item);
  ExpectError([&] { stream->Send(item); }, grpc::ALREADY_EXISTS, "DUPLICATE_ITEM_ID");
  v1::InferItem large;
  *large.add_inputs() = MakeTensor("x", {1 << 20}, std::vector<uint8_t>(1 << 20));
  ExpectError([&] { stream->Send(large); }, grpc::RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE");
  EXPECT_EQ(stream->Finish().received_items(), 1u);
}

TEST_F(StreamTest, Outcomes) {
  Script script({[](ScriptedCall& call) {
    call.Ready(4);
    const auto ids = call.Items(3);
    v1::InferResult error;
    error.set_id(ids[0]);
    error.mutable_error()->set_code(grpc::StatusCode::INVALID_ARGUMENT);
    error.mutable_error()->set_reason("SHAPE_MISMATCH");
    v1::InferResult dropped;
    dropped.set_id(ids[1]);
    dropped.mutable_dropped()->set_reason(v1::DROP_REASON_TOO_OLD);
    call.Results({error, dropped});
    return grpc::Status::OK;  // and nothing about the third
  }});
  const v1::StreamSummary summary = Exchange(*Open(script), 3);
  EXPECT_EQ(summary.failed_items(), 2u);
  EXPECT_EQ(summary.drops().at("TOO_OLD"), 1u);
  EXPECT_EQ(ItemError(results_[0])->reason, "SHAPE_MISMATCH");
  EXPECT_EQ(ItemError(results_[2])->reason, "ITEM_NOT_ANSWERED");
}

TEST_F(StreamTest, CloseEndsEverything) {
  Script script({[](ScriptedCall& call) {
    call.Ready(1);
    call.WaitForCancellation();
    return grpc::Status::CANCELLED;
  }});
  const auto stream = Open(script);
  stream->Send({});
  auto blocked = std::async(std::launch::async, [&] { stream->Send({}); });  // the window is full
  EXPECT_EQ(blocked.wait_for(milliseconds(50)), std::future_status::timeout);
  stream->Close();
  ExpectError([&] { blocked.get(); }, grpc::CANCELLED, "STREAM_CLOSED");
  ExpectError([&] { stream->Finish(); }, grpc::CANCELLED, "STREAM_CLOSED");
}

TEST_F(StreamTest, StreamThatIsDestroyedGivesUp) {
  Script script({[](ScriptedCall& call) {
    call.Ready(1);
    call.WaitForCancellation();
    return grpc::Status::CANCELLED;
  }});
  Open(script)->Send({});
  EXPECT_TRUE(results_.empty());
}

TEST_F(StreamTest, HandlerThatThrowsEndsTheStream) {
  Script script({Echo});
  Stream stream(
      Connect(script.address()), config_,
      [](const v1::InferResult&) { throw std::invalid_argument("no"); }, options_);
  stream.Send({});
  ExpectError([&] { stream.Finish(); }, grpc::CANCELLED, "RESULT_HANDLER_FAILED");
}

TEST_F(StreamTest, HandlerMayNotWaitForItself) {
  Script script({Echo});
  std::promise<Stream*> opened;
  bool refused = false;
  Stream stream(
      Connect(script.address()), config_,
      [&, self = opened.get_future().share()](const v1::InferResult&) {
        try {
          self.get()->Finish();
        } catch (const std::logic_error&) {
          refused = true;
        }
      },
      options_);
  opened.set_value(&stream);
  stream.Send({});
  stream.Finish();
  EXPECT_TRUE(refused);
}

TEST_F(StreamTest, Tensors) {
  const v1::Tensor tensor = MakeTensor<float>("x", {2}, {1, -2});
  EXPECT_EQ(tensor.data(), std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0", 8));
  EXPECT_EQ(Values<float>(tensor), (std::vector<float>{1, -2}));
  EXPECT_THROW(Values<int64_t>(tensor), std::invalid_argument);
}

}  // namespace
}  // namespace aclserve
