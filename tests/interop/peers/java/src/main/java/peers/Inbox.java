package peers;

import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;

/** What a library's thread has told: one message at a time, so that it reads no more than is taken. */
final class Inbox {
  private static final byte[] END = new byte[0];

  private final BlockingQueue<byte[]> queue;
  private boolean hasEnded;

  volatile Integer code;
  volatile String reason;
  volatile Throwable error;

  Inbox() {
    this(1);
  }

  Inbox(int capacity) {
    queue = new ArrayBlockingQueue<>(capacity);
  }

  void put(byte[] data) {
    try {
      queue.put(data);
    } catch (InterruptedException error) {
      throw new IllegalStateException(error);
    }
  }

  /** A Close has come. */
  void close(int code, String reason) {
    this.code = code;
    this.reason = reason;
  }

  void end() {
    put(END);
  }

  boolean isEmpty() {
    return queue.isEmpty();
  }

  byte[] take() throws InterruptedException {
    if (hasEnded) {
      return null;
    }
    byte[] data = queue.take();
    hasEnded = data == END;
    return hasEnded ? null : data;
  }
}
