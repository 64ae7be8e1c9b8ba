package peers;

import io.netty.bootstrap.Bootstrap;
import io.netty.bootstrap.ServerBootstrap;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import io.netty.channel.Channel;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInboundHandlerAdapter;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.ChannelPipeline;
import io.netty.channel.EventLoopGroup;
import io.netty.channel.MultiThreadIoEventLoopGroup;
import io.netty.channel.nio.NioIoHandler;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import io.netty.channel.socket.nio.NioSocketChannel;
import io.netty.handler.codec.http.HttpClientCodec;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.HttpServerCodec;
import io.netty.handler.codec.http.websocketx.BinaryWebSocketFrame;
import io.netty.handler.codec.http.websocketx.CloseWebSocketFrame;
import io.netty.handler.codec.http.websocketx.ContinuationWebSocketFrame;
import io.netty.handler.codec.http.websocketx.PingWebSocketFrame;
import io.netty.handler.codec.http.websocketx.PongWebSocketFrame;
import io.netty.handler.codec.http.websocketx.WebSocketClientProtocolConfig;
import io.netty.handler.codec.http.websocketx.WebSocketClientProtocolHandler;
import io.netty.handler.codec.http.websocketx.WebSocketFrame;
import io.netty.handler.codec.http.websocketx.WebSocketServerProtocolConfig;
import io.netty.handler.codec.http.websocketx.WebSocketServerProtocolHandler;
import io.netty.handler.ssl.SslHandler;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;

/** Netty with its protocol handlers as they are by default. It reads only when the program does. */
final class Netty extends Behaviour.Connection {
  private static final EventLoopGroup LOOPS =
      new MultiThreadIoEventLoopGroup(2, NioIoHandler.newFactory());

  private final Channel channel;
  private final CompletableFuture<Void> opened = new CompletableFuture<>();
  private volatile boolean isWanted;
  private volatile String subprotocol;
  private volatile String awaited;
  private volatile Runnable done;

  private Netty(Channel channel) {
    super(new Inbox(100_000)); // One read may give many frames.
    this.channel = channel;
  }

  /** The last handler of the pipeline gets what the protocol handler leaves to a program. */
  private final ChannelInboundHandlerAdapter program =
      new ChannelInboundHandlerAdapter() {
        @Override
        public void userEventTriggered(ChannelHandlerContext context, Object event) {
          if (event instanceof WebSocketServerProtocolHandler.HandshakeComplete complete) {
            subprotocol = complete.selectedSubprotocol();
            channel.config().setAutoRead(false);
            Behaviour.start(URI.create(complete.requestUri()), Netty.this);
          } else if (event
              == WebSocketClientProtocolHandler.ClientHandshakeStateEvent.HANDSHAKE_COMPLETE) {
            channel.config().setAutoRead(false);
            subprotocol =
                channel.pipeline().get(WebSocketClientProtocolHandler.class).handshaker().actualSubprotocol();
            opened.complete(null);
          }
        }

        @Override
        public void channelRead(ChannelHandlerContext context, Object message) {
          WebSocketFrame frame = (WebSocketFrame) message;
          ByteBuf content = frame.content();
          if (frame instanceof PongWebSocketFrame) {
            if (done != null && content.toString(StandardCharsets.UTF_8).equals(awaited)) {
              done.run();
            }
          } else {
            byte[] bytes = new byte[content.readableBytes()];
            content.readBytes(bytes);
            isWanted = false;
            inbox.put(bytes);
          }
          frame.release();
        }

        @Override
        public void channelReadComplete(ChannelHandlerContext context) {
          if (isWanted) {
            context.read();
          }
        }

        @Override
        public void channelInactive(ChannelHandlerContext context) {
          inbox.end();
        }

        @Override
        public void exceptionCaught(ChannelHandlerContext context, Throwable error) {
          inbox.error = error;
          context.close();
        }
      };

  /** This handler comes before the protocol handler, which keeps a Close to itself. */
  private final ChannelInboundHandlerAdapter closes =
      new ChannelInboundHandlerAdapter() {
        @Override
        public void channelRead(ChannelHandlerContext context, Object message) {
          if (message instanceof CloseWebSocketFrame close) {
            inbox.close(close.statusCode(), close.reasonText());
          }
          context.fireChannelRead(message);
        }
      };

  @Override
  byte[] receive() throws Exception {
    // This runs in the channel's thread, so that no message comes between the look and the read. A
    // needless read would take what comes while the program pauses.
    channel
        .eventLoop()
        .submit(
            () -> {
              if (inbox.isEmpty()) {
                isWanted = true;
                channel.read();
              }
            })
        .sync();
    return super.receive();
  }

  private void write(WebSocketFrame frame) throws Exception {
    channel.writeAndFlush(frame).sync();
  }

  @Override
  void send(byte[] data) throws Exception {
    write(new BinaryWebSocketFrame(Unpooled.wrappedBuffer(data)));
  }

  @Override
  void sendFragments(List<byte[]> fragments) throws Exception {
    for (int i = 0; i < fragments.size(); i++) {
      ByteBuf content = Unpooled.wrappedBuffer(fragments.get(i));
      boolean isLast = i == fragments.size() - 1;
      write(
          i == 0
              ? new BinaryWebSocketFrame(isLast, 0, content)
              : new ContinuationWebSocketFrame(isLast, 0, content));
    }
  }

  @Override
  void ping(String payload, Runnable done) throws Exception {
    this.awaited = payload;
    this.done = done;
    write(new PingWebSocketFrame(Unpooled.copiedBuffer(payload, StandardCharsets.UTF_8)));
  }

  @Override
  void close(int code, String reason) throws Exception {
    write(new CloseWebSocketFrame(code, reason));
  }

  @Override
  void drop() {
    channel.pipeline().firstContext().close(); // Its protocol handler would send a Close.
  }

  @Override
  String subprotocol() {
    return subprotocol;
  }

  private static int serve(SSLContext tls) throws Exception {
    WebSocketServerProtocolConfig config =
        WebSocketServerProtocolConfig.newBuilder()
            .websocketPath("/")
            .checkStartsWith(true)
            .subprotocols("bytes")
            .dropPongFrames(false)
            .build();
    ChannelInitializer<Channel> initializer =
        new ChannelInitializer<>() {
          @Override
          protected void initChannel(Channel channel) {
            Netty connection = new Netty(channel);
            ChannelPipeline pipeline = channel.pipeline();
            if (tls != null) {
              SSLEngine engine = tls.createSSLEngine();
              engine.setUseClientMode(false);
              pipeline.addLast(new SslHandler(engine));
            }
            pipeline.addLast(new HttpServerCodec(), new HttpObjectAggregator(65536), connection.closes);
            pipeline.addLast(new WebSocketServerProtocolHandler(config), connection.program);
          }
        };
    Channel server =
        new ServerBootstrap()
            .group(LOOPS)
            .channel(NioServerSocketChannel.class)
            .childHandler(initializer)
            .bind("127.0.0.1", 0)
            .sync()
            .channel();
    return ((InetSocketAddress) server.localAddress()).getPort();
  }

  private static Netty connect(URI where, List<String> subprotocols, SSLContext tls) throws Exception {
    WebSocketClientProtocolConfig config =
        WebSocketClientProtocolConfig.newBuilder()
            .webSocketUri(where)
            .subprotocol(subprotocols.isEmpty() ? null : String.join(",", subprotocols))
            .dropPongFrames(false)
            .build();
    CompletableFuture<Netty> found = new CompletableFuture<>();
    ChannelInitializer<Channel> initializer =
        new ChannelInitializer<>() {
          @Override
          protected void initChannel(Channel channel) {
            Netty connection = new Netty(channel);
            ChannelPipeline pipeline = channel.pipeline();
            if (where.getScheme().equals("wss")) {
              SSLEngine engine = tls.createSSLEngine("localhost", where.getPort());
              engine.setUseClientMode(true);
              pipeline.addLast(new SslHandler(engine));
            }
            pipeline.addLast(new HttpClientCodec(), new HttpObjectAggregator(65536), connection.closes);
            pipeline.addLast(new WebSocketClientProtocolHandler(config), connection.program);
            found.complete(connection);
          }
        };
    new Bootstrap()
        .group(LOOPS)
        .channel(NioSocketChannel.class)
        .handler(initializer)
        .connect("127.0.0.1", where.getPort())
        .sync();
    found.get().opened.get();
    return found.get();
  }

  public static void main(String[] arguments) throws Exception {
    SSLContext tls = Behaviour.tls(arguments);
    Behaviour.run(
        Behaviour.versionOf(WebSocketFrame.class),
        serve(null),
        serve(tls),
        (where, subprotocols) -> connect(where, subprotocols, tls));
  }
}
