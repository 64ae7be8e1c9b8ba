import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.ByteBuffer;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.java_websocket.WebSocket;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.handshake.ClientHandshake;
import org.java_websocket.handshake.ServerHandshake;
import org.java_websocket.server.WebSocketServer;

/** Shows that all connections of a Java-WebSocket server stop while one onMessage blocks. */
class JavaWebSocketBlocked {
  /** Echoes; but on the path /blocked it blocks. */
  private static final class Server extends WebSocketServer {
    final CountDownLatch started = new CountDownLatch(1);

    Server() {
      super(new InetSocketAddress("127.0.0.1", 0), 4); // four threads call onMessage
    }

    @Override
    public void onStart() {
      started.countDown();
    }

    @Override
    public void onMessage(WebSocket socket, ByteBuffer data) {
      if (socket.getResourceDescriptor().equals("/blocked")) {
        new Semaphore(0).acquireUninterruptibly();
      }
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
    final Semaphore echoes = new Semaphore(0);

    Client(Server server, String path) throws Exception {
      super(URI.create("ws://127.0.0.1:" + server.getPort() + path));
      connectBlocking();
    }

    /** Whether the server echoes a message within 5 s. */
    boolean isServed() throws Exception {
      send(new byte[1]);
      return echoes.tryAcquire(5, TimeUnit.SECONDS);
    }

    @Override
    public void onMessage(ByteBuffer data) {
      echoes.release();
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
    Server server = new Server();
    server.start();
    server.started.await();
    Client blocked = new Client(server, "/blocked");
    Client other = new Client(server, "/");
    System.out.println("the other client before: " + (other.isServed() ? "served" : "not served"));
    for (int count = 0; count < 100; count++) {
      blocked.send(new byte[10_000]);
      Thread.sleep(1); // so that it comes in many reads
    }
    System.out.println("and while one blocks: " + (other.isServed() ? "served" : "not served"));
    System.exit(0);
  }
}
