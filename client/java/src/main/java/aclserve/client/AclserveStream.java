package aclserve.client;

import aclserve.v1.FramePolicy;
import aclserve.v1.InferItem;
import aclserve.v1.InferResult;
import aclserve.v1.ItemList;
import aclserve.v1.ModelServiceGrpc;
import aclserve.v1.StreamConfig;
import aclserve.v1.StreamInferRequest;
import aclserve.v1.StreamInferResponse;
import aclserve.v1.StreamReady;
import aclserve.v1.StreamSummary;
import aclserve.v1.StreamWindow;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/**
 * Sends items to a server and hands out one result for each, over as many calls as that takes: when
 * the server is lost or goes away, the stream is opened again and items without an answer are sent
 * again. An item may so run twice; it still has one result.
 *
 * <p>Results go to a handler, one after the other, on gRPC's threads; while it works, nothing is
 * received, so it may take its time. All methods may be called from any thread; {@link #send} and
 * {@link #finish} wait, and so not from the handler.
 */
public final class AclserveStream implements AutoCloseable {
  private static final int MAX_MESSAGE_BYTES = 65 << 20;

  /**
   * How a stream is opened.
   *
   * @param openTimeout bounds the time until the stream is ready
   * @param resumeTimeout bounds how long a stream that was ready may be without a server
   * @param resumeAttempts how often a lost stream is opened again without an answer in between
   * @param backoff the wait before the second attempt; it doubles, up to 5 s
   * @param timeout bounds the whole stream; null for no limit
   */
  public record Options(
      Duration openTimeout,
      Duration resumeTimeout,
      int resumeAttempts,
      Duration backoff,
      Duration timeout) {
    public static final Options DEFAULT =
        new Options(
            Duration.ofSeconds(30), Duration.ofMinutes(2), 30, Duration.ofMillis(100), null);
  }

  private final ManagedChannel channel;
  private final StreamConfig config;
  private final Options options;
  private final Consumer<InferResult> handler;
  private final Deadline deadline;
  private volatile Thread handling;

  // What follows is guarded by this.
  private final Items items = new Items();
  private final Resumption resumption;
  private Call call;
  private StreamReady ready;
  private AclserveException error;
  private boolean finished;
  private boolean ended;
  private int resumed;

  private AclserveStream(
      ManagedChannel channel, StreamConfig config, Options options, Consumer<InferResult> handler) {
    this.channel = channel;
    this.config = config;
    this.options = options;
    this.handler = handler;
    this.resumption = new Resumption(options);
    this.deadline =
        options.timeout() == null
            ? null
            : Deadline.after(options.timeout().toNanos(), TimeUnit.NANOSECONDS);
  }

  /** A plain-text connection that suits the server: its message size, and probes. */
  public static ManagedChannel connect(String address) {
    return NettyChannelBuilder.forTarget(address)
        .usePlaintext()
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        .keepAliveTime(330, TimeUnit.SECONDS)
        .keepAliveTimeout(20, TimeUnit.SECONDS)
        .disableRetry()
        .build();
  }

  /** Opens a stream and waits until the server has accepted its configuration. */
  public static AclserveStream open(
      ManagedChannel channel, StreamConfig config, Consumer<InferResult> handler)
      throws InterruptedException {
    return open(channel, config, handler, Options.DEFAULT);
  }

  /** Opens a stream and waits until the server has accepted its configuration. */
  public static AclserveStream open(
      ManagedChannel channel, StreamConfig config, Consumer<InferResult> handler, Options options)
      throws InterruptedException {
    AclserveStream stream = new AclserveStream(channel, config, options, handler);
    stream.connect(false);
    synchronized (stream) {
      try {
        while (stream.ready == null && !stream.ended) {
          stream.wait();
        }
      } catch (InterruptedException e) {
        stream.close();
        throw e;
      }
      if (stream.ready == null) {
        throw stream.error;
      }
    }
    return stream;
  }

  /**
   * Hands an item over, after waiting for room in the window, and returns its id: its own, or its
   * position in the stream.
   */
  public synchronized String send(InferItem item) throws InterruptedException {
    checkMayWait();
    while (!ended && !finished && !items.haveRoomFor(item)) {
      wait();
    }
    if (error != null) {
      throw error;
    }
    if (finished || ended) {
      throw new AclserveException(
          Status.Code.FAILED_PRECONDITION,
          "STREAM_FINISHED",
          "the stream is finished; open another one");
    }
    String id = items.add(item, messageLimit());
    pump();
    return id;
  }

  /**
   * Says that no item follows, and waits until all have their results. Returns how many there were
   * over all calls; throws what broke the stream.
   */
  public synchronized StreamSummary finish() throws InterruptedException {
    checkMayWait();
    finished = true;
    pump();
    while (!ended || handling != null) {
      wait();
    }
    if (error != null) {
      throw error;
    }
    return items.summary();
  }

  /** What the server answered to the configuration: window, order, policy. */
  public synchronized StreamReady ready() {
    return ready;
  }

  /** How often the stream was opened again. */
  public synchronized int resumed() {
    return resumed;
  }

  /** Gives the stream up, if it has not ended. */
  @Override
  public void close() {
    end(new AclserveException(Status.Code.CANCELLED, "STREAM_CLOSED", "the stream was closed"));
  }

  private void checkMayWait() {
    if (Thread.currentThread() == handling) {
      throw new IllegalStateException("send and finish wait for results: not in their handler");
    }
  }

  /** Begins a call. */
  private void connect(boolean again) {
    if (again) {
      channel.resetConnectBackoff();
    }
    var stub = ModelServiceGrpc.newStub(channel);
    synchronized (this) {
      if (!ended) {
        call = new Call();
        (deadline == null ? stub : stub.withDeadline(deadline)).streamInfer(call);
        call.begin();
      }
    }
  }

  /** Sends what the window admits. Holds the lock. */
  private void pump() {
    if (call == null || !call.connected || call.halfClosed) {
      return;
    }
    while (!call.goingAway && call.requests.isReady()) {
      ItemList message = items.take(messageLimit());
      if (message.getItemsCount() == 0) {
        break;
      }
      call.requests.onNext(StreamInferRequest.newBuilder().setItems(message).build());
    }
    if (call.goingAway || (finished && items.allTaken())) {
      call.halfClosed = true;
      call.requests.onCompleted();
    }
  }

  private int messageLimit() {
    long stated = ready.getMaxMessageBytes();
    return stated > 0 ? (int) Math.min(stated, MAX_MESSAGE_BYTES) : MAX_MESSAGE_BYTES;
  }

  /** Hands results out. Does not hold the lock. */
  private void deliver(List<InferResult> results) {
    try {
      results.forEach(handler);
    } catch (RuntimeException e) {
      end(
          new AclserveException(
              Status.Code.CANCELLED,
              "RESULT_HANDLER_FAILED",
              "the handler of results threw " + e,
              e));
    } finally {
      handling = null;
      synchronized (this) {
        notifyAll();
      }
    }
  }

  /** A call has ended, with OK where {@code failure} is null: opens another one, or ends. */
  private void lost(Call which, AclserveException failure) {
    List<InferResult> unanswered = new ArrayList<>();
    synchronized (this) {
      if (ended || which != call) {
        return;
      }
      if (failure == null && which.goingAway && !(finished && items.allAnswered())) {
        failure =
            new AclserveException(
                Status.Code.UNAVAILABLE, "SERVER_GOING_AWAY", "the server is shutting down");
      }
      boolean needed = !(finished && items.allAnswered()) && !channel.isShutdown();
      if (failure != null && failure.resumable() && needed) {
        Duration delay = resumption.delayAfter(failure);
        if (delay != null) {
          call = null;
          items.sendAgain();
          CompletableFuture.delayedExecutor(delay.toNanos(), TimeUnit.NANOSECONDS)
              .execute(() -> connect(true));
          return;
        }
      }
      if (failure == null) {
        unanswered.addAll(items.giveUp());
      }
      handling = Thread.currentThread();
    }
    deliver(unanswered);
    end(failure);
  }

  /** The last word. */
  private void end(AclserveException failure) {
    Call open;
    synchronized (this) {
      if (ended) {
        return;
      }
      error = finished && items.allAnswered() && handling == null ? null : failure;
      ended = true;
      open = call;
      call = null;
      notifyAll();
    }
    if (open != null) {
      open.timer.complete(null);
      open.requests.cancel("the stream has ended", null);
    }
  }

  /** One call: what the server sends on it. gRPC runs one of its methods at a time. */
  private final class Call
      implements ClientResponseObserver<StreamInferRequest, StreamInferResponse> {
    ClientCallStreamObserver<StreamInferRequest> requests;
    final CompletableFuture<Void> timer = new CompletableFuture<>();
    boolean connected;
    boolean goingAway;
    boolean halfClosed;

    @Override
    public void beforeStart(ClientCallStreamObserver<StreamInferRequest> observer) {
      requests = observer;
      observer.setOnReadyHandler(
          () -> {
            synchronized (AclserveStream.this) {
              if (call == this) {
                pump();
              }
            }
          });
    }

    void begin() {
      requests.onNext(StreamInferRequest.newBuilder().setConfig(config).build());
      timer
          .orTimeout(options.openTimeout().toNanos(), TimeUnit.NANOSECONDS)
          .exceptionally(
              late -> {
                requests.cancel("not ready in time", null);
                return null;
              });
    }

    @Override
    public void onNext(StreamInferResponse response) {
      List<InferResult> results = new ArrayList<>();
      synchronized (AclserveStream.this) {
        if (call != this) {
          return;
        }
        switch (response.getResponseCase()) {
          case READY -> opened(response.getReady());
          case RESULTS -> {
            response.getResults().getResultsList().stream()
                .filter(items::answered)
                .forEach(results::add);
            resumption.progress();
          }
          case WINDOW -> {
            StreamWindow stated = response.getWindow();
            items.setWindow(stated.getMaxPendingItems(), stated.getMaxPendingBytes());
          }
          case GOING_AWAY -> goingAway = true;
          default -> {} // the summary: ours counts over all calls
        }
        pump();
        AclserveStream.this.notifyAll();
        handling = Thread.currentThread();
      }
      deliver(results);
    }

    private void opened(StreamReady answer) {
      if (!timer.complete(null)) {
        return; // too late: the call is cancelled
      }
      connected = true;
      if (ready != null) {
        resumed++;
      }
      ready = answer;
      boolean drops = answer.getPolicyValue() > FramePolicy.FRAME_POLICY_WAIT_VALUE;
      items.setWindow(
          new Window(answer.getMaxPendingItems(), answer.getMaxPendingBytes(), drops));
      resumption.opened();
      if (items.allAnswered()) {
        resumption.progress();
      }
    }

    @Override
    public void onError(Throwable failure) {
      if (timer.isCompletedExceptionally()) {
        lost(this, notReady("within " + options.openTimeout().toMillis() + " ms"));
      } else {
        timer.complete(null);
        lost(this, AclserveException.ofCall(failure));
      }
    }

    @Override
    public void onCompleted() {
      timer.complete(null);
      lost(this, connected ? null : notReady("before it ended the call"));
    }

    private AclserveException notReady(String when) {
      return new AclserveException(
          Status.Code.DEADLINE_EXCEEDED,
          "STREAM_NOT_READY",
          "the server did not accept the stream " + when);
    }
  }
}
