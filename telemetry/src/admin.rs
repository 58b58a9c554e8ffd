//! What an orchestrator and Prometheus ask a process: does it live, is it ready, what does it count.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::sync::watch;

/// Whether a process can serve: it is ready when nothing blocks it, so take the guards of a start before
/// anybody asks. Clones share one state.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<String, usize>>>);

/// While it lives the process is not ready.
#[derive(Debug)]
#[must_use = "dropping the guard is what makes the process ready"]
pub struct Block {
    readiness: Readiness,
    reason: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Readiness {
    /// Ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the guard is dropped, because of `reason` (such as `directory`). Reasons may repeat.
    pub fn block(&self, reason: impl Into<String>) -> Block {
        let reason = reason.into();
        self.0.send_modify(|reasons| *reasons.entry(reason.clone()).or_default() += 1);
        Block { readiness: self.clone(), reason }
    }

    /// Whether nothing blocks.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// What blocks, each reason once, sorted.
    pub fn pending(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    /// Waits until nothing blocks.
    pub async fn ready(&self) {
        // It fails only when the sender is gone, and we hold it.
        let _ = self.0.subscribe().wait_for(BTreeMap::is_empty).await;
    }

    /// Waits until something blocks.
    pub async fn blocked(&self) {
        let _ = self.0.subscribe().wait_for(|reasons| !reasons.is_empty()).await;
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|reasons| {
            if let Some(count) = reasons.get_mut(&self.reason) {
                *count -= 1;
                if *count == 0 {
                    reasons.remove(&self.reason);
                }
            }
        });
    }
}

/// `GET /livez` (200 while the process can answer at all), `/readyz` (200 or 503, with what it waits for) and
/// `/metrics`, whose content type and body `encode` returns (see [`crate::metrics::encode`]).
pub fn router<E>(readiness: Readiness, encode: E) -> Router
where
    E: Fn() -> (&'static str, String) + Clone + Send + Sync + 'static,
{
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || readyz(&readiness)))
        .route(
            "/metrics",
            get(async move || {
                let (content_type, text) = encode();
                ([(CONTENT_TYPE, content_type)], text)
            }),
        )
}

/// The answer of `/readyz`: `{"ready": bool, "pending": [reason, …]}`.
pub fn readyz(readiness: &Readiness) -> Response {
    let pending = readiness.pending();
    let status = if pending.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": pending.is_empty(), "pending": pending }))).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (u16, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_when_no_guard_remains() {
        let readiness = Readiness::new();
        let router = router(readiness.clone(), || ("text/x-test", "metric 1\n".to_owned()));
        let (first, second) = (readiness.block("directory"), readiness.block("directory"));
        let store = readiness.block("store");
        let (status, _, body) = ask(&router, "/readyz").await;
        assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"pending":["directory","store"]}"#));
        drop(first);
        drop(store);
        assert_eq!(readiness.pending(), ["directory"], "its second guard remains");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        assert!(!readiness.is_ready());
        drop(second);
        waiting.await.unwrap();
        let (status, _, body) = ask(&router, "/readyz").await;
        assert_eq!((status, body.as_str()), (200, r#"{"ready":true,"pending":[]}"#));
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.blocked().await }
        });
        let _draining = readiness.block("draining");
        waiting.await.unwrap();
        assert_eq!(ask(&router, "/readyz").await.0, 503);
        assert_eq!(ask(&router, "/livez").await.0, 200);
        let metrics = (200, "text/x-test".to_owned(), "metric 1\n".to_owned());
        assert_eq!(ask(&router, "/metrics").await, metrics);
    }
}
