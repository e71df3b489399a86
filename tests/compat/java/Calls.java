import com.google.protobuf.DescriptorProtos.FileDescriptorProto;
import com.google.protobuf.DescriptorProtos.FileDescriptorSet;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.DescriptorValidationException;
import com.google.protobuf.Descriptors.FileDescriptor;
import com.google.protobuf.Descriptors.MethodDescriptor;
import com.google.protobuf.DynamicMessage;
import com.google.protobuf.InvalidProtocolBufferException;
import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.StreamObserver;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Calls any method of a descriptor set, without generated classes: {@code Calls PROTOSET HOST:PORT [BYTES]}.
 *
 * <p>A line of the input is a call: the method ("package.Service/Method") and its messages in base64, between tabs. A
 * line of the output is its end: the status code, its text, and the messages that came before. BYTES is the longest
 * answer to take, in place of what grpc-java takes by itself.
 */
public final class Calls {
  private static final int CALL_S = 20;

  private Calls() {}

  public static void main(String[] arguments) throws Exception {
    Map<String, MethodDescriptor> methods = methods(Path.of(arguments[0]));
    ManagedChannelBuilder<?> builder = ManagedChannelBuilder.forTarget(arguments[1]).usePlaintext();
    if (arguments.length > 2) {
      builder.maxInboundMessageSize(Integer.parseInt(arguments[2]));
    }
    ManagedChannel channel = builder.build();
    try (BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))) {
      for (String line = lines.readLine(); line != null; line = lines.readLine()) {
        String[] parts = line.split("\t", -1);
        System.out.println(String.join("\t", call(channel, methods.get(parts[0]), parts)));
      }
    } finally {
      channel.shutdownNow().awaitTermination(CALL_S, TimeUnit.SECONDS);
    }
  }

  private static Map<String, MethodDescriptor> methods(Path protoset)
      throws IOException, DescriptorValidationException {
    Map<String, FileDescriptor> files = new HashMap<>();
    Map<String, MethodDescriptor> methods = new HashMap<>();
    for (FileDescriptorProto file : FileDescriptorSet.parseFrom(Files.readAllBytes(protoset)).getFileList()) {
      FileDescriptor[] imports = file.getDependencyList().stream().map(files::get).toArray(FileDescriptor[]::new);
      FileDescriptor made = FileDescriptor.buildFrom(file, imports);
      files.put(file.getName(), made);
      made.getServices().forEach(
          service -> service.getMethods().forEach(
              method -> methods.put(service.getFullName() + "/" + method.getName(), method)));
    }
    return methods;
  }

  private static List<String> call(ManagedChannel channel, MethodDescriptor method, String[] parts)
      throws InvalidProtocolBufferException, InterruptedException {
    Answers answers = new Answers();
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(CALL_S, TimeUnit.SECONDS);
    var call = channel.newCall(described(method), options);
    List<DynamicMessage> messages = new ArrayList<>();
    for (int at = 1; at < parts.length; at++) {
      messages.add(DynamicMessage.parseFrom(method.getInputType(), Base64.getDecoder().decode(parts[at])));
    }
    if (method.isClientStreaming()) {
      StreamObserver<DynamicMessage> requests = ClientCalls.asyncBidiStreamingCall(call, answers);
      messages.forEach(requests::onNext);
      requests.onCompleted();
    } else {
      ClientCalls.asyncUnaryCall(call, messages.get(0), answers);
    }
    answers.ended.await();
    List<String> told = new ArrayList<>();
    told.add(answers.status.getCode().name());
    told.add(String.valueOf(answers.status.getDescription()).replaceAll("\\s", " "));
    for (DynamicMessage answer : answers.messages) {
      told.add(Base64.getEncoder().encodeToString(answer.toByteArray()));
    }
    return told;
  }

  private static io.grpc.MethodDescriptor<DynamicMessage, DynamicMessage> described(MethodDescriptor method) {
    MethodType type = method.isClientStreaming() ? MethodType.BIDI_STREAMING : MethodType.UNARY;
    return io.grpc.MethodDescriptor.<DynamicMessage, DynamicMessage>newBuilder()
        .setType(type)
        .setFullMethodName(method.getService().getFullName() + "/" + method.getName())
        .setRequestMarshaller(marshaller(method.getInputType()))
        .setResponseMarshaller(marshaller(method.getOutputType()))
        .build();
  }

  private static io.grpc.MethodDescriptor.Marshaller<DynamicMessage> marshaller(Descriptor type) {
    return ProtoUtils.marshaller(DynamicMessage.getDefaultInstance(type));
  }

  /** What came, and how it ended. */
  private static final class Answers implements StreamObserver<DynamicMessage> {
    final List<DynamicMessage> messages = new ArrayList<>();
    final CountDownLatch ended = new CountDownLatch(1);
    volatile Status status = Status.OK;

    @Override
    public void onNext(DynamicMessage answer) {
      messages.add(answer);
    }

    @Override
    public void onError(Throwable error) {
      status = Status.fromThrowable(error);
      ended.countDown();
    }

    @Override
    public void onCompleted() {
      ended.countDown();
    }
  }
}
