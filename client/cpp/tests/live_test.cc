// Against the server that ACLSERVE_ADDRESS names.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <set>
#include <stdexcept>
#include <thread>

#include "aclserve/stream.h"

namespace aclserve {
namespace {

v1::InferItem Image(int64_t size) {
  v1::InferItem item;
  const std::vector<float> pixels(static_cast<size_t>(size * size));
  *item.add_inputs() = MakeTensor("image", {1, size, size}, pixels);
  return item;
}

// Passes connections on, until it cuts them.
class Proxy {
 public:
  explicit Proxy(const std::string& target) {
    const size_t colon = target.rfind(':');
    target_.sin_family = AF_INET;
    target_.sin_port = htons(static_cast<uint16_t>(std::stoi(target.substr(colon + 1))));
    inet_pton(AF_INET, target.substr(0, colon).c_str(), &target_.sin_addr);
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(own);
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener_, reinterpret_cast<sockaddr*>(&own), size) != 0 ||
        listen(listener_, 8) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&own), &size) != 0) {
      throw std::runtime_error("cannot listen on the loopback");
    }
    port_ = ntohs(own.sin_port);
    threads_.emplace_back([this] { Accept(); });
  }

  ~Proxy() {
    shutdown(listener_, SHUT_RDWR);
    threads_.front().join();
    Cut();
    for (size_t i = 1; i < threads_.size(); ++i) threads_[i].join();
    for (const int connection : connections_) close(connection);
    close(listener_);
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  void Cut() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const int connection : connections_) shutdown(connection, SHUT_RDWR);
  }

 private:
  void Accept() {
    int client = 0;
    while ((client = accept(listener_, nullptr, nullptr)) >= 0) {
      const int server = socket(AF_INET, SOCK_STREAM, 0);
      if (connect(server, reinterpret_cast<sockaddr*>(&target_), sizeof(target_)) != 0) {
        ADD_FAILURE() << "the server cannot be reached";
      }
      const std::lock_guard<std::mutex> lock(mutex_);
      connections_.insert(connections_.end(), {client, server});
      threads_.emplace_back([=] { Pass(client, server); });
      threads_.emplace_back([=] { Pass(server, client); });
    }
  }

  static void Pass(int from, int to) {
    char data[4096];
    ssize_t size = 0;
    while ((size = recv(from, data, sizeof(data), 0)) > 0) {
      if (send(to, data, static_cast<size_t>(size), MSG_NOSIGNAL) != size) break;
    }
    shutdown(from, SHUT_RDWR);
    shutdown(to, SHUT_RDWR);
  }

  sockaddr_in target_{};
  int listener_ = -1;
  uint16_t port_ = 0;
  std::mutex mutex_;
  std::vector<int> connections_;
  std::vector<std::thread> threads_;
};

class LiveTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* address = std::getenv("ACLSERVE_ADDRESS");
    if (address == nullptr) GTEST_SKIP() << "ACLSERVE_ADDRESS does not name a server";
    address_ = address;
    config_.set_model("digits");
  }

  std::string address_;
  v1::StreamConfig config_;
  std::vector<v1::InferResult> results_;
};

TEST_F(LiveTest, BadItemDoesNotEndTheStream) {
  config_.set_preset(v1::STREAM_PRESET_FILE);
  config_.set_max_pending_items(4);
  Stream stream(Connect(address_), config_,
                [&](const v1::InferResult& result) { results_.push_back(result); });
  EXPECT_EQ(stream.Ready().max_pending_items(), 4u);
  for (int i = 0; i < 20; ++i) stream.Send(Image(i == 5 ? 7 : 8));
  const v1::StreamSummary summary = stream.Finish();
  EXPECT_EQ(summary.succeeded_items(), 19u);
  EXPECT_EQ(summary.failed_items(), 1u);
  ASSERT_EQ(results_.size(), 20u);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(results_[i].id(), std::to_string(i));
  EXPECT_EQ(ItemError(results_[5])->reason, "SHAPE_MISMATCH");
}

// A connection that is cut in the middle is made again, and the handler sees nothing of it.
TEST_F(LiveTest, ConnectionThatIsCut) {
  Proxy proxy(address_);
  config_.set_max_pending_items(8);
  std::set<std::string> ids;
  Stream stream(Connect(proxy.address()), config_, [&](const v1::InferResult& result) {
    results_.push_back(result);
    ids.insert(result.id());
    if (ids.size() == 50 || ids.size() == 150) proxy.Cut();
  });
  for (int i = 0; i < 300; ++i) stream.Send(Image(8));
  EXPECT_EQ(stream.Finish().succeeded_items(), 300u);
  EXPECT_EQ(stream.Resumed(), 2);
  EXPECT_EQ(ids.size(), 300u);
  EXPECT_EQ(results_.size(), 300u);
}

}  // namespace
}  // namespace aclserve
