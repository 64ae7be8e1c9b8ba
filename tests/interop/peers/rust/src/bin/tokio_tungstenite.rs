//! This peer is tokio-tungstenite.
use futures::{
    stream::{SplitSink, SplitStream},
    SinkExt, StreamExt,
};
use peers::{
    accept, behave, chosen, offer, run, text_of, End, Io, Library, Reader, Received, Url, Writer,
};
use tokio_tungstenite::{
    accept_hdr_async, client_async,
    tungstenite::{
        client::IntoClientRequest,
        handshake::server::{Request, Response},
        protocol::{
            frame::{
                coding::{Data, OpCode},
                Frame,
            },
            CloseFrame,
        },
        Message,
    },
    WebSocketStream,
};

struct Tungstenite;

struct Reading {
    stream: SplitStream<WebSocketStream<Io>>,
    end: End,
}

impl Reader for Reading {
    async fn receive(&mut self) -> Received {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(data))) => return Received::Data(data.to_vec()),
                Some(Ok(Message::Pong(payload))) => return Received::Pong(payload.to_vec()),
                Some(Ok(Message::Close(frame))) => self
                    .end
                    .close(frame.map(|frame| (frame.code.into(), frame.reason.to_string()))),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.end.error = Some(text_of(error));
                    return Received::End;
                }
                None => return Received::End,
            }
        }
    }

    async fn end(self) -> End {
        self.end
    }
}

struct Writing(SplitSink<WebSocketStream<Io>, Message>);

impl Writing {
    async fn message(&mut self, message: Message) -> Result<(), String> {
        self.0.send(message).await.map_err(text_of)
    }
}

impl Writer for Writing {
    async fn send(&mut self, data: Vec<u8>) -> Result<(), String> {
        self.message(Message::Binary(data.into())).await
    }

    async fn close(&mut self, code: u16, reason: String) -> Result<(), String> {
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        self.message(Message::Close(Some(frame))).await
    }

    async fn send_fragments(&mut self, fragments: Vec<Vec<u8>>) -> Result<(), String> {
        let last = fragments.len() - 1;
        for (index, fragment) in fragments.into_iter().enumerate() {
            let kind = if index == 0 {
                Data::Binary
            } else {
                Data::Continue
            };
            let frame = Frame::message(fragment, OpCode::Data(kind), index == last);
            self.message(Message::Frame(frame)).await?;
        }
        Ok(())
    }

    async fn ping(&mut self, payload: Vec<u8>) -> Result<(), String> {
        self.message(Message::Ping(payload.into())).await
    }

    async fn send_text(&mut self, text: String) -> Result<(), String> {
        self.message(Message::Text(text.into())).await
    }
}

async fn begin(url: Url, subprotocol: Option<String>, websocket: WebSocketStream<Io>) {
    let (sink, stream) = websocket.split();
    behave(
        &url,
        subprotocol,
        Reading {
            stream,
            end: End::default(),
        },
        Writing(sink),
    )
    .await;
}

impl Library for Tungstenite {
    const NAME: &'static str = "tokio-tungstenite";

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
        let (websocket, response) = client_async(request, io).await.map_err(text_of)?;
        begin(url, chosen(&response), websocket).await;
        Ok(())
    }
}

fn main() {
    run::<Tungstenite>();
}
