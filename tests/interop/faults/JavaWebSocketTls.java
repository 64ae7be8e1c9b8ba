import java.io.File;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.ByteBuffer;
import java.security.KeyStore;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import org.java_websocket.WebSocket;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.handshake.ClientHandshake;
import org.java_websocket.handshake.ServerHandshake;
import org.java_websocket.server.DefaultSSLWebSocketServerFactory;
import org.java_websocket.server.WebSocketServer;

/**
 * Shows that a Java-WebSocket server with TLS may stop for ever while data goes both ways. Clients send
 * 64 MiB each, one after the other, until one has not got its echo after 60 s. The arguments are a key
 * store, and its password.
 */
class JavaWebSocketTls {
  private static final int SIZE = 65_536;
  private static final int MESSAGES = 1_000;

  private static SSLContext tls(String path, char[] password) throws Exception {
    KeyStore store = KeyStore.getInstance(new File(path), password);
    KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
    keys.init(store, password);
    TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    trust.init(store);
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
    return context;
  }

  private static final class Server extends WebSocketServer {
    final CountDownLatch started = new CountDownLatch(1);

    Server() {
      super(new InetSocketAddress("localhost", 0));
    }

    @Override
    public void onStart() {
      started.countDown();
    }

    @Override
    public void onMessage(WebSocket socket, ByteBuffer data) {
      socket.send(data);
    }

    @Override
    public void onOpen(WebSocket socket, ClientHandshake request) {}

    @Override
    public void onMessage(WebSocket socket, String text) {}

    @Override
    public void onClose(WebSocket socket, int code, String reason, boolean remote) {}

    @Override
    public void onError(WebSocket socket, Exception error) {
      error.printStackTrace();
    }
  }

  private static final class Client extends WebSocketClient {
    final CountDownLatch left = new CountDownLatch(MESSAGES);

    Client(URI where) {
      super(where);
    }

    @Override
    public void onMessage(ByteBuffer data) {
      left.countDown();
    }

    @Override
    public void onOpen(ServerHandshake response) {}

    @Override
    public void onMessage(String text) {}

    @Override
    public void onClose(int code, String reason, boolean remote) {}

    @Override
    public void onError(Exception error) {
      error.printStackTrace();
    }
  }

  public static void main(String[] arguments) throws Exception {
    SSLContext tls = tls(arguments[0], arguments[1].toCharArray());
    Server server = new Server();
    server.setWebSocketFactory(new DefaultSSLWebSocketServerFactory(tls));
    server.start();
    server.started.await();
    for (int number = 1; number <= 100; number++) {
      Client client = new Client(URI.create("wss://localhost:" + server.getPort()));
      client.setSocketFactory(tls.getSocketFactory());
      client.connectBlocking();
      for (int sent = 0; sent < MESSAGES; sent++) {
        client.send(new byte[SIZE]);
      }
      if (!client.left.await(60, TimeUnit.SECONDS)) {
        long echoed = MESSAGES - client.left.getCount();
        System.out.println("transfer " + number + " has stopped after " + echoed + " of 1000 messages");
        System.exit(0);
      }
      client.close();
    }
    System.out.println("100 transfers have ended");
    System.exit(0);
  }
}
