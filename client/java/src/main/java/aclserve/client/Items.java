package aclserve.client;

import aclserve.v1.InferItem;
import aclserve.v1.InferResult;
import aclserve.v1.ItemError;
import aclserve.v1.ItemList;
import aclserve.v1.StreamSummary;
import io.grpc.Status;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The items of a stream that are not answered, and the window for them. Used with a lock held. */
final class Items {
  private static final int OVERHEAD_BYTES = 16; // an item's tag and length, the message around it
  private static final int PACK_ITEMS = 32;
  private static final int PACK_BYTES = 1 << 20;

  private static final class Entry {
    final InferItem item;
    final long inlineBytes;
    boolean away;

    Entry(InferItem item) {
      this.item = item;
      inlineBytes = Window.inlineBytes(item);
    }
  }

  private final Map<String, Entry> pending = new LinkedHashMap<>(); // in the order of sending
  private final Deque<Entry> outgoing = new ArrayDeque<>(); // those that are still to be sent
  private final Window.Load added = new Window.Load(); // of pending
  private final Window.Load away = new Window.Load(); // of those that the server has
  private final StreamSummary.Builder summary = StreamSummary.newBuilder();
  private Window window = Window.CLOSED;
  private long sent;

  void setWindow(Window stated) {
    window = stated;
  }

  void setWindow(long items, long bytes) {
    window = new Window(items, bytes, window.drops());
  }

  boolean haveRoomFor(InferItem item) {
    return window.fits(added, Window.inlineBytes(item));
  }

  /** Takes an item and returns its id: its own, or its position in the stream. */
  String add(InferItem item, int messageLimit) {
    InferItem named =
        item.getId().isEmpty() ? item.toBuilder().setId(Long.toString(sent)).build() : item;
    String id = named.getId();
    if (pending.containsKey(id)) {
      throw new AclserveException(
          Status.Code.ALREADY_EXISTS,
          "DUPLICATE_ITEM_ID",
          "item '%s' is pending on this stream".formatted(id));
    }
    long size = named.getSerializedSize() + OVERHEAD_BYTES;
    if (size > messageLimit) {
      throw new AclserveException(
          Status.Code.RESOURCE_EXHAUSTED,
          "MESSAGE_TOO_LARGE",
          "item '%s' takes %d bytes; one message may have %d".formatted(id, size, messageLimit));
    }
    sent++;
    Entry entry = new Entry(named);
    pending.put(id, entry);
    outgoing.add(entry);
    added.add(entry.inlineBytes);
    return id;
  }

  /** Those that may be sent now, in one message. */
  ItemList take(int messageLimit) {
    ItemList.Builder items = ItemList.newBuilder();
    long room = Math.min(PACK_BYTES, messageLimit);
    while (!outgoing.isEmpty() && items.getItemsCount() < PACK_ITEMS) {
      Entry entry = outgoing.peek();
      room -= entry.item.getSerializedSize() + OVERHEAD_BYTES;
      if ((items.getItemsCount() > 0 && room < 0) || !window.fits(away, entry.inlineBytes)) {
        break;
      }
      outgoing.remove();
      entry.away = true;
      away.add(entry.inlineBytes);
      items.addItems(entry.item);
    }
    return items.build();
  }

  /** Takes note of an item's result; false for an item that is not pending. */
  boolean answered(InferResult result) {
    Entry entry = pending.remove(result.getId());
    if (entry == null) {
      return false;
    }
    added.remove(entry.inlineBytes);
    if (entry.away) {
      away.remove(entry.inlineBytes);
    }
    summary.setReceivedItems(summary.getReceivedItems() + 1);
    switch (result.getOutcomeCase()) {
      case OUTPUTS -> summary.setSucceededItems(summary.getSucceededItems() + 1);
      case DROPPED -> {
        String reason = result.getDropped().getReason().name().replace("DROP_REASON_", "");
        summary.setDroppedItems(summary.getDroppedItems() + 1);
        summary.putDrops(reason, summary.getDropsOrDefault(reason, 0) + 1);
      }
      default -> summary.setFailedItems(summary.getFailedItems() + 1);
    }
    return true;
  }

  /** What is not answered is to be sent on another call, in the same order. */
  void sendAgain() {
    away.clear();
    outgoing.clear();
    pending.values().forEach(entry -> entry.away = false);
    outgoing.addAll(pending.values());
  }

  /** An error for each item that the server left without an answer. */
  List<InferResult> giveUp() {
    ItemError error =
        ItemError.newBuilder()
            .setCode(Status.Code.INTERNAL.value())
            .setReason("ITEM_NOT_ANSWERED")
            .setMessage("the server ended the stream without answering this item")
            .build();
    List<InferResult> results =
        pending.keySet().stream()
            .map(id -> InferResult.newBuilder().setId(id).setError(error).build())
            .toList();
    results.forEach(this::answered);
    return results;
  }

  boolean allTaken() {
    return outgoing.isEmpty();
  }

  boolean allAnswered() {
    return pending.isEmpty();
  }

  StreamSummary summary() {
    return summary.build();
  }
}
