//! `Analyze` calls that opted for the cache or a fallback: request and answer are held as a whole.

use http::header::{AGE, CONTENT_TYPE};
use tokio::time::timeout_at;
use tonic::Status;

use super::*;
use crate::{
    admission::Ticket,
    opted::{Answered, By},
    whole::{self, Frames, frame},
};

/// The largest request that is held; a larger one passes through. Bytes.
const LARGEST: usize = 1 << 20;

const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Reads a request, in the time that the call has.
pub(super) async fn request(caller: &Caller, ask: &Ask<'_>, body: Incoming) -> Result<Held, Failure> {
    let timeout = ask.timeout.unwrap_or_else(|| caller.config.now().default_deadline);
    let late = || Failure::Cancelled(format!("the request did not come within {} ms", timeout.as_millis()));
    timeout_at(ask.started + timeout, whole::request(body, LARGEST, caller.holding.begin()))
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Answers a call whose request is `framed`.
pub(super) async fn answer(
    opted: Opted<'_>,
    mut headers: HeaderMap,
    request: Bytes,
    ticket: Ticket,
) -> Response<Reply> {
    // What is held is not compressed: callers differ in what they read.
    headers.remove(GRPC_ACCEPT_ENCODING);
    let asking = async |ask: &Ask<'_>| {
        let upload = Upload::whole(request.clone());
        let sent =
            Sent { path: PathAndQuery::from_static(ANALYZE), headers: headers.clone(), upload: &upload };
        let (call, answering) = opted.caller.call(ask, sent).await?;
        whole::answer(call, answering, opted.caller.config.now().max_message).await
    };
    let (outcome, answered) = opted.answer(asking).await;
    let mut response = match answered {
        Ok(answered) => deliver(answered, ticket),
        Err(failed) => refusal(failed),
    };
    if let Some(outcome) = outcome {
        response.headers_mut().insert(CACHE, HeaderValue::from_static(outcome.as_str()));
    }
    response
}

fn deliver(answered: Answered, ticket: Ticket) -> Response<Reply> {
    let Answered { message, served_by, by, .. } = answered;
    let (mut head, ()) = Response::new(()).into_parts();
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut trailers = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
    match by {
        By::Agent(whole) => (head, trailers) = (whole.head, whole.trailers),
        By::Cache(age) | By::Fallback(Some(age)) => {
            head.headers.insert(AGE, HeaderValue::from(age.as_secs()));
        }
        By::Other | By::Fallback(None) => {}
    }
    trailers.insert(SERVED_BY, served_by);
    let frames = Frames::new(Some(frame(&message)), Some(trailers));
    Response::from_parts(head, Reply::Whole(frames.with(ticket)))
}
