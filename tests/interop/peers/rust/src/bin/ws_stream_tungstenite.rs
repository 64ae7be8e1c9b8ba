//! This peer is ws_stream_tungstenite. It has no pings of its own, and no codes.
//!
//! The query of a URL may have more: `observe=bounded` asks for an observer with room for one event, which
//! waits `observe_delay` seconds before each event. `write_buffer=8` is the buffer of tungstenite's client.
//! `/lines` uses the LinesCodec of asynchronous-codec, or with `codec=tokio` that of tokio-util. It answers
//! each line with the same line. With `items` it answers with the next item, which need be no whole line,
//! and closes the codec after the last one.
use std::{fmt::Debug, time::Duration};

use async_tungstenite::{
    tokio::{accept_hdr_async, client_async_with_config, TokioAdapter},
    tungstenite::{
        client::IntoClientRequest,
        handshake::server::{Request, Response},
        protocol::WebSocketConfig,
    },
    WebSocketStream,
};
use futures::{
    io::{ReadHalf, WriteHalf},
    AsyncReadExt, AsyncWriteExt, Sink, SinkExt, Stream, StreamExt,
};
use peers::{
    accept, behave, chosen, offer, query_of, run, tell, text_of, End, Io, Library, Query, Reader,
    Received, Url, Writer,
};
use pharos::{Channel, Events, Observable, ObserveConfig};
use serde_json::json;
use tokio::{
    task::{spawn_local, JoinHandle},
    time::sleep,
};
use ws_stream_tungstenite::{WsEvent, WsStream};

type ByteStream = WsStream<TokioAdapter<Io>>;

struct Original;

struct Reading {
    half: ReadHalf<ByteStream>,
    error: Option<String>,
    observer: JoinHandle<End>,
}

impl Reader for Reading {
    async fn receive(&mut self) -> Received {
        let mut buffer = vec![0; 65536];
        match self.half.read(&mut buffer).await {
            Ok(0) => Received::End,
            Ok(size) => {
                buffer.truncate(size);
                Received::Data(buffer)
            }
            Err(error) => {
                self.error = Some(text_of(error));
                Received::End
            }
        }
    }

    async fn end(self) -> End {
        drop(self.half); // This ends the observer's channel.
        let mut end = self.observer.await.unwrap();
        end.error = self.error;
        end
    }
}

async fn observe(mut events: Events<WsEvent>, delay: Duration) -> End {
    let mut end = End::default();
    while let Some(event) = events.next().await {
        let text = match event {
            WsEvent::Ping(payload) => format!("Ping {}", String::from_utf8_lossy(&payload)),
            WsEvent::Pong(payload) => format!("Pong {}", String::from_utf8_lossy(&payload)),
            WsEvent::Error(error) => format!("Error {error}"),
            WsEvent::Closed => "Closed".into(),
            WsEvent::CloseFrame(frame) => {
                end.close(frame.map(|frame| (frame.code.into(), frame.reason.into())));
                format!("CloseFrame {}", end.code.unwrap())
            }
        };
        end.events.push(text);
        sleep(delay).await;
    }
    end
}

struct Writing(WriteHalf<ByteStream>);

impl Writer for Writing {
    async fn send(&mut self, data: Vec<u8>) -> Result<(), String> {
        self.0.write_all(&data).await.map_err(text_of)?;
        self.0.flush().await.map_err(text_of)
    }

    async fn close(&mut self, _code: u16, _reason: String) -> Result<(), String> {
        self.0.close().await.map_err(text_of)
    }

    async fn send_fragments(&mut self, _fragments: Vec<Vec<u8>>) -> Result<(), String> {
        unimplemented!()
    }

    async fn ping(&mut self, _payload: Vec<u8>) -> Result<(), String> {
        unimplemented!()
    }

    async fn send_text(&mut self, _text: String) -> Result<(), String> {
        unimplemented!()
    }
}

async fn lines<T, E>(query: &Query, framed: &mut T) -> Vec<String>
where
    T: Stream<Item = Result<String, E>> + Sink<String> + Unpin,
    E: Debug,
    T::Error: Debug,
{
    let mut items = query.get("items").map(|items| items.split(','));
    let mut lines = Vec::new();
    while let Some(line) = framed.next().await {
        let line = line.unwrap();
        lines.push(line.clone());
        match items.as_mut().map(|items| items.next()) {
            None => framed.send(line).await.unwrap(),
            Some(Some(item)) => framed.send(item.into()).await.unwrap(),
            Some(None) => framed.close().await.unwrap(),
        }
    }
    lines
}

async fn begin(
    url: Url,
    subprotocol: Option<String>,
    websocket: WebSocketStream<TokioAdapter<Io>>,
) {
    let query = query_of(&url);
    let mut stream = WsStream::new(websocket);
    if url.path() == "/lines" {
        let lines = if query.get("codec").is_some_and(|codec| codec == "tokio") {
            let codec = tokio_util::codec::LinesCodec::new();
            lines(&query, &mut tokio_util::codec::Framed::new(stream, codec)).await
        } else {
            lines(
                &query,
                &mut asynchronous_codec::Framed::new(stream, asynchronous_codec::LinesCodec),
            )
            .await
        };
        return tell(json!({"id": query["id"], "lines": lines}));
    }
    let options = if query
        .get("observe")
        .is_some_and(|channel| channel == "bounded")
    {
        Channel::Bounded(1).into()
    } else {
        ObserveConfig::default()
    };
    let delay = query
        .get("observe_delay")
        .map_or(0.0, |text| text.parse().unwrap());
    let events = stream.observe(options).await.unwrap();
    let observer = spawn_local(observe(events, Duration::from_secs_f64(delay)));
    let (reading, writing) = stream.split();
    let reading = Reading {
        half: reading,
        error: None,
        observer,
    };
    behave(&url, subprotocol, reading, Writing(writing)).await;
}

impl Library for Original {
    const NAME: &'static str = "ws_stream_tungstenite";

    async fn serve(io: Io) -> Result<(), String> {
        let mut accepted = None;
        #[allow(clippy::result_large_err)]
        let callback = |request: &Request, mut response: Response| {
            accepted = Some(accept(request, &mut response));
            Ok(response)
        };
        let websocket = accept_hdr_async(io, callback).await.map_err(text_of)?;
        let (url, subprotocol) = accepted.unwrap();
        begin(url, subprotocol, websocket).await;
        Ok(())
    }

    async fn connect(url: Url, io: Io) -> Result<(), String> {
        let mut request = url.as_str().into_client_request().unwrap();
        offer(&url, &mut request);
        let config = query_of(&url).get("write_buffer").map(|size| {
            let size: usize = size.parse().unwrap();
            WebSocketConfig {
                write_buffer_size: size - 1,
                max_write_buffer_size: size,
                ..Default::default()
            }
        });
        let (websocket, response) = client_async_with_config(request, io, config)
            .await
            .map_err(text_of)?;
        begin(url, chosen(&response), websocket).await;
        Ok(())
    }
}

fn main() {
    run::<Original>();
}
