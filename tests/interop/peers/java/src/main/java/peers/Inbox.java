package peers;

import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;

/**
 * What a library's thread hands over to the program's thread. By default it holds one message, so that the
 * library reads no more than the program takes.
 */
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

  /** Notes that a Close has come. */
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
