//! Messages that are held as a whole: those of drivers, and of calls that opted for the cache or a fallback.

use std::{future::poll_fn, pin::Pin, rc::Rc};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, response::Parts};
use http_body::{Body, Frame};

use parallax_proto::confidence::ConfidenceResult;
use parallax_runtime::confidence::Confidence;
use prost::Message;
use tracing::Instrument;

use crate::{
    admission::{Held, Ticket},
    cache::Given,
    call::{Answering, Call},
    error::{Failed, Failure},
    fallback::SERVED_BY as MARK,
    frames::Incoming,
    metadata::cleanse,
    proxy::SERVED_BY,
    upload::Upload,
};

/// Before each message: "not compressed" and the length (gRPC over HTTP/2).
pub(crate) const PREFIX: usize = 5;

/// A message as gRPC frames it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    frame(&message.encode_to_vec())
}

/// An encoded message as gRPC frames it.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).expect("messages are bounded far below that"));
    bytes.extend_from_slice(message);
    bytes.freeze()
}

/// The one message that the bytes are, or what they are instead.
fn unframed(bytes: &Bytes) -> Result<Bytes, String> {
    let Some((prefix, rest)) = bytes.split_at_checked(PREFIX) else {
        return Err("no message, and no error either".to_owned());
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    match (prefix[0], rest.len()) {
        (0, n) if n == length => Ok(bytes.slice(PREFIX..)),
        (0, n) => Err(format!("one message of {length} bytes is due, {n} came")),
        _ => Err("compressed, which was not asked for".to_owned()),
    }
}

/// A caller's request.
pub(crate) enum Request {
    /// One message: as it came, and itself.
    Whole { framed: Bytes, message: Bytes, held: Held },
    /// Larger than the limit or than there is room for, compressed, or not one message.
    Other(Rc<Upload>),
}

/// Reads a request of up to `limit` bytes.
pub(crate) async fn request(mut body: Incoming, limit: usize, held: Held) -> Result<Request, Failure> {
    let (mut chunks, mut size) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| Failure::Cancelled(format!("the request broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        let room = held.grow(data.len());
        chunks.push(data);
        if size > limit + PREFIX || !room {
            return Ok(Request::Other(Upload::begun(chunks, body)));
        }
    }
    let framed = match <[Bytes; 1]>::try_from(chunks) {
        Ok([only]) => only,
        Err(chunks) => chunks.concat().into(),
    };
    Ok(match unframed(&framed) {
        Ok(message) => Request::Whole { framed, message, held },
        Err(_) => Request::Other(Upload::whole(framed)),
    })
}

/// An agent's answer to `Analyze`.
pub(crate) struct Whole {
    pub(crate) given: Given,
    pub(crate) result: ConfidenceResult,
    pub(crate) head: Parts,
    pub(crate) trailers: HeaderMap,
}

/// Reads an answer of up to `limit` bytes to its end, and settles its call.
pub(crate) async fn answer(call: Call, answering: Answering, limit: usize) -> Result<Whole, Failed> {
    let span = call.span.clone();
    let answer = read(&call, answering, limit).instrument(span).await;
    call.settle(answer.as_ref().map(|whole| whole.given.confidence).map_err(|failed| &failed.failure));
    answer
}

async fn read(call: &Call, answering: Answering, limit: usize) -> Result<Whole, Failed> {
    let Answering { mut head, mut body } = answering;
    let bad = |problem: String| Failure::BadAnswer { agent: call.entry.who(), problem };
    if body.is_empty()
        && let Err(failure) = call.status(&head.headers)
    {
        head.headers.insert(SERVED_BY, call.entry.served_by.clone());
        return Err(Failed { failure, said: Some(Box::new((head, None))) });
    }
    let mut bytes = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) if bytes.len() + data.len() > limit + PREFIX => {
                return Err(bad(format!("more than {limit} bytes")).into());
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => {
                trailers = frame.into_trailers().unwrap_or_default();
                cleanse(&mut trailers);
            }
        }
    }
    call.heed(&mut trailers);
    if let Err(failure) = call.status(&trailers) {
        trailers.insert(SERVED_BY, call.entry.served_by.clone());
        let said = matches!(failure, Failure::Agent { .. }).then(|| Box::new((head, Some(trailers))));
        return Err(Failed { failure, said });
    }
    let message = unframed(&bytes.freeze()).map_err(bad)?;
    let mut result =
        ConfidenceResult::decode(message.clone()).map_err(|e| bad(format!("not a ConfidenceResult: {e}")))?;
    // The node says who answered.
    let message = match result.metadata.remove(MARK) {
        Some(_) => result.encode_to_vec().into(),
        None => message,
    };
    let confidence = Confidence::stated(result.confidence);
    let given = Given { message, confidence, agent: call.entry.served_by.clone() };
    Ok(Whole { given, result, head, trailers })
}

/// An answer that is there as a whole: a message, perhaps, and trailers.
pub(crate) struct Frames {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
    /// The place in the node of the call whose answer it is.
    _ticket: Option<Ticket>,
}

impl Frames {
    pub(crate) fn new(message: Option<Bytes>, trailers: Option<HeaderMap>) -> Self {
        Self { message, trailers, _ticket: None }
    }

    pub(crate) fn with(self, ticket: Ticket) -> Self {
        Self { _ticket: Some(ticket), ..self }
    }

    pub(crate) fn next(&mut self) -> Option<Frame<Bytes>> {
        let message = self.message.take().map(Frame::data);
        message.or_else(|| self.trailers.take().map(Frame::trailers))
    }

    pub(crate) fn is_end(&self) -> bool {
        self.message.is_none() && self.trailers.is_none()
    }
}
