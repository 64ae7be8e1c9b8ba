//! A tunnel of ws_stream_tungstenite and two pumps, for tests and benchmarks.
//!
//!     pumps serve host:port    a WebSocket server; each connection goes on to TCP
//!
//! It listens on a free port and says where.
use std::env::args;

use async_tungstenite::tokio::accept_async;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    spawn,
};
use ws_stream_tungstenite::WsStream;

async fn join(accepted: TcpStream, target: String) {
    accepted.set_nodelay(true).unwrap();
    let mut stream = WsStream::new(accept_async(accepted).await.unwrap());
    let mut tcp = TcpStream::connect(target).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    // An error is the end of this connection only.
    let _ = copy_bidirectional(&mut stream, &mut tcp).await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let target = args().nth(2).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    loop {
        let (accepted, _) = listener.accept().await.unwrap();
        spawn(join(accepted, target.clone()));
    }
}
