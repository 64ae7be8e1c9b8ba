//! This peer is fastwebsockets, split in two halves that share its writer.
use std::{convert::Infallible, future::Future, rc::Rc};

use fastwebsockets::{
    handshake,
    upgrade::{upgrade, UpgradeFut},
    Frame, OpCode, Payload, WebSocket, WebSocketRead, WebSocketWrite,
};
use http_body_util::Empty;
use hyper::{
    body::{Bytes, Incoming},
    header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    server::conn::http1,
    service::service_fn,
    upgrade::Upgraded,
    Request, Response,
};
use hyper_util::rt::TokioIo;
use peers::{
    accept, behave, chosen, offer, run, text_of, End, Io, Library, Reader, Received, Url, Writer,
};
use tokio::{
    io::{split, ReadHalf, WriteHalf},
    sync::Mutex,
    task::spawn_local,
};

type Connection = TokioIo<Upgraded>;

struct Fast;

type SharedWriter = Rc<Mutex<WebSocketWrite<WriteHalf<Connection>>>>;

struct Reading {
    half: WebSocketRead<ReadHalf<Connection>>,
    writer: SharedWriter,
    end: End,
}

impl Reader for Reading {
    async fn receive(&mut self) -> Received {
        while self.end.code.is_none() && self.end.error.is_none() {
            // The library owes the peer Pongs, and the answer to a Close.
            let mut send = |frame| async { self.writer.lock().await.write_frame(frame).await };
            match self.half.read_frame(&mut send).await {
                Ok(frame) => match frame.opcode {
                    OpCode::Binary | OpCode::Continuation => {
                        return Received::Data(frame.payload.to_vec())
                    }
                    OpCode::Pong => return Received::Pong(frame.payload.to_vec()),
                    OpCode::Close => {
                        self.end
                            .close(frame.payload.split_first_chunk().map(|(code, reason)| {
                                (
                                    u16::from_be_bytes(*code),
                                    String::from_utf8(reason.into()).unwrap(),
                                )
                            }))
                    }
                    _ => {}
                },
                Err(error) => self.end.error = Some(text_of(error)),
            }
        }
        Received::End
    }

    async fn end(self) -> End {
        self.end
    }
}

struct Writing(SharedWriter);

impl Writing {
    async fn write(&mut self, frame: Frame<'_>) -> Result<(), String> {
        let mut writer = self.0.lock().await;
        writer.write_frame(frame).await.map_err(text_of)?;
        writer.flush().await.map_err(text_of) // TLS needs it.
    }
}

impl Writer for Writing {
    async fn send(&mut self, data: Vec<u8>) -> Result<(), String> {
        self.write(Frame::binary(data.into())).await
    }

    async fn close(&mut self, code: u16, reason: String) -> Result<(), String> {
        self.write(Frame::close(code, reason.as_bytes())).await
    }

    async fn send_fragments(&mut self, fragments: Vec<Vec<u8>>) -> Result<(), String> {
        let last = fragments.len() - 1;
        for (index, fragment) in fragments.into_iter().enumerate() {
            let kind = if index == 0 {
                OpCode::Binary
            } else {
                OpCode::Continuation
            };
            self.write(Frame::new(index == last, kind, None, fragment.into()))
                .await?;
        }
        Ok(())
    }

    async fn ping(&mut self, payload: Vec<u8>) -> Result<(), String> {
        self.write(Frame::new(true, OpCode::Ping, None, payload.into()))
            .await
    }

    async fn send_text(&mut self, text: String) -> Result<(), String> {
        self.write(Frame::text(Payload::Owned(text.into_bytes())))
            .await
    }
}

async fn begin(url: Url, subprotocol: Option<String>, websocket: WebSocket<Connection>) {
    let (half, writer) = websocket.split(split);
    let writer = Rc::new(Mutex::new(writer));
    let reading = Reading {
        half,
        writer: writer.clone(),
        end: End::default(),
    };
    behave(&url, subprotocol, reading, Writing(writer)).await;
}

async fn serve(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (mut response, upgraded): (_, UpgradeFut) = upgrade(&mut request).unwrap();
    let (url, subprotocol) = accept(&request, &mut response);
    spawn_local(async move { begin(url, subprotocol, upgraded.await.unwrap()).await });
    Ok(response)
}

/// Runs hyper's tasks.
struct Executor;

impl<T: Future + 'static> hyper::rt::Executor<T> for Executor {
    fn execute(&self, task: T) {
        spawn_local(async { drop(task.await) });
    }
}

impl Library for Fast {
    const NAME: &'static str = "fastwebsockets";

    async fn serve(io: Io) -> Result<(), String> {
        let serving = http1::Builder::new().serve_connection(TokioIo::new(io), service_fn(serve));
        serving.with_upgrades().await.map_err(text_of)
    }

    async fn connect(url: Url, io: Io) -> Result<(), String> {
        let request = Request::get(url.as_str())
            .header(HOST, url.authority())
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "upgrade")
            .header(SEC_WEBSOCKET_KEY, handshake::generate_key())
            .header(SEC_WEBSOCKET_VERSION, "13");
        let mut request = request.body(Empty::<Bytes>::new()).unwrap();
        offer(&url, &mut request);
        let (websocket, response) = handshake::client(&Executor, request, io)
            .await
            .map_err(text_of)?;
        begin(url, chosen(&response), websocket).await;
        Ok(())
    }
}

fn main() {
    run::<Fast>();
}
