package peers;

import java.io.IOException;
import java.util.List;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.WebSocket;
import okhttp3.WebSocketListener;
import okio.ByteString;

/**
 * OkHttp; a client only. It answers a Close when its program closes: here when all has been taken, or
 * with hold=1 in the URL's query not at all.
 */
final class OkHttp extends Behaviour.Connection {
  private WebSocket socket;
  private volatile String subprotocol;

  private OkHttp() {
    super(new Inbox());
  }

  private final WebSocketListener listener =
      new WebSocketListener() {
        @Override
        public void onOpen(WebSocket socket, Response response) {
          subprotocol = response.header("Sec-WebSocket-Protocol");
        }

        @Override
        public void onMessage(WebSocket socket, ByteString data) {
          inbox.put(data.toByteArray());
        }

        @Override
        public void onClosing(WebSocket socket, int code, String reason) {
          inbox.close(code, reason);
          inbox.end();
        }

        @Override
        public void onFailure(WebSocket socket, Throwable error, Response response) {
          inbox.error = error;
          inbox.end();
        }
      };

  @Override
  void send(byte[] data) throws Exception {
    while (socket.queueSize() > 65536) {
      Thread.sleep(1); // Its queue takes 16 MiB, and does not wait.
    }
    if (!socket.send(ByteString.of(data))) {
      throw new IOException("send: false");
    }
  }

  @Override
  void sendFragments(List<byte[]> fragments) {
    throw new UnsupportedOperationException();
  }

  @Override
  void ping(String payload, Runnable done) {
    throw new UnsupportedOperationException();
  }

  @Override
  void close(int code, String reason) {
    socket.close(code, reason);
  }

  @Override
  void finish() {
    socket.close(1000, null);
  }

  @Override
  void drop() {
    socket.cancel();
  }

  @Override
  String subprotocol() {
    return subprotocol;
  }

  public static void main(String[] arguments) throws Exception {
    OkHttpClient client =
        new OkHttpClient.Builder()
            .sslSocketFactory(Behaviour.tls(arguments).getSocketFactory(), Behaviour.trust(arguments))
            .build();
    Behaviour.run(
        Behaviour.versionOf(OkHttpClient.class),
        null,
        null,
        (where, subprotocols) -> {
          OkHttp connection = new OkHttp();
          Request.Builder request = new Request.Builder().url(where.toString());
          if (!subprotocols.isEmpty()) {
            request.header("Sec-WebSocket-Protocol", String.join(", ", subprotocols));
          }
          connection.socket = client.newWebSocket(request.build(), connection.listener);
          return connection;
        });
  }
}
