// Streams the held-out digits to the model `digits` and prints how many were recognised.
//
//   digits [HOST:PORT]

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "aclserve/stream.h"

namespace {

constexpr size_t kImageSize = 8 * 8;

std::string Environment(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

// The bytes of an array of uint8 in numpy's format: six bytes of magic, two of version, two of the
// header's length, the header, the array.
std::vector<uint8_t> ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<uint8_t> data{std::istreambuf_iterator<char>(file), {}};
  const size_t header = data.size() < 10 ? 0 : data[8] + 256u * data[9];
  if (header == 0 || data[0] != 0x93 || data.size() < 10 + header) {
    throw std::runtime_error(path + " is no .npy file");
  }
  data.erase(data.begin(), data.begin() + 10 + static_cast<std::ptrdiff_t>(header));
  return data;
}

// Sends each image as one item, counts the answers that name the right digit, and prints it.
void Recognise(const std::string& address, const std::string& folder) {
  const std::vector<uint8_t> images = ReadNpy(folder + "/heldout_images.npy");
  const std::vector<uint8_t> labels = ReadNpy(folder + "/heldout_labels.npy");
  size_t right = 0;
  size_t count = 0;
  std::optional<aclserve::Error> failed;
  aclserve::v1::StreamConfig config;
  config.set_model("digits");
  aclserve::Stream stream(
      aclserve::Connect(address), config, [&](const aclserve::v1::InferResult& result) {
        if (const auto error = aclserve::ItemError(result)) {
          if (!failed) failed = error;
          return;
        }
        const size_t image = std::stoul(result.id());  // an item without an id has its position
        const auto& label = aclserve::Output(result.outputs(), "label");
        right += aclserve::Values<int64_t>(label).at(0) == labels.at(image) ? 1 : 0;
        ++count;
      });
  for (auto image = images.begin(); image != images.end(); image += kImageSize) {
    const std::vector<float> pixels(image, image + kImageSize);
    aclserve::v1::InferItem item;
    *item.add_inputs() = aclserve::MakeTensor("image", {1, 8, 8}, pixels);
    stream.Send(std::move(item));
  }
  stream.Finish();
  if (failed) throw *failed;
  const double percent = 100.0 * static_cast<double>(right) / static_cast<double>(count);
  std::printf("accuracy    %.1f%% of %zu answers\n", percent, count);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Recognise(argc > 1 ? argv[1] : Environment("ACLSERVE_ADDRESS", "127.0.0.1:8001"),
              Environment("ACLSERVE_DIGITS", ACLSERVE_DIGITS_FOLDER));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
  return 0;
}
