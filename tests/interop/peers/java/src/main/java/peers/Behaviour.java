package peers;

import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;

/** What every peer in Java does with a connection. The package tests.interop has the list. */
final class Behaviour {
  private Behaviour() {}

  /** A WebSocket of any library. It puts what another thread tells it into its inbox. */
  abstract static class Connection {
    final Inbox inbox;

    Connection(Inbox inbox) {
      this.inbox = inbox;
    }

    /** Returns a message or a part of one, and null at the end. */
    byte[] receive() throws Exception {
      return inbox.take();
    }

    abstract void send(byte[] data) throws Exception;

    /** Sends one message, with a frame for each fragment. */
    abstract void sendFragments(List<byte[]> fragments) throws Exception;

    /** Runs {@code done} when the Pong has come. Somebody must receive meanwhile. */
    abstract void ping(String payload, Runnable done) throws Exception;

    abstract void close(int code, String reason) throws Exception;

    /** Ends TCP, without a Close. */
    abstract void drop() throws Exception;

    /** Does what a program must do when it has been told of the end. Most libraries need nothing. */
    void finish() throws Exception {}

    abstract String subprotocol();
  }

  interface Client {
    Connection connect(URI where, List<String> subprotocols) throws Exception;
  }

  private static final class Count {
    final MessageDigest hash;
    long size;

    Count() throws Exception {
      hash = MessageDigest.getInstance("SHA-256");
    }

    void add(byte[] data) {
      hash.update(data);
      size += data.length;
    }
  }

  static synchronized void tell(Map<String, Object> facts) {
    List<String> items = new ArrayList<>();
    facts.forEach((name, value) -> items.add(quote(name) + ":" + json(value)));
    System.out.println("{" + String.join(",", items) + "}");
  }

  private static String json(Object value) {
    return value == null || value instanceof Number ? String.valueOf(value) : quote(value.toString());
  }

  private static String quote(String text) {
    StringBuilder quoted = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      quoted.append(c >= 32 && c < 127 && c != '"' && c != '\\' ? c : String.format("\\u%04x", (int) c));
    }
    return quoted.append('"').toString();
  }

  static Map<String, String> query(URI where) {
    Map<String, String> query = new HashMap<>();
    for (String item : where.getRawQuery().split("&")) {
      String[] parts = item.split("=", 2);
      query.put(parts[0], URLDecoder.decode(parts[1], StandardCharsets.UTF_8));
    }
    return query;
  }

  private static void sleep(Map<String, String> query, String name) throws Exception {
    Thread.sleep((long) (1000 * Double.parseDouble(query.getOrDefault(name, "0"))));
  }

  private static List<byte[]> messages(Map<String, String> query) {
    List<byte[]> found = new ArrayList<>();
    for (String size : query.get("sizes").split(",")) {
      byte[] data = new byte[Integer.parseInt(size)];
      new Random().nextBytes(data);
      found.add(data);
    }
    return found;
  }

  private static String nameOf(Throwable error) {
    String text = error.getMessage();
    return error.getClass().getSimpleName() + (text == null ? "" : ": " + text);
  }

  /** Does in a thread what the URL asks for until the connection ends, and reports what was seen. */
  static void start(URI where, Connection connection) {
    new Thread(
            () -> {
              try {
                behave(where, connection);
              } catch (Exception error) {
                error.printStackTrace();
              }
            })
        .start();
  }

  private static void behave(URI where, Connection connection) throws Exception {
    Map<String, String> query = query(where);
    Count received = new Count();
    Count sent = new Count();
    Object[] late = {null};
    byte[] data;

    switch (where.getPath()) {
      case "/echo" -> {
        while ((data = connection.receive()) != null) {
          received.add(data);
          connection.send(data);
          sent.add(data);
        }
      }
      case "/receive" -> {
        if (query.containsKey("pause")) {
          received.add(connection.receive());
          connection.send("paused".getBytes());
          sleep(query, "pause");
        }
        while ((data = connection.receive()) != null) {
          received.add(data);
          sleep(query, "delay");
        }
        try {
          connection.send("late".getBytes());
          late[0] = "sent";
        } catch (Exception error) {
          late[0] = nameOf(error);
        }
      }
      case "/send" -> {
        for (byte[] message : messages(query)) {
          connection.send(message);
          sent.add(message);
        }
        connection.close(1000, "");
      }
      case "/fragments" -> {
        List<byte[]> fragments = messages(query);
        fragments.forEach(sent::add);
        connection.sendFragments(fragments);
        connection.close(1000, "");
      }
      case "/flood" -> {
        byte[] message = new byte[65536];
        Thread sending =
            new Thread(
                () -> {
                  try {
                    while (!Thread.interrupted()) {
                      connection.send(message);
                      sent.add(message);
                    }
                    late[0] = "sent";
                  } catch (Exception error) {
                    late[0] = nameOf(error);
                  }
                });
        sending.start();
        while (connection.receive() != null) {}
        sending.join(1000);
        sending.interrupt(); // The library takes everything, and says nothing.
        sending.join();
      }
      case "/close" -> {
        received.add(connection.receive());
        connection.close(Integer.parseInt(query.get("code")), query.getOrDefault("reason", ""));
      }
      case "/ping" -> {
        received.add(connection.receive());
        connection.ping(
            query.get("payload"),
            () -> {
              byte[] answer = "pong".getBytes();
              sent.add(answer);
              new Thread(
                      () -> {
                        try {
                          connection.send(answer);
                        } catch (Exception error) {
                          error.printStackTrace();
                        }
                      })
                  .start();
            });
      }
      case "/abort" -> {
        received.add(connection.receive());
        connection.drop();
      }
      default -> throw new IllegalArgumentException(where.getPath());
    }
    while ((data = connection.receive()) != null) {
      received.add(data);
    }
    if (!query.containsKey("hold")) {
      connection.finish();
    }

    Map<String, Object> report = new LinkedHashMap<>();
    report.put("id", query.get("id"));
    report.put("code", connection.inbox.code);
    report.put("reason", connection.inbox.reason);
    report.put("end", connection.inbox.error == null ? null : nameOf(connection.inbox.error));
    report.put("subprotocol", connection.subprotocol());
    report.put("received", received.size);
    report.put("received_sha256", HexFormat.of().formatHex(received.hash.digest()));
    report.put("sent", sent.size);
    report.put("sent_sha256", HexFormat.of().formatHex(sent.hash.digest()));
    report.put("late", late[0]);
    tell(report);
  }

  /** Connects to what comes on standard input, until that ends. */
  static void run(String version, Integer port, Integer tlsPort, Client client) throws Exception {
    Map<String, Object> facts = new LinkedHashMap<>();
    facts.put("version", version);
    facts.put("port", port);
    facts.put("tls_port", tlsPort);
    tell(facts);
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = lines.readLine()) != null; ) {
      URI where = URI.create(line);
      String names = query(where).get("subprotocols");
      start(where, client.connect(where, names == null ? List.of() : List.of(names.split(","))));
    }
    System.exit(0);
  }

  /** Returns the version in the name of a class's archive. */
  static String versionOf(Class<?> type) {
    Matcher name =
        Pattern.compile("-(\\d[^/]*)\\.jar")
            .matcher(type.getProtectionDomain().getCodeSource().getLocation().getPath());
    return name.find() ? name.group(1) : "";
  }

  // PEM files

  private static List<byte[]> pem(String path, String kind) throws Exception {
    List<byte[]> found = new ArrayList<>();
    Matcher blocks =
        Pattern.compile("-----BEGIN " + kind + "-----([^-]+)-----END").matcher(Files.readString(Path.of(path)));
    while (blocks.find()) {
      found.add(Base64.getMimeDecoder().decode(blocks.group(1)));
    }
    return found;
  }

  private static Certificate[] certificates(String path) throws Exception {
    List<Certificate> found = new ArrayList<>();
    for (byte[] block : pem(path, "CERTIFICATE")) {
      found.add(CertificateFactory.getInstance("X.509").generateCertificate(new ByteArrayInputStream(block)));
    }
    return found.toArray(new Certificate[0]);
  }

  static X509TrustManager trust(String[] arguments) throws Exception {
    KeyStore roots = KeyStore.getInstance("PKCS12");
    roots.load(null);
    roots.setCertificateEntry("authority", certificates(arguments[1])[0]);
    TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    factory.init(roots);
    return (X509TrustManager) factory.getTrustManagers()[0];
  }

  /** Returns the TLS settings of both the server's and the client's end. */
  static SSLContext tls(String[] arguments) throws Exception {
    PrivateKey key =
        KeyFactory.getInstance("EC")
            .generatePrivate(new PKCS8EncodedKeySpec(pem(arguments[0], "PRIVATE KEY").get(0)));
    KeyStore keys = KeyStore.getInstance("PKCS12");
    keys.load(null);
    keys.setKeyEntry("localhost", key, new char[0], certificates(arguments[0]));
    KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
    factory.init(keys, new char[0]);
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(factory.getKeyManagers(), new X509TrustManager[] {trust(arguments)}, null);
    return context;
  }
}
