package peers;

import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Timer;
import java.util.TimerTask;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import javax.net.ssl.SSLContext;
import org.java_websocket.WebSocket;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.drafts.Draft_6455;
import org.java_websocket.enums.Opcode;
import org.java_websocket.framing.Framedata;
import org.java_websocket.framing.PingFrame;
import org.java_websocket.handshake.ClientHandshake;
import org.java_websocket.handshake.ServerHandshake;
import org.java_websocket.protocols.IProtocol;
import org.java_websocket.protocols.Protocol;
import org.java_websocket.server.DefaultSSLWebSocketServerFactory;
import org.java_websocket.server.WebSocketServer;

/** Java-WebSocket. */
final class JavaWebSocket extends Behaviour.Connection {
  private final WebSocket socket;
  private volatile String subprotocol;
  private volatile String awaited;
  private volatile Runnable done;

  private JavaWebSocket(WebSocket socket) {
    super(new Inbox(100_000)); // If a callback waited, its server would not even write.
    this.socket = socket;
  }

  /** Notes the subprotocol, because nobody knows it at the end. */
  private void opened() {
    IProtocol protocol = socket.getProtocol();
    subprotocol = protocol == null ? null : protocol.getProvidedProtocol();
  }

  private void take(ByteBuffer data) {
    byte[] bytes = new byte[data.remaining()];
    data.get(bytes);
    inbox.put(bytes);
  }

  private void ended(int code, String reason) {
    if (code != 1006) {
      inbox.close(code, reason);
    }
    inbox.end();
  }

  private void pong(Framedata frame) {
    if (done != null && frame.getPayloadData().equals(ByteBuffer.wrap(awaited.getBytes()))) {
      done.run();
    }
  }

  @Override
  void send(byte[] data) throws Exception {
    socket.send(data);
    while (socket.hasBufferedData() && socket.isOpen()) {
      Thread.sleep(1); // Its queue takes everything, and does not wait.
    }
  }

  @Override
  void sendFragments(List<byte[]> fragments) {
    for (int i = 0; i < fragments.size(); i++) {
      ByteBuffer fragment = ByteBuffer.wrap(fragments.get(i));
      socket.sendFragmentedFrame(Opcode.BINARY, fragment, i == fragments.size() - 1);
    }
  }

  @Override
  void ping(String payload, Runnable done) {
    this.awaited = payload;
    this.done = done;
    PingFrame frame = new PingFrame();
    frame.setPayload(ByteBuffer.wrap(payload.getBytes()));
    socket.sendFrame(frame);
  }

  @Override
  void close(int code, String reason) {
    socket.close(code, reason);
  }

  @Override
  void drop() {
    socket.closeConnection(1006, "");
  }

  @Override
  String subprotocol() {
    return subprotocol;
  }

  private static Draft_6455 draft(List<String> subprotocols) {
    List<IProtocol> protocols = new ArrayList<>();
    subprotocols.forEach(name -> protocols.add(new Protocol(name)));
    protocols.add(new Protocol("")); // The client may also get none.
    return new Draft_6455(List.of(), protocols);
  }

  private static final class Server extends WebSocketServer {
    private final Map<WebSocket, JavaWebSocket> connections = new ConcurrentHashMap<>();
    private final CountDownLatch started = new CountDownLatch(1);

    Server(SSLContext tls) throws Exception {
      super(new InetSocketAddress("127.0.0.1", 0), 4, List.of(draft(List.of("bytes"))));
      if (tls != null) {
        setWebSocketFactory(new DefaultSSLWebSocketServerFactory(tls));
      }
      start();
      started.await();
      new Timer(true).schedule(new Reminder(), 10, 10);
    }

    /** Without this, the server may forget to write: faults/JavaWebSocketForgets.java. */
    private final class Reminder extends TimerTask {
      @Override
      public void run() {
        getConnections().forEach(Server.this::onWriteDemand);
      }
    }

    @Override
    public void onStart() {
      started.countDown();
    }

    @Override
    public void onOpen(WebSocket socket, ClientHandshake request) {
      JavaWebSocket connection = new JavaWebSocket(socket);
      connections.put(socket, connection);
      connection.opened();
      Behaviour.start(URI.create(request.getResourceDescriptor()), connection);
    }

    @Override
    public void onMessage(WebSocket socket, String text) {}

    @Override
    public void onMessage(WebSocket socket, ByteBuffer data) {
      connections.get(socket).take(data);
    }

    @Override
    public void onWebsocketPong(WebSocket socket, Framedata frame) {
      connections.get(socket).pong(frame);
    }

    @Override
    public void onClose(WebSocket socket, int code, String reason, boolean remote) {
      if (connections.get(socket) != null) {
        connections.get(socket).ended(code, reason);
      }
    }

    @Override
    public void onError(WebSocket socket, Exception error) {
      error.printStackTrace();
    }
  }

  private static final class Client extends WebSocketClient {
    private final JavaWebSocket connection = new JavaWebSocket(this);

    Client(URI where, List<String> subprotocols) {
      super(where, draft(subprotocols));
    }

    @Override
    public void onOpen(ServerHandshake response) {
      connection.opened();
    }

    @Override
    public void onMessage(String text) {}

    @Override
    public void onMessage(ByteBuffer data) {
      connection.take(data);
    }

    @Override
    public void onWebsocketPong(WebSocket socket, Framedata frame) {
      connection.pong(frame);
    }

    @Override
    public void onClose(int code, String reason, boolean remote) {
      connection.ended(code, reason);
    }

    @Override
    public void onError(Exception error) {
      error.printStackTrace();
    }
  }

  public static void main(String[] arguments) throws Exception {
    SSLContext tls = Behaviour.tls(arguments);
    Behaviour.run(
        Behaviour.versionOf(WebSocket.class),
        new Server(null).getPort(),
        new Server(tls).getPort(),
        (where, subprotocols) -> {
          Client client = new Client(where, subprotocols);
          if (where.getScheme().equals("wss")) {
            client.setSocketFactory(tls.getSocketFactory());
          }
          client.connectBlocking();
          return client.connection;
        });
  }
}
