//! What every peer in Rust does with a connection. The package tests.interop has the list.
//!
//! A report has two things more. "end" is the error with which reading ended, or null if the library
//! calls it a plain end. "events" is what a program is told besides.
#![allow(async_fn_in_trait)] // Everything runs on one thread.

use std::{collections::HashMap, fmt::Display, fs, sync::Arc, time::Duration};

use futures::future::join;
use hyper::{header::HeaderValue, Request, Response};
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use tokio::{
    io::{stdin, AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader},
    net::{TcpListener, TcpStream},
    task::{spawn_local, LocalSet},
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
pub use url::Url;

/// A transport is TCP, or TLS over it.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}
pub type Io = Box<dyn Transport>;

pub enum Received {
    Data(Vec<u8>),
    Pong(Vec<u8>),
    End,
}

/// The reading half of a WebSocket of any library.
pub trait Reader {
    async fn receive(&mut self) -> Received;
    /// What a report tells of the end, once the writing half is gone.
    async fn end(self) -> End;
}

/// The writing half. Each method fails with a message of the library's.
pub trait Writer {
    async fn send(&mut self, data: Vec<u8>) -> Result<(), String>;
    async fn close(&mut self, code: u16, reason: String) -> Result<(), String>;
    /// Send one message, with a frame for each fragment.
    async fn send_fragments(&mut self, fragments: Vec<Vec<u8>>) -> Result<(), String>;
    async fn ping(&mut self, payload: Vec<u8>) -> Result<(), String>;
    /// Send a text message.
    async fn send_text(&mut self, text: String) -> Result<(), String>;
}

#[derive(Clone, Default)]
pub struct End {
    pub code: Option<u16>,
    pub reason: Option<String>,
    pub error: Option<String>,
    pub events: Vec<String>,
}

impl End {
    /// Note that a Close has come. The frame is None if it has no code.
    pub fn close(&mut self, frame: Option<(u16, String)>) {
        let (code, reason) = frame.unwrap_or((1005, String::new()));
        (self.code, self.reason) = (Some(code), Some(reason));
    }
}

pub fn text_of(error: impl Display) -> String {
    error.to_string()
}

/// The version that Cargo.toml asks for.
pub fn version_of(package: &str) -> &'static str {
    let line = include_str!("../Cargo.toml")
        .lines()
        .find(|line| line.starts_with(&format!("{package} = ")))
        .expect("it is in Cargo.toml");
    line.split('=')
        .nth(if line.contains("version") { 3 } else { 2 })
        .unwrap()
        .split('"')
        .next()
        .unwrap()
}

pub type Query = HashMap<String, String>;

pub fn query_of(url: &Url) -> Query {
    url.query_pairs().into_owned().collect()
}

pub fn random(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 7919 >> 3) as u8).collect()
}

#[derive(Default)]
struct Count {
    hash: Sha256,
    size: usize,
}

impl Count {
    fn add(&mut self, data: &[u8]) {
        self.hash.update(data);
        self.size += data.len();
    }

    fn sha256(self) -> String {
        self.hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

struct Counted<R, W> {
    reader: R,
    writer: W,
    received: Count,
    sent: Count,
}

impl<R: Reader, W: Writer> Counted<R, W> {
    /// Return a message, or None at the end.
    async fn receive(&mut self) -> Option<Vec<u8>> {
        receive(&mut self.reader, &mut self.received).await
    }

    async fn send(&mut self, data: Vec<u8>) -> Result<(), String> {
        self.sent.add(&data);
        self.writer.send(data).await
    }
}

async fn receive(reader: &mut impl Reader, received: &mut Count) -> Option<Vec<u8>> {
    loop {
        match reader.receive().await {
            Received::Data(data) => {
                received.add(&data);
                return Some(data);
            }
            Received::Pong(_) => {}
            Received::End => return None,
        }
    }
}

fn seconds(query: &Query, name: &str) -> Duration {
    Duration::from_secs_f64(query.get(name).map_or(0.0, |text| text.parse().unwrap()))
}

fn sizes(query: &Query) -> impl Iterator<Item = usize> + '_ {
    query["sizes"].split(',').map(|size| size.parse().unwrap())
}

/// Do what the URL asks for until the connection ends, and report what was seen.
pub async fn behave<R: Reader, W: Writer>(
    url: &Url,
    subprotocol: Option<String>,
    reader: R,
    writer: W,
) {
    let query = query_of(url);
    let (received, sent) = (Count::default(), Count::default());
    let mut it = Counted {
        reader,
        writer,
        received,
        sent,
    };
    let mut late = None;
    match url.path() {
        "/echo" => {
            while let Some(data) = it.receive().await {
                if it.send(data).await.is_err() {
                    break;
                }
            }
        }
        "/receive" => {
            if query.contains_key("pause") {
                it.receive().await;
                it.send(b"paused".to_vec()).await.unwrap();
                sleep(seconds(&query, "pause")).await;
            }
            while it.receive().await.is_some() {
                sleep(seconds(&query, "delay")).await;
            }
            late = Some(
                it.writer
                    .send(b"late".to_vec())
                    .await
                    .err()
                    .unwrap_or("sent".into()),
            );
        }
        "/send" => {
            for size in sizes(&query) {
                it.send(random(size)).await.unwrap();
            }
            it.writer.close(1000, String::new()).await.unwrap();
        }
        "/fragments" => {
            let fragments: Vec<_> = sizes(&query).map(random).collect();
            fragments.iter().for_each(|fragment| it.sent.add(fragment));
            it.writer.send_fragments(fragments).await.unwrap();
            it.writer.close(1000, String::new()).await.unwrap();
        }
        "/flood" => {
            let Counted {
                reader,
                writer,
                received,
                sent,
            } = &mut it;
            let reading = async { while receive(reader, received).await.is_some() {} };
            let writing = async {
                loop {
                    let data = random(65536);
                    if let Err(error) = writer.send(data.clone()).await {
                        break late = Some(error);
                    }
                    sent.add(&data);
                }
            };
            join(reading, writing).await;
        }
        "/close" => {
            it.receive().await;
            let code = query["code"].parse().unwrap();
            let reason = query.get("reason").cloned().unwrap_or_default();
            it.writer.close(code, reason).await.unwrap();
        }
        "/ping" => {
            it.receive().await;
            it.writer
                .ping(query["payload"].clone().into_bytes())
                .await
                .unwrap();
            loop {
                match it.reader.receive().await {
                    Received::Pong(payload) if payload == query["payload"].as_bytes() => break,
                    Received::End => break,
                    _ => {}
                }
            }
            drop(it.send(b"pong".to_vec()).await); // The connection may have ended instead.
        }
        "/text" => {
            it.receive().await;
            it.writer.send_text("text".into()).await.unwrap();
            sleep(seconds(&query, "pause")).await;
        }
        "/abort" => {
            it.receive().await;
            return;
        }
        path => panic!("no behaviour {path}"),
    }
    while it.receive().await.is_some() {}
    let Counted {
        reader,
        writer,
        received,
        sent,
    } = it;
    drop(writer);
    let end = reader.end().await;
    tell(json!({
        "id": query["id"],
        "code": end.code,
        "reason": end.reason,
        "end": end.error,
        "events": end.events,
        "subprotocol": subprotocol,
        "received": received.size,
        "received_sha256": received.sha256(),
        "sent": sent.size,
        "sent_sha256": sent.sha256(),
        "late": late,
    }));
}

pub fn tell(facts: Value) {
    println!("{facts}");
}

/// A WebSocket library, with both opening handshakes.
pub trait Library: 'static {
    const NAME: &'static str;
    /// Serve what has connected. `Err`: the handshake failed.
    async fn serve(io: Io) -> Result<(), String>;
    async fn connect(url: Url, io: Io) -> Result<(), String>;
}

const SUBPROTOCOL: &str = "sec-websocket-protocol";

/// Do a server's part of the opening handshake. Return the URL, and the subprotocol that it chooses.
pub fn accept<A, B>(request: &Request<A>, response: &mut Response<B>) -> (Url, Option<String>) {
    let url = Url::parse(&format!("ws://localhost{}", request.uri())).unwrap();
    let offered = request
        .headers()
        .get_all(SUBPROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let found = offered
        .flat_map(|names| names.split(','))
        .any(|name| name.trim() == "bytes");
    if found {
        response
            .headers_mut()
            .insert(SUBPROTOCOL, HeaderValue::from_static("bytes"));
    }
    (url, found.then(|| "bytes".into()))
}

/// Do a client's part: offer the subprotocols that the URL names.
pub fn offer<A>(url: &Url, request: &mut Request<A>) {
    if let Some(names) = query_of(url).get("subprotocols") {
        request
            .headers_mut()
            .insert(SUBPROTOCOL, names.parse().unwrap());
    }
}

/// Return the subprotocol that the server has chosen.
pub fn chosen<A>(response: &Response<A>) -> Option<String> {
    response
        .headers()
        .get(SUBPROTOCOL)
        .map(|value| value.to_str().unwrap().into())
}

/// Serve on TCP or TLS, and return the port.
async fn serve<L: Library>(tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            spawn_local(async move {
                let io: Io = match tls {
                    None => Box::new(tcp),
                    Some(tls) => Box::new(tls.accept(tcp).await.unwrap()),
                };
                L::serve(io).await.unwrap();
            });
        }
    });
    port
}

/// Connect, and report a panic.
async fn watch<L: Library>(url: Url, tls: TlsConnector) {
    if let Err(error) = spawn_local(connect::<L>(url.clone(), tls)).await {
        tell(json!({"id": query_of(&url)["id"], "panic": text_of(error)}));
    }
}

async fn connect<L: Library>(url: Url, tls: TlsConnector) {
    let port = url.port().unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let io: Io = if url.scheme() == "wss" {
        Box::new(
            tls.connect(ServerName::try_from("localhost").unwrap(), tcp)
                .await
                .unwrap(),
        )
    } else {
        Box::new(tcp)
    };
    L::connect(url, io).await.unwrap();
}

/// Serve, and connect to what comes on standard input, until that ends.
pub fn run<L: Library>() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, main::<L>());
    std::process::exit(0); // Tasks may still run.
}

async fn main<L: Library>() {
    let paths: Vec<_> = std::env::args().skip(1).collect();
    let certificates = |path: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path)
            .unwrap()
            .map(|found| found.unwrap())
            .collect()
    };
    let key = PrivateKeyDer::from_pem_slice(&fs::read(&paths[0]).unwrap()).unwrap();
    let server_tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates(&paths[0]), key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&paths[1]));
    let client_tls = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client_tls = TlsConnector::from(Arc::new(client_tls));

    let port = serve::<L>(None).await;
    let tls_port = serve::<L>(Some(Arc::new(server_tls).into())).await;
    tell(json!({"version": version_of(L::NAME), "port": port, "tls_port": tls_port}));
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        spawn_local(watch::<L>(Url::parse(&line).unwrap(), client_tls.clone()));
    }
}
