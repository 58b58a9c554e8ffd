//! Hints between processes, over LISTEN and NOTIFY.
//!
//! A notification takes a lock of the whole server when it commits, so hints stay out of the journal's transactions:
//! they gather for a moment and go in one statement of their own. This process' followers do not wait for that.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc},
    time::{sleep, timeout},
};
use tokio_postgres::{Notification, types::Type};
use tracing::warn;

use super::server::{Server, Trouble};
use crate::{
    run::RunKey,
    store::{Hint, encode},
};

/// Hints that may wait to be sent, or for a slow follower, before some are dropped.
const HINTS: usize = 4096;
/// For how long hints gather.
const GATHER: Duration = Duration::from_millis(10);
/// A line on which nothing was sent for so long is tried, and one that is lost is opened again after that.
const SILENCE: Duration = Duration::from_secs(15);
const RECONNECT: Duration = Duration::from_secs(1);
/// PostgreSQL's bound on a notification is 8000 bytes; an envelope goes with the hints.
const PAYLOAD: usize = 7800;
const CHANNEL: &str = "parallax_runs";

/// What a notification carries.
#[derive(Serialize, Deserialize)]
struct News {
    /// The process that sends it, which has told its own followers already.
    from: u64,
    hints: Vec<Hint>,
}

/// This process' followers, and the way to the other processes.
pub(super) struct Hints {
    followers: broadcast::Sender<Hint>,
    others: mpsc::Sender<Hint>,
}

impl Hints {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        let (followers, (others, outbox)) = (broadcast::Sender::new(HINTS), mpsc::channel(HINTS));
        server.life.spawn_beneath("postgres-hints", serve(server.clone(), followers.clone(), outbox));
        Self { followers, others }
    }

    /// Nobody may be listening, and a hint may be missing.
    pub(super) fn say(&self, hint: Hint) {
        self.followers.send(hint.clone()).ok();
        self.others.try_send(hint).ok();
    }

    pub(super) fn follow(&self) -> broadcast::Receiver<Hint> {
        self.followers.subscribe()
    }
}

async fn serve(server: Arc<Server>, followers: broadcast::Sender<Hint>, mut outbox: mpsc::Receiver<Hint>) {
    let me = server.env.random();
    while !outbox.is_closed() {
        if let Err(trouble) = exchange(&server, me, &followers, &mut outbox).await {
            warn!("hints between processes are interrupted: {}: {trouble}", server.name);
            sleep(RECONNECT).await;
        }
    }
}

/// Sends and hears until the connection is lost, or there is nobody left to send for.
async fn exchange(
    server: &Server,
    me: u64,
    followers: &broadcast::Sender<Hint>,
    outbox: &mut mpsc::Receiver<Hint>,
) -> Result<(), Trouble> {
    let followers = followers.clone();
    let hear = move |notification: Notification| match serde_json::from_str::<News>(notification.payload()) {
        Ok(news) if news.from == me => {}
        Ok(news) => news.hints.into_iter().for_each(|hint| _ = followers.send(hint)),
        Err(e) => warn!("a notification on {CHANNEL} is not understood: {e}"),
    };
    let session = server.connect(hear).await?;
    session.within(session.client.batch_execute(&format!("LISTEN {CHANNEL}"))).await?;
    let notify = format!("SELECT pg_notify('{CHANNEL}', payload) FROM unnest($1::text[]) payload");
    loop {
        let mut gathered = Vec::new();
        tokio::select! {
            () = session.lost.cancelled() => return Err(Trouble::Again("the connection is lost".to_owned())),
            waited = timeout(SILENCE, outbox.recv_many(&mut gathered, HINTS)) => match waited {
                Ok(0) => return Ok(()),
                Ok(_) => sleep(GATHER).await,
                Err(_) => {}
            },
        }
        while let Ok(hint) = outbox.try_recv() {
            gathered.push(hint);
        }
        let payloads = payloads(me, gathered);
        session.within(session.client.query_typed(&notify, &[(&payloads, Type::TEXT_ARRAY)])).await?;
    }
}

/// The last hint about each run, in as few notifications as hold them.
fn payloads(from: u64, hints: Vec<Hint>) -> Vec<String> {
    let latest: HashMap<RunKey, Hint> = hints.into_iter().map(|hint| (hint.run.clone(), hint)).collect();
    let (mut payloads, mut news, mut bytes) = (vec![], News { from, hints: vec![] }, 0);
    let mut flush = |news: &mut News| {
        payloads.extend(encode(news).ok());
        news.hints.clear();
    };
    for hint in latest.into_values() {
        let len = encode(&hint).map_or(usize::MAX, |text| text.len() + 1);
        if len > PAYLOAD {
            continue;
        }
        if bytes + len > PAYLOAD {
            flush(&mut news);
            bytes = 0;
        }
        bytes += len;
        news.hints.push(hint);
    }
    if !news.hints.is_empty() {
        flush(&mut news);
    }
    payloads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Status;

    #[test]
    fn hints_gather_into_payloads_below_the_bound() {
        let hint = |i: usize, status| Hint {
            run: RunKey { tenant: "default".to_owned(), id: format!("{i:0>36}") },
            status,
        };
        let mut hints: Vec<_> = (0..500).map(|i| hint(i, Status::Running)).collect();
        hints.extend((0..500).map(|i| hint(i, Status::Completed)));
        hints.push(Hint {
            run: RunKey { tenant: "x".repeat(9000), id: String::new() },
            status: Status::Running,
        });
        let payloads = payloads(u64::MAX, hints);
        assert!(payloads.len() > 1 && payloads.iter().all(|payload| payload.len() < 8000));
        let mut heard: Vec<_> =
            payloads.iter().flat_map(|text| serde_json::from_str::<News>(text).unwrap().hints).collect();
        heard.sort_by(|a, b| a.run.cmp(&b.run));
        let latest: Vec<_> = (0..500).map(|i| hint(i, Status::Completed)).collect();
        assert_eq!(heard, latest, "each run once, as it was last");
    }
}
