//! Webhooks: what happens in a run, told to a URL.
//!
//! A webhook is a key beside its run, put before the run begins, and says how far it has come. One process delivers
//! (see [`crate::leader`]), following the journals of runs whoever drives them, and writes down each event that it has
//! dealt with: after a restart or a change of leaders at most the one in flight is told again, under the same
//! delivery id.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use ::http::Uri;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use parallax_runtime::{
    env::Env,
    nearest::nearest,
    run::RunKey,
    store::{Change, Entry, Expect, RegistryStore, StoreError},
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use utoipa::ToSchema;

mod post;

use crate::{
    error::{Error, Result},
    leader::lead,
    mirror::{News, follow},
    runs::{Request, Runs},
    view::{Cursor, Happening, KINDS},
};
use post::Post;

/// `/parallax/webhooks/<tenant>/<run>`.
const WEBHOOKS: &str = "/parallax/webhooks/";
/// An event is tried three times; after each failure this is how long the receiver is left alone.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long it is kept what came of a webhook.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// A webhook whose run has not begun after this never will.
const ORPHANED: Duration = Duration::from_secs(60);
/// How often it is looked for a run that is about to begin.
const BEGINS: Duration = Duration::from_millis(100);
/// Before a webhook that could not go on is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest URL and secret, in bytes.
const MAX_TEXT: usize = 2048;
/// What is told when no events are named.
const ENDS: [&str; 3] = ["completed", "failed", "cancelled"];

/// What a request asks for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    pub url: String,
    /// Signs each delivery.
    pub secret: Option<String>,
    /// Types of events; without any, those that end a run.
    #[serde(default)]
    pub events: Vec<String>,
}

/// What has come of a webhook.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deliveries {
    url: String,
    events: Vec<String>,
    #[schema(pattern = "^(delivering|delivered|failed)$")]
    state: &'static str,
    /// Events that were told, and that were given up.
    delivered: u64,
    failed: u64,
    last_error: Option<String>,
}

/// A webhook as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    url: String,
    /// Forgotten once all is told; shown to nobody.
    secret: Option<String>,
    events: Vec<String>,
    since: Timestamp,
    /// The last event that was dealt with.
    after: Cursor,
    delivered: u64,
    failed: u64,
    last_error: Option<String>,
    /// All is told, or given up.
    done: bool,
}

impl Kept {
    fn new(hook: Hook, since: Timestamp) -> Self {
        let Hook { url, secret, events } = hook;
        let (after, last_error) = (None, None);
        Self { url, secret, events, since, after, delivered: 0, failed: 0, last_error, done: false }
    }
}

/// All webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks(Arc<Inner>);

struct Inner {
    store: Arc<dyn RegistryStore>,
    runs: Runs,
    env: Arc<dyn Env>,
    post: Post,
}

impl Webhooks {
    /// Delivers whenever this process leads. `private` says whether URLs may lead to loopback and private networks.
    pub fn open(store: Arc<dyn RegistryStore>, runs: &Runs, private: bool) -> Self {
        let (env, life) = (runs.context().env.clone(), runs.context().life.clone());
        let post = Post::new(env.clone(), private);
        let webhooks =
            Self(Arc::new(Inner { store: store.clone(), runs: runs.clone(), env: env.clone(), post }));
        let leading = webhooks.clone();
        lead("webhooks", store, &*env, &life, move || leading.clone().deliver_all());
        webhooks
    }

    /// Starts a run that is told of.
    ///
    /// # Errors
    /// As [`Runs::start`]; a webhook that cannot stand; the store's.
    pub async fn start(&self, tenant: &str, request: Request, hook: Hook) -> Result<RunKey> {
        let kept = Kept::new(checked(hook, |ip| self.0.post.may_reach(ip))?, self.0.env.now());
        let key = RunKey { tenant: tenant.to_owned(), id: self.0.env.id() };
        let path = path(&key);
        let value = serde_json::to_vec(&kept).expect("plain data");
        // Before the run, so that no crash loses it; without a run it is found and deleted.
        self.0.store.put(&path, value, None, Expect::Absent).await?;
        match self.0.runs.start_as(key, request).await {
            Ok(key) => Ok(key),
            // If the run is there after all, it is told of.
            Err(e @ Error::Store(StoreError::InDoubt { .. })) => Err(e),
            Err(e) => {
                self.0.store.delete(&path, Expect::Anything).await?;
                Err(e)
            }
        }
    }

    /// What has come of a run's webhook, if it has one.
    ///
    /// # Errors
    /// The store's.
    pub async fn state(&self, run: &RunKey) -> Result<Option<Deliveries>> {
        let Some(entry) = self.0.store.get(&path(run)).await? else { return Ok(None) };
        let Kept { url, events, delivered, failed, last_error, done, .. } = decode(&entry)?;
        let state = match (done, failed) {
            (false, _) => "delivering",
            (true, 0) => "delivered",
            (true, _) => "failed",
        };
        Ok(Some(Deliveries { url, events, state, delivered, failed, last_error }))
    }

    async fn deliver_all(self) {
        let mut news = Box::pin(follow(self.0.store.clone(), WEBHOOKS));
        let (mut active, mut deliveries) = (HashSet::new(), FuturesUnordered::<BoxFuture<'_, String>>::new());
        loop {
            let entries = tokio::select! {
                Some(news) = news.next() => match news {
                    Ok((_, News::All(entries))) => entries,
                    Ok((_, News::One(Change::Put(entry)))) => vec![entry],
                    Ok((_, News::One(Change::Delete { .. }))) => vec![],
                    Err(e) => {
                        warn!("webhooks cannot be followed, trying again: {e}");
                        tokio::time::sleep(AGAIN).await;
                        vec![]
                    }
                },
                Some(ended) = deliveries.next() => {
                    active.remove(&ended);
                    continue;
                }
            };
            for entry in entries {
                if decode(&entry).is_ok_and(|kept| !kept.done) && active.insert(entry.key.clone()) {
                    deliveries.push(self.deliver(entry.key).boxed());
                }
            }
        }
    }

    /// Until all is told; returns the key.
    async fn deliver(&self, path: String) -> String {
        while let Err(e) = self.try_deliver(&path).await {
            let pause = if matches!(e, Error::NoRun { .. }) { BEGINS } else { AGAIN };
            if pause == AGAIN {
                warn!(webhook = path, "a webhook cannot go on, trying again: {e}");
            }
            tokio::time::sleep(pause).await;
        }
        path
    }

    async fn try_deliver(&self, path: &str) -> Result<()> {
        let Some(entry) = self.0.store.get(path).await? else { return Ok(()) };
        let (mut revision, mut kept) = (entry.revision, decode(&entry)?);
        let run = parse(path)?;
        let mut stretches = self.0.runs.follow(&run, kept.after.map_or(0, |(position, _)| position));
        while !kept.done {
            let stretch = match stretches.try_next().await {
                Ok(Some(stretch)) => stretch,
                // This process is stopping.
                Ok(None) => return Ok(()),
                Err(Error::NoRun { .. }) if self.0.env.now() - ORPHANED > kept.since => {
                    self.0.store.delete(path, Expect::At(revision)).await?;
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            let mut events = stretch.happenings(kept.after);
            events.retain(|event| kept.events.iter().any(|kind| kind == event.kind));
            for event in events {
                match tell(&self.0.post, &run, &kept, &event).await {
                    Ok(()) => kept.delivered += 1,
                    Err(e) => {
                        info!(run = run.id, event = event.id, "a webhook was not delivered: {e}");
                        kept.failed += 1;
                        kept.last_error = Some(format!("{} {}: {e}", event.kind, event.id));
                    }
                }
                kept.after = Some(event.at);
                revision = self.write(path, &kept, None, revision).await?;
            }
            kept.done = stretch.summary.status.is_final();
        }
        kept.secret = None;
        let lease = self.0.store.grant(KEPT).await?;
        self.write(path, &kept, Some(&lease), revision).await?;
        Ok(())
    }

    async fn write(&self, path: &str, kept: &Kept, lease: Option<&str>, at: u64) -> Result<u64, StoreError> {
        let value = serde_json::to_vec(kept).expect("plain data");
        self.0.store.put(path, value, lease, Expect::At(at)).await
    }
}

/// Posts an event, up to three times.
async fn tell(post: &Post, run: &RunKey, kept: &Kept, event: &Happening) -> Result<(), String> {
    let url = kept.url.parse().map_err(|e| format!("{e}"))?;
    let body = serde_json::to_vec(event).expect("plain data");
    let headers = [
        ("x-parallax-event", event.kind.to_owned()),
        ("x-parallax-execution-id", run.id.clone()),
        ("x-parallax-delivery", format!("{}-{}", run.id, event.id)),
    ];
    let signature = kept.secret.as_ref().map(|secret| ("x-parallax-signature", sign(secret, &body)));
    let headers: Vec<_> = headers.into_iter().chain(signature).collect();
    let mut last = String::new();
    for pause in PAUSES {
        match post.send(&url, &headers, &body).await {
            Ok(()) => return Ok(()),
            Err(e) => last = e,
        }
        tokio::time::sleep(pause).await;
    }
    Err(last)
}

/// `sha256=` and the HMAC of the body, in hex.
fn sign(secret: &str, body: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, body);
    tag.as_ref().iter().fold("sha256=".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn checked(mut hook: Hook, may_reach: impl Fn(IpAddr) -> bool) -> Result<Hook> {
    let invalid = |field, problem| Err(Error::Invalid { field, problem });
    let uri: Option<Uri> = hook.url.parse().ok();
    let web = |uri: &Uri| {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && !authority.contains('@')
    };
    if hook.url.len() > MAX_TEXT || !uri.as_ref().is_some_and(web) {
        return invalid("webhook.url", "is not an http:// or https:// URL without credentials".to_owned());
    }
    let address = uri.as_ref().and_then(|uri| uri.host()?.trim_matches(['[', ']']).parse().ok());
    if address.is_some_and(|ip| !may_reach(ip)) {
        return invalid("webhook.url", "leads to an address that webhooks may not be sent to".to_owned());
    }
    if hook.secret.as_ref().is_some_and(|secret| secret.is_empty() || secret.len() > MAX_TEXT) {
        return invalid("webhook.secret", format!("is not from 1 to {MAX_TEXT} bytes long"));
    }
    if let Some(unknown) = hook.events.iter().find(|event| !KINDS.contains(&event.as_str())) {
        let near = nearest(unknown, KINDS.iter().copied());
        let hint = near.first().map_or_else(|| KINDS.join(", "), |near| format!("did you mean {near}?"));
        return invalid("webhook.events", format!("\"{unknown}\" is unknown; {hint}"));
    }
    if hook.events.is_empty() {
        hook.events = ENDS.map(str::to_owned).to_vec();
    }
    Ok(hook)
}

fn path(run: &RunKey) -> String {
    format!("{WEBHOOKS}{}/{}", run.tenant, run.id)
}

fn parse(path: &str) -> Result<RunKey> {
    let parts = path.strip_prefix(WEBHOOKS).and_then(|rest| rest.split_once('/'));
    let key = parts.map(|(tenant, id)| RunKey { tenant: tenant.to_owned(), id: id.to_owned() });
    key.ok_or_else(|| StoreError::Corrupt(format!("{path} is not the key of a webhook")).into())
}

fn decode(entry: &Entry) -> Result<Kept> {
    serde_json::from_slice(&entry.value)
        .map_err(|e| StoreError::Corrupt(format!("{}: {e}", entry.key)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_webhook_is_named() {
        let hook = |url: &str, events: &[&str]| {
            let events = events.iter().map(|&event| event.to_owned()).collect();
            checked(Hook { url: url.to_owned(), secret: None, events }, |_| true).map(|hook| hook.events)
        };
        assert_eq!(hook("https://example.com/a?b=c", &[]).unwrap(), ENDS);
        for url in ["", "example.com", "ftp://example.com", "http://", "http://user:pass@example.com/", "/a"]
        {
            assert!(hook(url, &[]).unwrap_err().to_string().starts_with("webhook.url: "), "{url}");
        }
        let message = hook("http://a", &["complete"]).unwrap_err().to_string();
        assert_eq!(message, "webhook.events: \"complete\" is unknown; did you mean completed?");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_tried_three_times_and_then_given_up() {
        let run = RunKey { tenant: "default".to_owned(), id: "x".to_owned() };
        let kept = Kept::new(
            Hook { url: "http://127.0.0.1:1/".to_owned(), secret: None, events: vec![] },
            Timestamp::UNIX_EPOCH,
        );
        let event = Happening {
            at: (1, 0),
            id: "1.0".to_owned(),
            kind: "cancelled",
            execution_id: run.id.clone(),
            timestamp: Timestamp::UNIX_EPOCH,
            data: serde_json::Value::Null,
        };
        let begun = tokio::time::Instant::now();
        let post = Post::new(parallax_runtime::env::System::shared(), false);
        let message = tell(&post, &run, &kept, &event).await.unwrap_err();
        assert_eq!(message, "127.0.0.1 leads to no address that webhooks may be sent to");
        assert_eq!(begun.elapsed().as_secs(), 1 + 2 + 4);
    }

    #[test]
    fn a_signature_is_the_hmac_of_the_body() {
        // RFC 4231, test case 2.
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(sign("Jefe", b"what do ya want for nothing?"), expected);
    }
}
