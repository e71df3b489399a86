package aclserve.client;

import aclserve.v1.FramePolicy;
import aclserve.v1.InferItem;
import aclserve.v1.InferResult;
import aclserve.v1.ModelServiceGrpc;
import aclserve.v1.Outputs;
import aclserve.v1.ResultList;
import aclserve.v1.StreamInferRequest;
import aclserve.v1.StreamInferResponse;
import aclserve.v1.StreamReady;
import aclserve.v1.StreamWindow;
import io.grpc.Server;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;

/** A server whose calls do what the test says, one function for each; the last serves the rest. */
final class Script extends ModelServiceGrpc.ModelServiceImplBase implements AutoCloseable {
  /** What one call does. A return ends it with OK, an exception with its status. */
  interface Act {
    void run(Call call) throws Exception;
  }

  final List<String> faults = new ArrayList<>();
  private final List<Act> acts;
  private final Server server;
  private int calls;

  Script(Act... acts) throws IOException {
    this.acts = List.of(acts);
    server =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
            .addService(this)
            .build()
            .start();
  }

  String address() {
    return "127.0.0.1:" + server.getPort();
  }

  synchronized int calls() {
    return calls;
  }

  @Override
  public void close() {
    server.shutdownNow();
  }

  @Override
  public synchronized StreamObserver<StreamInferRequest> streamInfer(
      StreamObserver<StreamInferResponse> responses) {
    Call call = new Call(responses);
    Act act = acts.get(Math.min(calls++, acts.size() - 1));
    Thread thread = new Thread(() -> call.run(act));
    thread.setDaemon(true);
    thread.start();
    return call;
  }

  static InferResult done(String id) {
    return InferResult.newBuilder().setId(id).setOutputs(Outputs.getDefaultInstance()).build();
  }

  /** Answers everything until the client sends no more. */
  static void echo(Call call) throws InterruptedException {
    call.ready(4);
    for (Optional<String> id = call.item(); id.isPresent(); id = call.item()) {
      call.results(done(id.get()));
    }
  }

  /** One call, seen from the server. It notes a fault when more items come than the window has. */
  final class Call implements StreamObserver<StreamInferRequest> {
    private final StreamObserver<StreamInferResponse> responses;
    private final BlockingQueue<Optional<String>> items = new LinkedBlockingQueue<>();
    private int window;
    private int held;
    private boolean configured;

    Call(StreamObserver<StreamInferResponse> responses) {
      this.responses = responses;
    }

    void run(Act act) {
      try {
        act.run(this);
        responses.onCompleted();
      } catch (Exception e) {
        responses.onError(e);
      }
    }

    synchronized void ready(int items) {
      window = items;
      StreamReady.Builder ready =
          StreamReady.newBuilder()
              .setMaxPendingItems(items)
              .setMaxMessageBytes(1 << 20)
              .setPolicy(FramePolicy.FRAME_POLICY_WAIT);
      send(StreamInferResponse.newBuilder().setReady(ready));
    }

    synchronized void resize(int items) {
      window = items;
      send(
          StreamInferResponse.newBuilder()
              .setWindow(StreamWindow.newBuilder().setMaxPendingItems(items)));
    }

    synchronized void results(InferResult... results) {
      held -= results.length;
      send(
          StreamInferResponse.newBuilder()
              .setResults(ResultList.newBuilder().addAllResults(List.of(results))));
    }

    void send(StreamInferResponse.Builder response) {
      responses.onNext(response.build());
    }

    /** The id of the next item; empty when the client sends no more. */
    Optional<String> item() throws InterruptedException {
      return items.take();
    }

    List<String> items(int count) throws InterruptedException {
      List<String> ids = new ArrayList<>();
      for (int i = 0; i < count; i++) {
        items.take().ifPresent(ids::add);
      }
      return ids;
    }

    @Override
    public synchronized void onNext(StreamInferRequest request) {
      if (request.hasConfig() == configured) {
        faults.add("the configuration comes first and once, got " + request);
      }
      configured = true;
      held += request.getItems().getItemsCount();
      if (held > window && request.hasItems()) {
        faults.add(held + " items are pending, the window has " + window);
      }
      for (InferItem item : request.getItems().getItemsList()) {
        items.add(Optional.of(item.getId()));
      }
    }

    @Override
    public void onError(Throwable failure) {
      items.add(Optional.empty());
    }

    @Override
    public void onCompleted() {
      items.add(Optional.empty());
    }
  }
}
