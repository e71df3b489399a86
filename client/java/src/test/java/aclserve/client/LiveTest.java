package aclserve.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import aclserve.v1.InferItem;
import aclserve.v1.InferResult;
import aclserve.v1.StreamConfig;
import aclserve.v1.StreamPreset;
import aclserve.v1.StreamSummary;
import aclserve.v1.Tensor;
import io.grpc.ManagedChannel;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;

@Timeout(60)
@EnabledIfEnvironmentVariable(
    named = "ACLSERVE_ADDRESS",
    matches = ".+",
    disabledReason = "ACLSERVE_ADDRESS does not name a server")
class LiveTest {
  private final List<InferResult> results = Collections.synchronizedList(new ArrayList<>());
  private ManagedChannel channel;

  private ManagedChannel connect(String address) {
    channel = AclserveStream.connect(address);
    return channel;
  }

  @AfterEach
  void disconnect() {
    channel.shutdownNow();
  }

  private static InferItem item(int size) {
    Tensor image = Tensors.ofFloats("image", new float[size * size], 1, size, size);
    return InferItem.newBuilder().addInputs(image).build();
  }

  @Test
  void badItemDoesNotEndTheStream() throws InterruptedException {
    StreamConfig config =
        StreamConfig.newBuilder()
            .setModel("digits")
            .setPreset(StreamPreset.STREAM_PRESET_FILE)
            .setMaxPendingItems(4)
            .build();
    ManagedChannel live = connect(System.getenv("ACLSERVE_ADDRESS"));
    try (AclserveStream stream = AclserveStream.open(live, config, results::add)) {
      assertEquals(4, stream.ready().getMaxPendingItems());
      for (int i = 0; i < 20; i++) {
        stream.send(item(i == 5 ? 7 : 8));
      }
      StreamSummary summary = stream.finish();
      assertEquals(19, summary.getSucceededItems());
      assertEquals(1, summary.getFailedItems());
    }
    for (int i = 0; i < 20; i++) {
      assertEquals(Integer.toString(i), results.get(i).getId());
    }
    assertEquals("SHAPE_MISMATCH", AclserveException.ofItem(results.get(5)).orElseThrow().reason());
  }

  /** A connection that is cut in the middle is made again, and the handler sees nothing of it. */
  @Test
  void connectionThatIsCut() throws IOException, InterruptedException {
    StreamConfig config =
        StreamConfig.newBuilder().setModel("digits").setMaxPendingItems(8).build();
    try (Proxy proxy = new Proxy(System.getenv("ACLSERVE_ADDRESS"));
        AclserveStream stream =
            AclserveStream.open(
                connect(proxy.address()),
                config,
                result -> {
                  results.add(result);
                  if (results.size() == 50 || results.size() == 150) {
                    proxy.cut();
                  }
                })) {
      for (int i = 0; i < 300; i++) {
        stream.send(item(8));
      }
      assertEquals(300, stream.finish().getSucceededItems());
      assertEquals(2, stream.resumed());
    }
    assertEquals(300, results.stream().map(InferResult::getId).distinct().count());
    assertEquals(300, results.size());
  }

  /** A server that shuts down answers what it accepted; the rest goes to the one that stands in. */
  @Test
  @EnabledIfEnvironmentVariable(
      named = "ACLSERVE_SERVE",
      matches = ".+",
      disabledReason = "ACLSERVE_SERVE does not say how to start a server")
  void serverThatGoesAway() throws IOException, InterruptedException {
    StreamConfig config =
        StreamConfig.newBuilder().setModel("digits").setMaxPendingItems(8).build();
    Process server =
        new ProcessBuilder(System.getenv("ACLSERVE_SERVE").split(" +"))
            .redirectError(ProcessBuilder.Redirect.DISCARD)
            .start();
    try {
      String line = server.inputReader().readLine();
      assertTrue(line != null && line.startsWith("ready grpc="), "the server said " + line);
      String address = line.substring("ready grpc=".length()).split(" ")[0];
      try (Proxy proxy = new Proxy(address);
          AclserveStream stream =
              AclserveStream.open(
                  connect(proxy.address()),
                  config,
                  result -> {
                    results.add(result);
                    if (results.size() == 50) {
                      proxy.redirect(System.getenv("ACLSERVE_ADDRESS"));
                      server.destroy();
                    }
                  })) {
        for (int i = 0; i < 300; i++) {
          stream.send(item(8));
        }
        assertEquals(300, stream.finish().getSucceededItems());
        assertTrue(stream.resumed() >= 1, "the stream was not resumed");
      }
      assertEquals(300, results.stream().map(InferResult::getId).distinct().count());
      assertEquals(300, results.size());
      assertEquals(0, server.waitFor());
    } finally {
      server.destroyForcibly();
    }
  }

  /** Passes connections on, until it cuts them. */
  private static final class Proxy implements AutoCloseable {
    private final ServerSocket listener = new ServerSocket(0, 0, InetAddress.getLoopbackAddress());
    private final List<Socket> open = new ArrayList<>();

    private volatile String target;

    Proxy(String target) throws IOException {
      this.target = target;
      start(
          () -> {
            while (true) {
              Socket client = listener.accept();
              String to = this.target;
              int colon = to.lastIndexOf(':');
              Socket server =
                  new Socket(to.substring(0, colon), Integer.parseInt(to.substring(colon + 1)));
              synchronized (open) {
                open.addAll(List.of(client, server));
              }
              start(() -> pass(client, server));
              start(() -> pass(server, client));
            }
          });
    }

    String address() {
      return "127.0.0.1:" + listener.getLocalPort();
    }

    /** Passes the next connections on to another server. */
    void redirect(String other) {
      target = other;
    }

    void cut() {
      synchronized (open) {
        for (Socket socket : open) {
          try {
            socket.close();
          } catch (IOException e) {
            throw new IllegalStateException(e);
          }
        }
        open.clear();
      }
    }

    @Override
    public void close() throws IOException {
      listener.close();
      cut();
    }

    private static void pass(Socket from, Socket to) throws IOException {
      try (from;
          to) {
        from.getInputStream().transferTo(to.getOutputStream());
      }
    }

    private interface Work {
      void run() throws IOException;
    }

    private static void start(Work work) {
      Thread thread =
          new Thread(
              () -> {
                try {
                  work.run();
                } catch (IOException e) {
                  return; // closed
                }
              });
      thread.setDaemon(true);
      thread.start();
    }
  }
}
