package aclserve.client;

import aclserve.v1.DataType;
import aclserve.v1.Outputs;
import aclserve.v1.Tensor;
import com.google.protobuf.ByteString;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/**
 * Arrays to tensors and back, in row-major order. For a model that batches, the first dimension
 * counts rows.
 */
public final class Tensors {
  private Tensors() {}

  public static Tensor ofFloats(String name, float[] values, long... shape) {
    ByteBuffer bytes = bytes(values.length * Float.BYTES);
    bytes.asFloatBuffer().put(values);
    return tensor(name, DataType.DATA_TYPE_FLOAT32, bytes, shape);
  }

  public static Tensor ofLongs(String name, long[] values, long... shape) {
    ByteBuffer bytes = bytes(values.length * Long.BYTES);
    bytes.asLongBuffer().put(values);
    return tensor(name, DataType.DATA_TYPE_INT64, bytes, shape);
  }

  public static Tensor ofInts(String name, int[] values, long... shape) {
    ByteBuffer bytes = bytes(values.length * Integer.BYTES);
    bytes.asIntBuffer().put(values);
    return tensor(name, DataType.DATA_TYPE_INT32, bytes, shape);
  }

  /** Elements of uint8, such as pixels. */
  public static Tensor ofBytes(String name, byte[] values, long... shape) {
    return tensor(name, DataType.DATA_TYPE_UINT8, ByteBuffer.wrap(values), shape);
  }

  public static float[] floats(Tensor tensor) {
    float[] values = new float[count(tensor, DataType.DATA_TYPE_FLOAT32, Float.BYTES)];
    view(tensor).asFloatBuffer().get(values);
    return values;
  }

  public static long[] longs(Tensor tensor) {
    long[] values = new long[count(tensor, DataType.DATA_TYPE_INT64, Long.BYTES)];
    view(tensor).asLongBuffer().get(values);
    return values;
  }

  public static int[] ints(Tensor tensor) {
    int[] values = new int[count(tensor, DataType.DATA_TYPE_INT32, Integer.BYTES)];
    view(tensor).asIntBuffer().get(values);
    return values;
  }

  /** Finds an output by name. */
  public static Tensor output(Outputs outputs, String name) {
    List<Tensor> tensors = outputs.getTensorsList();
    return tensors.stream()
        .filter(tensor -> tensor.getName().equals(name))
        .findFirst()
        .orElseThrow(
            () ->
                new IllegalArgumentException(
                    "no output '%s'; there are: %s"
                        .formatted(
                            name,
                            tensors.stream()
                                .map(Tensor::getName)
                                .collect(Collectors.joining(", ")))));
  }

  private static Tensor tensor(String name, DataType type, ByteBuffer bytes, long[] shape) {
    return Tensor.newBuilder()
        .setName(name)
        .setDataType(type)
        .addAllShape(Arrays.stream(shape).boxed().toList())
        .setData(ByteString.copyFrom(bytes))
        .build();
  }

  private static ByteBuffer bytes(int size) {
    return ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
  }

  private static ByteBuffer view(Tensor tensor) {
    return tensor.getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
  }

  private static int count(Tensor tensor, DataType type, int elementBytes) {
    if (tensor.getDataType() != type) {
      throw new IllegalArgumentException(
          "tensor '%s' has elements of %s, asked for %s"
              .formatted(tensor.getName(), tensor.getDataType(), type));
    }
    return tensor.getData().size() / elementBytes;
  }
}
