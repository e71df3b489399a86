package aclserve.examples;

import aclserve.client.AclserveException;
import aclserve.client.AclserveStream;
import aclserve.client.Tensors;
import aclserve.v1.InferItem;
import aclserve.v1.InferResult;
import aclserve.v1.StreamConfig;
import io.grpc.ManagedChannel;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Locale;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Streams the held-out digits to the model {@code digits} and prints how many were recognised.
 * Argument: HOST:PORT.
 */
public final class Digits {
  private static final int IMAGE_SIZE = 8 * 8;

  private Digits() {}

  /** How many of how many images were recognised. */
  record Score(int right, int count) {
    @Override
    public String toString() {
      double percent = 100.0 * right / count;
      return String.format(Locale.ROOT, "accuracy    %.1f%% of %d answers", percent, count);
    }
  }

  public static void main(String[] arguments) throws IOException, InterruptedException {
    String address =
        arguments.length > 0
            ? arguments[0]
            : Optional.ofNullable(System.getenv("ACLSERVE_ADDRESS")).orElse("127.0.0.1:8001");
    try {
      System.out.println(recognise(address, folder()));
    } catch (AclserveException e) {
      System.err.println("failed: " + e.getMessage());
      System.exit(1);
    }
  }

  /** Where the images are: $ACLSERVE_DIGITS, or demo/digits above the working directory. */
  static Path folder() {
    String stated = System.getenv("ACLSERVE_DIGITS");
    if (stated != null) {
      return Path.of(stated);
    }
    Path start = Path.of("").toAbsolutePath();
    for (Path above = start; above != null; above = above.getParent()) {
      if (Files.isDirectory(above.resolve("demo/digits"))) {
        return above.resolve("demo/digits");
      }
    }
    throw new IllegalStateException("no demo/digits above " + start + "; set ACLSERVE_DIGITS");
  }

  /** Sends each image as one item and counts the answers that name the right digit. */
  static Score recognise(String address, Path folder) throws IOException, InterruptedException {
    byte[] images = readNpy(folder.resolve("heldout_images.npy"));
    byte[] labels = readNpy(folder.resolve("heldout_labels.npy"));
    AtomicInteger right = new AtomicInteger();
    AtomicInteger count = new AtomicInteger();
    AtomicReference<AclserveException> failed = new AtomicReference<>();
    ManagedChannel channel = AclserveStream.connect(address);
    StreamConfig config = StreamConfig.newBuilder().setModel("digits").build();
    try (AclserveStream stream =
        AclserveStream.open(
            channel,
            config,
            result -> {
              Optional<AclserveException> error = AclserveException.ofItem(result);
              if (error.isPresent()) {
                failed.compareAndSet(null, error.get());
                return;
              }
              count.incrementAndGet();
              int image = Integer.parseInt(result.getId()); // its position: items have no id
              if (label(result) == labels[image]) {
                right.incrementAndGet();
              }
            })) {
      for (int start = 0; start < images.length; start += IMAGE_SIZE) {
        float[] pixels = new float[IMAGE_SIZE];
        for (int i = 0; i < IMAGE_SIZE; i++) {
          pixels[i] = images[start + i];
        }
        stream.send(
            InferItem.newBuilder().addInputs(Tensors.ofFloats("image", pixels, 1, 8, 8)).build());
      }
      stream.finish();
    } finally {
      channel.shutdownNow();
    }
    if (failed.get() != null) {
      throw failed.get();
    }
    return new Score(right.get(), count.get());
  }

  private static long label(InferResult result) {
    return Tensors.longs(Tensors.output(result.getOutputs(), "label"))[0];
  }

  /**
   * The bytes of an array of uint8 in numpy's format: six bytes of magic, two of version, two of
   * the header's length, the header, the array.
   */
  private static byte[] readNpy(Path path) throws IOException {
    byte[] data = Files.readAllBytes(path);
    ByteBuffer header = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN);
    if (data.length < 10 || data[0] != (byte) 0x93 || data[1] != 'N') {
      throw new IOException(path + " is no .npy file");
    }
    return Arrays.copyOfRange(data, 10 + Short.toUnsignedInt(header.getShort(8)), data.length);
  }
}
