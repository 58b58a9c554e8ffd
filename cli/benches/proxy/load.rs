//! The client: h2 on one thread, so that what it costs itself is known and small.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Uri, uri::Scheme};
use parallax_proto::confidence::AgentRequest;
use parallax_security::{Expect, Kind, Tcp, Tls, connect_plain};
use prost::Message;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{Result, echo::send_all, gather::Gather};

const PATH: &str = "/parallax.confidence.ConfidenceAgent/";

/// A message as gRPC frames it.
pub fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("a small message"));
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

/// One kind of call.
#[derive(Clone)]
pub struct Ask {
    request: Request<()>,
    body: Bytes,
    /// Bytes that must come back, at least.
    due: usize,
}

impl Ask {
    /// `task` as [`crate::echo`] understands it, in a request of `size` bytes to whoever has the capability.
    pub fn new(task: &str, size: usize, capability: &str, secure: bool) -> Self {
        let mut message = AgentRequest { task_id: task.to_owned(), ..Default::default() };
        message.task_description = "x".repeat(size.saturating_sub(task.len() + 5 + 2 + 3));
        let (method, messages) = match task.split_once(':') {
            Some(("stream", n)) => ("StreamAnalyze", n.parse().expect("a number")),
            _ if task == "hold" => ("StreamAnalyze", 0),
            _ => ("Analyze", 1),
        };
        let uri = Uri::builder()
            .scheme(if secure { Scheme::HTTPS } else { Scheme::HTTP })
            .authority("localhost")
            .path_and_query(format!("{PATH}{method}"));
        let request = Request::post(uri.build().expect("a URI"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "bench-proxy")
            .header("grpc-timeout", "30S")
            .header("x-parallax-capability", capability);
        let body = framed(&message);
        let due = messages * (body.len() - 8);
        Self { request: request.body(()).expect("a request"), body, due }
    }
}

/// Connections to one place.
#[derive(Clone)]
pub struct Client(Vec<SendRequest<Bytes>>);

impl Client {
    /// `count` connections, one after the other, to `addrs` in turn; with `tls`, to peers of a kind.
    pub async fn connect(addrs: &[String], count: usize, tls: Option<&(Tls, Kind)>) -> Result<Self> {
        let mut connections = Vec::new();
        for addr in addrs.iter().cycle().take(count) {
            let stream = match tls {
                Some((tls, kind)) => tls.connect(&Tcp, addr, &Expect::kind(*kind)).await?,
                None => connect_plain(&Tcp, addr).await?,
            };
            let gather = Gather::new(stream);
            let (send, connection) = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(16 << 20)
                .handshake(gather.clone())
                .await?;
            tokio::task::spawn_local(gather.gathering(async { _ = connection.await }));
            connections.push(send);
        }
        Ok(Self(connections))
    }

    /// `in_flight` callers, each asking again as soon as it has its answer, for a time.
    pub async fn closed(&self, ask: &Ask, in_flight: usize, lasting: Duration) -> Result<Took> {
        let took = Rc::new(RefCell::new(Vec::new()));
        let begun = Instant::now();
        let until = begun + lasting;
        let mut callers = JoinSet::<Result>::new();
        for n in 0..in_flight {
            let (mut send, ask, took) = (self.0[n % self.0.len()].clone(), ask.clone(), took.clone());
            callers.spawn_local(async move {
                loop {
                    let begun = Instant::now();
                    if begun >= until {
                        return Ok(());
                    }
                    call(&mut send, &ask).await?;
                    took.borrow_mut().push(begun.elapsed());
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        Ok(Took::new(took.take(), begun.elapsed()))
    }

    /// `rate` calls a second, whether or not others have ended; each took from when it was due. Paced from a thread,
    /// as tokio's timer counts in milliseconds.
    pub async fn open(&self, ask: &Ask, rate: u32, lasting: Duration) -> Result<Took> {
        let (due, mut calls) = mpsc::unbounded_channel();
        let pace = std::thread::spawn(move || {
            let begun = Instant::now();
            for n in 0.. {
                let at = Duration::from_secs(n) / rate;
                if at >= lasting {
                    return;
                }
                std::thread::sleep((begun + at).saturating_duration_since(Instant::now()));
                due.send(begun + at).ok();
            }
        });
        let took = Rc::new(RefCell::new(Vec::new()));
        let failed = Rc::new(Cell::new(None));
        let begun = Instant::now();
        let mut asked = JoinSet::new();
        let mut next = self.0.iter().cycle();
        while let Some(due) = calls.recv().await {
            let (mut send, ask) = (next.next().ok_or("no connection")?.clone(), ask.clone());
            let (took, failed) = (took.clone(), failed.clone());
            asked.spawn_local(async move {
                match call(&mut send, &ask).await {
                    Ok(()) => took.borrow_mut().push(due.elapsed()),
                    Err(e) => failed.set(Some(e)),
                }
            });
            while asked.try_join_next().is_some() {}
        }
        while asked.join_next().await.is_some() {}
        pace.join().map_err(|_| "the pace failed")?;
        match failed.take() {
            Some(e) => Err(e),
            None => Ok(Took::new(took.take(), begun.elapsed())),
        }
    }

    /// Opens `count` calls that stay open until the result is dropped; returns when all have begun to be answered.
    pub async fn hold(&self, ask: &Ask, count: usize) -> Result<Vec<h2::RecvStream>> {
        let mut opening = JoinSet::new();
        for n in 0..count {
            let (mut send, ask) = (self.0[n % self.0.len()].clone(), ask.clone());
            opening.spawn_local(async move { begin(&mut send, &ask).await });
        }
        let mut open = Vec::new();
        while let Some(opened) = opening.join_next().await {
            open.push(opened??.1);
        }
        Ok(open)
    }
}

async fn begin(send: &mut SendRequest<Bytes>, ask: &Ask) -> Result<(HeaderMap, h2::RecvStream)> {
    std::future::poll_fn(|cx| send.poll_ready(cx)).await?;
    let (response, mut body) = send.send_request(ask.request.clone(), false)?;
    send_all(&mut body, ask.body.clone(), true).await?;
    let (head, answer) = response.await?.into_parts();
    Ok((head.headers, answer))
}

/// One call to its end; whatever is not the whole answer is an error.
async fn call(send: &mut SendRequest<Bytes>, ask: &Ask) -> Result {
    let (head, mut answer) = begin(send, ask).await?;
    let mut came = 0;
    while let Some(data) = answer.data().await {
        let data = data?;
        answer.flow_control().release_capacity(data.len())?;
        came += data.len();
    }
    let trailers = answer.trailers().await?.unwrap_or(head);
    if trailers.get("grpc-status").is_none_or(|status| status != "0") || came < ask.due {
        return Err(format!("a call failed: {came} bytes of {}, {trailers:?}", ask.due).into());
    }
    Ok(())
}

/// How long calls took, ascending.
pub struct Took {
    sorted: Vec<Duration>,
    pub over: Duration,
}

impl Took {
    fn new(mut sorted: Vec<Duration>, over: Duration) -> Self {
        sorted.sort_unstable();
        Self { sorted, over }
    }

    pub fn calls(&self) -> usize {
        self.sorted.len()
    }

    /// Microseconds.
    pub fn quantile(&self, q: f64) -> f64 {
        let at = (self.sorted.len().saturating_sub(1) as f64 * q) as usize;
        self.sorted.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
    }
}
