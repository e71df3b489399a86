package aclserve.client;

import aclserve.v1.InferResult;
import aclserve.v1.ItemError;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/** Says why a call failed or an item has no outputs. */
public final class AclserveException extends RuntimeException {
  private static final long serialVersionUID = 1L;
  private static final String DOMAIN = "aclserve";

  /** What gRPC reports, without a reason, for a connection torn down under a call; and our own. */
  private static final Set<String> BREAKS =
      Set.of("CANCELLED", "UNKNOWN", "INTERNAL", "STREAM_NOT_READY");

  private final Status.Code code;
  private final String reason;
  private final transient Map<String, String> metadata;
  private final Duration retryDelay;

  AclserveException(Status.Code code, String reason, String message) {
    this(code, reason, message, null);
  }

  AclserveException(Status.Code code, String reason, String message, Throwable cause) {
    this(code, reason, message, Map.of(), Duration.ZERO, cause);
  }

  AclserveException(
      Status.Code code,
      String reason,
      String message,
      Map<String, String> metadata,
      Duration retryDelay,
      Throwable cause) {
    super(message + " (" + reason + ")", cause);
    this.code = code;
    this.reason = reason;
    this.metadata = metadata;
    this.retryDelay = retryDelay;
  }

  /** The error of one item; empty for a result without one. */
  public static Optional<AclserveException> ofItem(InferResult result) {
    if (!result.hasError()) {
      return Optional.empty();
    }
    ItemError error = result.getError();
    return Optional.of(
        new AclserveException(
            Status.fromCodeValue(error.getCode()).getCode(),
            error.getReason(),
            error.getMessage(),
            error.getMetadataMap(),
            duration(error.getRetryDelay()),
            null));
  }

  /** What the failure of a call of the generated stubs means. */
  public static AclserveException ofCall(Throwable failure) {
    if (failure instanceof AclserveException known) {
      return known;
    }
    Status status = Status.fromThrowable(failure);
    String reason = status.getCode().name();
    Map<String, String> metadata = Map.of();
    Duration retryDelay = Duration.ZERO;
    com.google.rpc.Status details = StatusProto.fromThrowable(failure);
    try {
      for (Any detail : details == null ? List.<Any>of() : details.getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          if (info.getDomain().equals(DOMAIN)) {
            reason = info.getReason();
            metadata = info.getMetadataMap();
          }
        } else if (detail.is(RetryInfo.class)) {
          retryDelay = duration(detail.unpack(RetryInfo.class).getRetryDelay());
        }
      }
    } catch (InvalidProtocolBufferException e) {
      failure.addSuppressed(e); // the status is still there
    }
    String message =
        status.getDescription() == null ? "the call failed" : status.getDescription();
    return new AclserveException(
        status.getCode(), reason, message, metadata, retryDelay, failure);
  }

  private static Duration duration(com.google.protobuf.Duration value) {
    return Duration.ofSeconds(value.getSeconds(), value.getNanos());
  }

  /** The canonical status code. */
  public Status.Code code() {
    return code;
  }

  /** Stable, such as SHAPE_MISMATCH; the name of the code where the server gave none. */
  public String reason() {
    return reason;
  }

  /** Details by key. */
  public Map<String, String> metadata() {
    return metadata == null ? Map.of() : metadata;
  }

  /** Above zero where the same may succeed later: when to try again. */
  public Duration retryDelay() {
    return retryDelay;
  }

  /** True where the server was lost, and where it says that another attempt may succeed. */
  boolean resumable() {
    return code == Status.Code.UNAVAILABLE || !retryDelay.isZero() || BREAKS.contains(reason);
  }
}
