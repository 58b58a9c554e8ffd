//! An agent that costs next to nothing, as a process of its own: h2 on one thread, answers made once.
//!
//! The first bytes of a request's `task_id` say what is wanted: `stream:N` for N messages, `hold` for an answer that
//! never comes, anything else for one message as long as the request.

use std::{cell::RefCell, io::Read, path::Path, rc::Rc};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use parallax_proto::confidence::ConfidenceResult;
use parallax_runtime::env::{Env, System};
use parallax_security::{Alpn, Authority, Identity, Kind, Plaintext, Stream, Tls};
use tokio::net::TcpListener;

use crate::{Result, gather::Gather, load::framed};

const STREAMS: u32 = 4096;

/// Serves until standard input is closed. Speaks TLS and plaintext on one port, which it prints.
pub async fn serve(dir: &Path, id: &str) -> Result {
    let now = System.system_time();
    let identity = Identity::new("default", Kind::Agent, id)?;
    let files = Authority::open_existing(&dir.join("ca"), now)?.bundle(&identity, &dir.join("tls"), now)?;
    let acceptor = Tls::load(files, now)?.acceptor(Alpn::Grpc, Plaintext::Loopback);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
    let answers = Rc::new(RefCell::new(Answers::default()));
    loop {
        let (socket, _) = listener.accept().await?;
        let (acceptor, answers) = (acceptor.clone(), answers.clone());
        tokio::task::spawn_local(async move {
            if let Ok((stream, _)) = acceptor.accept(socket).await {
                connection(stream, answers).await.ok();
            }
        });
    }
}

async fn connection(stream: Stream, answers: Rc<RefCell<Answers>>) -> Result {
    let gather = Gather::new(stream);
    let io = gather.clone();
    gather
        .gathering(async move {
            let mut connection = h2::server::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(16 << 20)
                .max_concurrent_streams(STREAMS)
                .handshake(io)
                .await?;
            while let Some(request) = connection.accept().await {
                let (request, respond) = request?;
                tokio::task::spawn_local(answer(request, respond, answers.clone()));
            }
            Ok(())
        })
        .await
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answers: Rc<RefCell<Answers>>,
) -> Result {
    let (_, mut body) = request.into_parts();
    let (mut first, mut length) = (Bytes::new(), 0);
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        length += data.len();
        if first.is_empty() {
            first = data;
        }
    }
    let task = first.get(7..).unwrap_or_default();
    if task.starts_with(b"hold") {
        let _open = respond.send_response(head(), false)?;
        return std::future::pending().await;
    }
    let messages = task.strip_prefix(b"stream:").map_or(1, |n| {
        n.iter().take_while(|b| b.is_ascii_digit()).fold(0, |n, b| n * 10 + usize::from(b - b'0'))
    });
    let message = answers.borrow_mut().of(length);
    let mut send = respond.send_response(head(), false)?;
    for _ in 0..messages {
        send_all(&mut send, message.clone(), false).await?;
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)?;
    Ok(())
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head
}

/// As much at a time as the peer takes; `last` closes the stream.
pub async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes, last: bool) -> Result {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        while send.capacity() == 0 {
            std::future::poll_fn(|cx| send.poll_capacity(cx)).await.ok_or("the stream is closed")??;
        }
        let now = data.split_to(send.capacity().min(data.len()));
        send.send_data(now, last && data.is_empty())?;
    }
    Ok(())
}

/// The last answer, for the next request is mostly as long.
#[derive(Default)]
struct Answers(Bytes);

impl Answers {
    /// A framed `ConfidenceResult` of `length` bytes, or as near as makes no difference.
    fn of(&mut self, length: usize) -> Bytes {
        if self.0.len() != length.max(64) {
            let mut result =
                ConfidenceResult { confidence: 0.9, agent_id: "echo".into(), ..Default::default() };
            let room = length.max(64) - framed(&result).len();
            // The key and the length of the text itself: two bytes below 128, then more.
            let own = [2, 3, 4][usize::from(room > 129) + usize::from(room > 16386)];
            result.value_json = "x".repeat(room - own);
            self.0 = BytesMut::from(&framed(&result)[..]).freeze();
        }
        self.0.clone()
    }
}
