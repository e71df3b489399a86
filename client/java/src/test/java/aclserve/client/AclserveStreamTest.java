package aclserve.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import aclserve.v1.DropReason;
import aclserve.v1.Dropped;
import aclserve.v1.GoingAway;
import aclserve.v1.InferItem;
import aclserve.v1.InferResult;
import aclserve.v1.ItemError;
import aclserve.v1.StreamConfig;
import aclserve.v1.StreamInferResponse;
import aclserve.v1.StreamSummary;
import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(30)
class AclserveStreamTest {
  private static final StreamConfig CONFIG = StreamConfig.newBuilder().setModel("digits").build();

  private final List<InferResult> results = Collections.synchronizedList(new ArrayList<>());

  private static AclserveStream.Options options(Duration openTimeout, int attempts) {
    return new AclserveStream.Options(
        openTimeout, Duration.ofSeconds(20), attempts, Duration.ofMillis(1), null);
  }

  /** What a test does with an open stream. */
  private interface Use {
    void run(AclserveStream stream) throws Exception;
  }

  private void use(Script script, Consumer<InferResult> handler, Use use) throws Exception {
    use(script, handler, options(Duration.ofSeconds(20), 30), use);
  }

  private void use(
      Script script, Consumer<InferResult> handler, AclserveStream.Options options, Use use)
      throws Exception {
    ManagedChannel channel = AclserveStream.connect(script.address());
    try (script;
        AclserveStream stream = AclserveStream.open(channel, CONFIG, handler, options)) {
      use.run(stream);
    } finally {
      channel.shutdownNow();
    }
    assertEquals(List.of(), script.faults);
  }

  private StreamSummary exchange(AclserveStream stream, int count) throws InterruptedException {
    for (int i = 0; i < count; i++) {
      stream.send(InferItem.getDefaultInstance());
    }
    StreamSummary summary = stream.finish();
    assertEquals(numbers(0, count), results.stream().map(InferResult::getId).toList());
    return summary;
  }

  private static List<String> numbers(int begin, int end) {
    return IntStream.range(begin, end).mapToObj(Integer::toString).toList();
  }

  private static void expect(AclserveException error, Status.Code code, String reason) {
    assertEquals(code + " " + reason, error.code() + " " + error.reason());
  }

  @Test
  void everyItemHasOneResult() throws Exception {
    use(
        new Script(Script::echo),
        results::add,
        stream -> {
          StreamSummary summary = exchange(stream, 20);
          assertEquals(20, summary.getReceivedItems());
          assertEquals(20, summary.getSucceededItems());
          AclserveException late =
              assertThrows(
                  AclserveException.class, () -> stream.send(InferItem.getDefaultInstance()));
          expect(late, Status.Code.FAILED_PRECONDITION, "STREAM_FINISHED");
        });
  }

  /** The server answers only when the window is full: too few items hang, too many are a fault. */
  @Test
  void window() throws Exception {
    Script script =
        new Script(
            call -> {
              call.ready(3);
              List<String> held = call.items(3);
              call.resize(1);
              for (String id : held) {
                call.results(Script.done(id));
              }
              for (int i = 0; i < 5; i++) {
                call.results(Script.done(call.item().orElseThrow()));
              }
              call.resize(2);
              for (int i = 0; i < 3; i++) {
                for (String id : call.items(2)) {
                  call.results(Script.done(id));
                }
              }
            });
    use(script, results::add, stream -> exchange(stream, 14));
  }

  @Test
  void windowInBytes() {
    Window window = new Window(10, 100, false);
    Window.Load load = new Window.Load();
    assertTrue(window.fits(load, 500), "one alone always fits");
    load.add(60);
    assertTrue(window.fits(load, 40));
    assertTrue(!window.fits(load, 41));
    Window drops = new Window(10, 0, true);
    IntStream.range(1, 41).forEach(i -> load.add(0));
    assertTrue(drops.fits(load, 0), "a policy that drops takes the window and 32 items more");
    load.add(0);
    assertTrue(!drops.fits(load, 0));
  }

  @Test
  void resumesALostStream() throws Exception {
    List<String> again = Collections.synchronizedList(new ArrayList<>());
    Script script =
        new Script(
            call -> {
              call.ready(4);
              List<String> ids = call.items(4);
              call.results(Script.done(ids.get(0)));
              throw Status.UNAVAILABLE.asException();
            },
            call -> {
              throw Status.UNAVAILABLE.asException();
            },
            call -> {
              call.ready(2);
              call.results(); // nothing, and one that was answered before
              call.send(
                  StreamInferResponse.newBuilder()
                      .setResults(
                          aclserve.v1.ResultList.newBuilder().addResults(Script.done("0"))));
              for (Optional<String> id = call.item(); id.isPresent(); id = call.item()) {
                again.add(id.get());
                call.results(Script.done(id.get()));
              }
            });
    use(
        script,
        results::add,
        stream -> {
          assertEquals(10, exchange(stream, 10).getReceivedItems());
          assertEquals(1, stream.resumed());
        });
    assertEquals(numbers(1, 10), again);
    assertEquals(3, script.calls());
  }

  @Test
  void goesElsewhereWhenTheServerGoesAway() throws Exception {
    Script script =
        new Script(
            call -> {
              call.ready(4);
              List<String> ids = call.items(2);
              call.send(
                  StreamInferResponse.newBuilder()
                      .setGoingAway(GoingAway.newBuilder().setLastAcceptedId(ids.get(1))));
              call.results(Script.done(ids.get(0)), Script.done(ids.get(1)));
              while (call.item().isPresent()) { // the client must half-close
              }
            },
            Script::echo);
    use(script, results::add, stream -> exchange(stream, 10));
    assertEquals(2, script.calls());
  }

  @Test
  void refusalIsNotTriedAgain() throws Exception {
    ErrorInfo info =
        ErrorInfo.newBuilder()
            .setDomain("aclserve")
            .setReason("MODEL_NOT_FOUND")
            .putMetadata("model", "x")
            .build();
    com.google.rpc.Status status =
        com.google.rpc.Status.newBuilder()
            .setCode(Status.Code.NOT_FOUND.value())
            .setMessage("no such model")
            .addDetails(Any.pack(info))
            .build();
    Script script =
        new Script(
            call -> {
              throw StatusProto.toStatusException(status);
            });
    AclserveException error =
        assertThrows(
            AclserveException.class, () -> use(script, results::add, stream -> stream.finish()));
    expect(error, Status.Code.NOT_FOUND, "MODEL_NOT_FOUND");
    assertEquals(Map.of("model", "x"), error.metadata());
    assertEquals(1, script.calls());
  }

  @Test
  void givesUp() throws Exception {
    Script script =
        new Script(
            call -> {
              throw Status.UNAVAILABLE.asException();
            });
    AclserveStream.Options options = options(Duration.ofSeconds(20), 3);
    AclserveException error =
        assertThrows(
            AclserveException.class,
            () -> use(script, results::add, options, stream -> stream.finish()));
    expect(error, Status.Code.UNAVAILABLE, "UNAVAILABLE");
    assertEquals(4, script.calls());
  }

  @Test
  void serverThatDoesNotAcceptTheStream() throws Exception {
    Script script = new Script(call -> new CountDownLatch(1).await());
    AclserveStream.Options options = options(Duration.ofMillis(50), 0);
    AclserveException error =
        assertThrows(
            AclserveException.class,
            () -> use(script, results::add, options, stream -> stream.finish()));
    expect(error, Status.Code.DEADLINE_EXCEEDED, "STREAM_NOT_READY");
  }

  @Test
  void itemsThatCannotBeSent() throws Exception {
    Script script =
        new Script(
            call -> {
              call.ready(4);
              String id = call.item().orElseThrow();
              if (call.item().isPresent()) {
                throw Status.INVALID_ARGUMENT.asException(); // only one item was good
              }
              call.results(Script.done(id));
            });
    use(
        script,
        results::add,
        stream -> {
          InferItem item = InferItem.newBuilder().setId("a").build();
          stream.send(item);
          expect(
              assertThrows(AclserveException.class, () -> stream.send(item)),
              Status.Code.ALREADY_EXISTS,
              "DUPLICATE_ITEM_ID");
          InferItem large =
              InferItem.newBuilder()
                  .addInputs(Tensors.ofBytes("x", new byte[1 << 20], 1 << 20))
                  .build();
          expect(
              assertThrows(AclserveException.class, () -> stream.send(large)),
              Status.Code.RESOURCE_EXHAUSTED,
              "MESSAGE_TOO_LARGE");
          assertEquals(1, stream.finish().getReceivedItems());
        });
  }

  @Test
  void outcomes() throws Exception {
    Script script =
        new Script(
            call -> {
              call.ready(4);
              List<String> ids = call.items(3);
              call.results(
                  InferResult.newBuilder()
                      .setId(ids.get(0))
                      .setError(ItemError.newBuilder().setCode(3).setReason("SHAPE_MISMATCH"))
                      .build(),
                  InferResult.newBuilder()
                      .setId(ids.get(1))
                      .setDropped(
                          Dropped.newBuilder().setReason(DropReason.DROP_REASON_TOO_OLD))
                      .build());
            }); // and nothing about the third
    use(
        script,
        results::add,
        stream -> {
          StreamSummary summary = exchange(stream, 3);
          assertEquals(Map.of("TOO_OLD", 1L), summary.getDropsMap());
          assertEquals(2, summary.getFailedItems());
        });
    expect(
        AclserveException.ofItem(results.get(0)).orElseThrow(),
        Status.Code.INVALID_ARGUMENT,
        "SHAPE_MISMATCH");
    expect(
        AclserveException.ofItem(results.get(2)).orElseThrow(),
        Status.Code.INTERNAL,
        "ITEM_NOT_ANSWERED");
  }

  @Test
  void closeEndsEverything() throws Exception {
    Script script =
        new Script(
            call -> {
              call.ready(1);
              new CountDownLatch(1).await();
            });
    use(
        script,
        results::add,
        stream -> {
          stream.send(InferItem.getDefaultInstance());
          CompletableFuture<Throwable> failed =
              CompletableFuture.supplyAsync(
                  () ->
                      assertThrows(
                          AclserveException.class, // the window is full
                          () -> stream.send(InferItem.getDefaultInstance())));
          assertThrows(TimeoutException.class, () -> failed.get(50, TimeUnit.MILLISECONDS));
          stream.close();
          expect((AclserveException) failed.get(), Status.Code.CANCELLED, "STREAM_CLOSED");
          assertThrows(AclserveException.class, stream::finish);
        });
  }

  @Test
  void handlerThatThrowsEndsTheStream() throws Exception {
    use(
        new Script(Script::echo),
        result -> {
          throw new IllegalArgumentException("no");
        },
        stream -> {
          stream.send(InferItem.getDefaultInstance());
          AclserveException error = assertThrows(AclserveException.class, stream::finish);
          expect(error, Status.Code.CANCELLED, "RESULT_HANDLER_FAILED");
        });
  }

  @Test
  void handlerMayNotWaitForItself() throws Exception {
    CompletableFuture<AclserveStream> opened = new CompletableFuture<>();
    CompletableFuture<Throwable> refused = new CompletableFuture<>();
    use(
        new Script(Script::echo),
        result ->
            refused.complete(
                assertThrows(IllegalStateException.class, () -> opened.join().finish())),
        stream -> {
          opened.complete(stream);
          stream.send(InferItem.getDefaultInstance());
          stream.finish();
        });
    assertTrue(refused.isDone());
  }

  @Test
  void tensors() {
    float[] values = {1, -2};
    assertEquals(
        "[0, 0, -128, 63, 0, 0, 0, -64]",
        java.util.Arrays.toString(Tensors.ofFloats("x", values, 2).getData().toByteArray()));
    assertEquals(-2, Tensors.floats(Tensors.ofFloats("x", values, 2))[1]);
    assertThrows(
        IllegalArgumentException.class, () -> Tensors.longs(Tensors.ofFloats("x", values, 2)));
  }
}
