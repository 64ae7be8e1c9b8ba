package peers;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.CompletionStage;

/** java.net.http.WebSocket of the JDK, which is a client only. */
final class JavaNetHttp extends Behaviour.Connection implements WebSocket.Listener {
  private WebSocket socket;
  private String awaited;
  private Runnable done;

  private JavaNetHttp() {
    super(new Inbox(3)); // It tells no more than is requested, except the end.
  }

  @Override
  public void onOpen(WebSocket socket) {}

  @Override
  public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer data, boolean last) {
    byte[] bytes = new byte[data.remaining()];
    data.get(bytes);
    inbox.put(bytes);
    return null;
  }

  @Override
  public CompletionStage<?> onPing(WebSocket socket, ByteBuffer payload) {
    socket.request(1); // A Ping counts as a message.
    return null;
  }

  @Override
  public CompletionStage<?> onPong(WebSocket socket, ByteBuffer payload) {
    if (done != null && payload.equals(ByteBuffer.wrap(awaited.getBytes()))) {
      done.run();
    }
    socket.request(1);
    return null;
  }

  @Override
  public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
    inbox.close(code, reason);
    inbox.end();
    return null;
  }

  @Override
  public void onError(WebSocket socket, Throwable error) {
    inbox.error = error;
    inbox.end();
  }

  @Override
  byte[] receive() throws Exception {
    socket.request(1);
    return super.receive();
  }

  @Override
  void send(byte[] data) throws Exception {
    socket.sendBinary(ByteBuffer.wrap(data), true).get();
  }

  @Override
  void sendFragments(List<byte[]> fragments) throws Exception {
    for (int i = 0; i < fragments.size(); i++) {
      socket.sendBinary(ByteBuffer.wrap(fragments.get(i)), i == fragments.size() - 1).get();
    }
  }

  @Override
  void ping(String payload, Runnable done) {
    this.awaited = payload;
    this.done = done;
    socket.sendPing(ByteBuffer.wrap(payload.getBytes()));
  }

  @Override
  void close(int code, String reason) throws Exception {
    socket.sendClose(code, reason).get();
  }

  @Override
  void drop() {
    socket.abort();
    inbox.end();
  }

  @Override
  String subprotocol() {
    return socket.getSubprotocol();
  }

  public static void main(String[] arguments) throws Exception {
    HttpClient client = HttpClient.newBuilder().sslContext(Behaviour.tls(arguments)).build();
    Behaviour.run(
        System.getProperty("java.version"),
        null,
        null,
        (where, subprotocols) -> {
          JavaNetHttp connection = new JavaNetHttp();
          WebSocket.Builder builder = client.newWebSocketBuilder();
          if (!subprotocols.isEmpty()) {
            String[] others = subprotocols.subList(1, subprotocols.size()).toArray(new String[0]);
            builder.subprotocols(subprotocols.get(0), others);
          }
          connection.socket = builder.buildAsync(where, connection).get();
          return connection;
        });
  }
}
