package aclserve.client;

import aclserve.v1.InferItem;
import aclserve.v1.Tensor;

/**
 * How much may be on its way. Where the frame policy gives items up ({@code drops}), the server
 * must see those that are too many, so as many again may be on their way, at least 32.
 */
record Window(long items, long bytes, boolean drops) {
  static final Window CLOSED = new Window(0, 0, false);

  /** So many items of so many bytes of inline inputs. */
  static final class Load {
    private long items;
    private long bytes;

    void add(long itemBytes) {
      items++;
      bytes += itemBytes;
    }

    void remove(long itemBytes) {
      items--;
      bytes -= itemBytes;
    }

    void clear() {
      items = bytes = 0;
    }
  }

  boolean fits(Load load, long itemBytes) {
    long least = Math.max(1, items);
    long most = drops ? least + Math.max(least, 32) : least;
    long mostBytes = drops ? 2 * bytes : bytes;
    return load.items == 0
        || (load.items < most && (mostBytes == 0 || load.bytes + itemBytes <= mostBytes));
  }

  static long inlineBytes(InferItem item) {
    return item.getInputsList().stream().map(Tensor::getData).mapToLong(data -> data.size()).sum();
  }
}
