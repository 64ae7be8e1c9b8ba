import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Exchanger;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.java_websocket.WebSocket;
import org.java_websocket.WebSocketAdapter;
import org.java_websocket.WebSocketImpl;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.drafts.Draft;
import org.java_websocket.handshake.ClientHandshake;
import org.java_websocket.handshake.ServerHandshake;
import org.java_websocket.server.DefaultWebSocketServerFactory;
import org.java_websocket.server.WebSocketServer;

/**
 * Shows that a Java-WebSocket server can forget to write a message.
 *
 * <p>Its selector's thread finds that nothing is left to write, and then tells the selector to watch
 * for reading only. Another thread may send in between, and tell the selector to watch for writing
 * too. That is undone at once, and the message waits until something else is sent. The moment is
 * short, so this program makes it longer.
 */
class JavaWebSocketForgets {
  /** Echoes. */
  private static final class Server extends WebSocketServer {
    final CountDownLatch started = new CountDownLatch(1);

    Server() {
      super(new InetSocketAddress("127.0.0.1", 0));
      setWebSocketFactory(
          new DefaultWebSocketServerFactory() {
            @Override
            public WebSocketImpl createWebSocket(WebSocketAdapter server, List<Draft> drafts) {
              return new Connection(server, drafts);
            }
          });
    }

    @Override
    public void onStart() {
      started.countDown();
    }

    @Override
    public void onMessage(WebSocket socket, ByteBuffer data) {
      try {
        ((Connection) socket).echo(data);
      } catch (InterruptedException error) {
        throw new AssertionError(error);
      }
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

  private static final class Connection extends WebSocketImpl {
    /** Where the two threads meet: in the moment between, and again when the message is sent. */
    final Exchanger<Void> meeting = new Exchanger<>();

    Connection(WebSocketAdapter server, List<Draft> drafts) {
      super(server, drafts);
    }

    /** The selector's thread asks this in the moment between. It first does so after the handshake. */
    @Override
    public boolean isFlushAndClose() {
      try {
        meeting.exchange(null, 2, TimeUnit.SECONDS);
        meeting.exchange(null);
      } catch (TimeoutException error) {
        // No message has come.
      } catch (InterruptedException error) {
        throw new AssertionError(error);
      }
      return super.isFlushAndClose();
    }

    void echo(ByteBuffer data) throws InterruptedException {
      meeting.exchange(null);
      send(data);
      meeting.exchange(null);
    }
  }

  private static final class Client extends WebSocketClient {
    final Semaphore echoes = new Semaphore(0);

    Client(Server server) {
      super(URI.create("ws://127.0.0.1:" + server.getPort()));
    }

    String isServed() throws Exception {
      return echoes.tryAcquire(10, TimeUnit.SECONDS) ? "served" : "not served";
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
    Client client = new Client(server);
    client.connectBlocking();
    client.send(new byte[1]);
    System.out.println("the client: " + client.isServed());
    server.getConnections().forEach(server::onWriteDemand);
    System.out.println("and when the server is reminded: " + client.isServed());
    System.exit(0);
  }
}
