package aclserve.client;

import io.grpc.Deadline;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** Whether and when a lost stream is opened again. Counts the losses since the last progress. */
final class Resumption {
  private static final Duration MAX_BACKOFF = Duration.ofSeconds(5);

  private final AclserveStream.Options options;
  private Duration limit;
  private Deadline giveUp; // for the attempts since the first loss
  private int losses;

  Resumption(AclserveStream.Options options) {
    this.options = options;
    this.limit = options.openTimeout();
  }

  /** The stream was ready once; from now on it is another time that bounds the attempts. */
  void opened() {
    limit = options.resumeTimeout();
  }

  /** The stream works: count and waits begin anew. */
  void progress() {
    losses = 0;
  }

  /** How long to wait before the next attempt; null for no further one. */
  Duration delayAfter(AclserveException failure) {
    losses++;
    if (losses == 1) {
      giveUp = Deadline.after(limit.toNanos(), TimeUnit.NANOSECONDS);
    }
    Duration delay = Duration.ZERO;
    if (!failure.retryDelay().isZero()) {
      delay = failure.retryDelay();
    } else if (losses > 1 || !failure.reason().equals("SERVER_GOING_AWAY")) {
      delay = options.backoff().multipliedBy(1L << Math.min(losses - 1, 16));
      delay = delay.compareTo(MAX_BACKOFF) > 0 ? MAX_BACKOFF : delay;
      // Shorter by chance, so that many clients do not come at the same time.
      double part = ThreadLocalRandom.current().nextDouble(0.5, 1);
      delay = Duration.ofNanos((long) (delay.toNanos() * part));
    }
    boolean late = giveUp.timeRemaining(TimeUnit.NANOSECONDS) <= delay.toNanos();
    return losses > options.resumeAttempts() || late ? null : delay;
  }
}
