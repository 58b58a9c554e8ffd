//! Asks an agent how loaded it is, off the path of calls.
//!
//! Only agents that have said so before are asked (`HealthCheck`, details `in_flight` and `service_time_ms`):
//! what an answer reports for free need not be asked for, so a probe goes out when an agent has not been heard
//! of for a while and a call thinks of it.

use std::{pin::pin, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures::future::poll_fn;
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_TYPE, TE},
    uri::PathAndQuery,
};
use http_body::Body;
use parallax_proto::confidence::Health;
use prost::Message;
use tokio::{
    task::spawn_local,
    time::{Instant, timeout},
};
use tracing::debug;

use crate::{
    call::head, caller::Caller, directory::Entry, load::Report, proxy::HEALTH_CHECK, upload::Upload,
    whole::PREFIX,
};

const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an answer.
const LIMIT: usize = 64 * 1024;

/// Begins a probe. It ends by itself.
pub(crate) fn begin(caller: &Rc<Caller>, entry: Arc<Entry>) {
    let caller = caller.clone();
    spawn_local(async move {
        match timeout(TIMEOUT, probe(&caller, &entry)).await {
            Ok(Some(report)) => entry.vitals.load.reports(report, Instant::now()),
            Ok(None) => debug!(agent = entry.agent.key.id, "a probe was answered without a load"),
            Err(_) => debug!(agent = entry.agent.key.id, "a probe was not answered"),
        }
    });
}

async fn probe(caller: &Caller, entry: &Arc<Entry>) -> Option<Report> {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let path = PathAndQuery::from_static(HEALTH_CHECK);
    let head = || head(entry, path.clone(), headers.clone(), TIMEOUT);
    let (upload, mut lease) = (Upload::whole(vec![0; PREFIX].into()), None);
    let response = caller.pools.send(entry, head, &upload, false, &mut lease).await.ok()?;
    let (mut body, mut bytes) = (pin!(response.into_body()), BytesMut::new());
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        bytes.extend_from_slice(frame.ok()?.data_ref().map_or(&[], |data| data));
        if bytes.len() > LIMIT {
            return None;
        }
    }
    let health = Health::decode(bytes.get(PREFIX..)?).ok()?;
    Report::of_details(&health.details)
}
