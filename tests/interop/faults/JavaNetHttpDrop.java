import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.Scanner;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * Shows that java.net.http.WebSocket may tell its listener nothing when TCP ends without a Close. Its
 * server sends one message and ends TCP. Its client connects until it is told nothing for 5 s.
 */
class JavaNetHttpDrop {
  private static final String UUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, 1.3

  private static void serve(ServerSocket server) {
    while (true) {
      try (Socket tcp = server.accept()) {
        String request = new Scanner(tcp.getInputStream()).useDelimiter("\r\n\r\n").next();
        String key = request.replaceAll("(?is).*sec-websocket-key: ([^\r]*).*", "$1");
        byte[] hash = MessageDigest.getInstance("SHA-1").digest((key + UUID).getBytes());
        String response =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                + "Sec-WebSocket-Accept: " + Base64.getEncoder().encodeToString(hash) + "\r\n\r\n";
        tcp.getOutputStream().write(response.getBytes());
        Thread.sleep(20); // as long as a client may take to request its first message
        tcp.getOutputStream().write(new byte[] {(byte) 0x82, 1, 'x'}); // a binary message
      } catch (Exception error) {
        throw new IllegalStateException(error);
      }
    }
  }

  private static final class Listener implements WebSocket.Listener {
    final CompletableFuture<Void> told = new CompletableFuture<>();

    @Override
    public void onOpen(WebSocket socket) {
      socket.request(1);
    }

    @Override
    public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer data, boolean last) {
      new Thread(() -> socket.request(1)).start(); // as a program does that takes its time
      return null;
    }

    @Override
    public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
      told.complete(null);
      return null;
    }

    @Override
    public void onError(WebSocket socket, Throwable error) {
      told.complete(null);
    }
  }

  public static void main(String[] arguments) throws Exception {
    ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
    new Thread(() -> serve(server)).start();
    HttpClient client = HttpClient.newHttpClient();
    URI where = URI.create("ws://127.0.0.1:" + server.getLocalPort());
    for (int number = 1; number <= 1000; number++) {
      Listener listener = new Listener();
      client.newWebSocketBuilder().buildAsync(where, listener).get();
      try {
        listener.told.get(5, TimeUnit.SECONDS);
      } catch (TimeoutException error) {
        System.out.println("JDK " + Runtime.version() + ": not told of the end of connection " + number);
        System.exit(0);
      }
    }
    System.out.println("JDK " + Runtime.version() + ": told of the end of 1000 connections");
    System.exit(0);
  }
}
