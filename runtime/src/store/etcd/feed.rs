//! A watch on one member, with a heartbeat.

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use tokio::time::Instant;

use super::{
    cluster::{self, Cluster, MESSAGE},
    entry, text, unsigned,
};
use crate::store::{Change, Result, Revision, StoreError};

/// How long a watch may be silent before it is asked for a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A watch is dead after this many heartbeats of silence.
const BEATS: u32 = 4;

/// The changes to keys with a prefix, as one member tells them.
pub(super) struct Feed {
    cluster: Arc<Cluster>,
    prefix: String,
    /// All up to here has been told.
    after: Revision,
    /// A revision that the store has had: it cannot be behind it again.
    known: Revision,
    stream: WatchStream,
    /// The member, as [`Cluster::current`] counts.
    member: usize,
    silence: u32,
    next_beat: Instant,
}

impl Feed {
    pub(super) async fn open(cluster: Arc<Cluster>, prefix: &str, after: Revision) -> Result<Self> {
        let (stream, member, now) = begin(&cluster, prefix, after, 0).await?;
        Ok(Self {
            cluster,
            prefix: prefix.to_owned(),
            after,
            known: after.min(now),
            stream,
            member,
            silence: 0,
            next_beat: Instant::now() + HEARTBEAT,
        })
    }

    /// Goes on where it broke off, at another member if there is one.
    pub(super) async fn reopen(&mut self) -> Result<()> {
        self.cluster.leave(self.member);
        let (stream, member, _) = begin(&self.cluster, &self.prefix, self.after, self.known).await?;
        (self.stream, self.member, self.silence) = (stream, member, 0);
        self.next_beat = Instant::now() + HEARTBEAT;
        Ok(())
    }

    /// The next changes, in order; none at a sign of life. May be dropped and called again.
    ///
    /// # Errors
    /// [`StoreError::Away`] after four seconds of silence, or when the member ends the watch.
    pub(super) async fn next(&mut self) -> Result<Vec<Change>> {
        let response = loop {
            match tokio::time::timeout_at(self.next_beat, self.stream.message()).await {
                Ok(message) => {
                    break message
                        .map_err(cluster::fault)?
                        .ok_or_else(|| StoreError::Away("the member ended the watch".to_owned()))?;
                }
                Err(_) if self.silence + 1 == BEATS => {
                    let silence = (HEARTBEAT * BEATS).as_secs();
                    return Err(StoreError::Away(format!("the watch was silent for {silence} s")));
                }
                Err(_) => {
                    self.stream.request_progress().await.map_err(cluster::fault)?;
                    self.silence += 1;
                    self.next_beat = Instant::now() + HEARTBEAT;
                }
            }
        };
        (self.silence, self.next_beat) = (0, Instant::now() + HEARTBEAT);
        if response.compact_revision() > 0 {
            let oldest = unsigned(response.compact_revision());
            return Err(StoreError::Compacted { asked: self.after, oldest });
        }
        if response.canceled() {
            return Err(StoreError::Away(format!("the watch was ended: {}", response.cancel_reason())));
        }
        let mut changes = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            changes.push(match event.event_type() {
                EventType::Put => Change::Put(entry(kv)?),
                EventType::Delete => {
                    Change::Delete { key: text(kv.key())?, revision: unsigned(kv.mod_revision()) }
                }
            });
        }
        if let Some(last) = changes.last() {
            (self.after, self.known) = (last.revision(), last.revision());
        }
        Ok(changes)
    }
}

/// A watch after `after`, the member that serves it, and a revision that the store has.
async fn begin(
    cluster: &Cluster,
    prefix: &str,
    after: Revision,
    known: Revision,
) -> Result<(WatchStream, usize, Revision)> {
    let attempt = |client: Client| async move {
        let member = cluster.current();
        // A store that was put back to a former state would keep us waiting for ever.
        let now = cluster::latest(client.clone()).await?;
        if now < known {
            return Err(StoreError::Compacted { asked: after, oldest: now });
        }
        let from = i64::try_from(after.saturating_add(1)).unwrap_or(i64::MAX);
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let mut client = client.watch_client().max_decoding_message_size(MESSAGE);
        let stream = client.watch(prefix, Some(options)).await.map_err(cluster::fault)?;
        Ok((stream, member, now))
    };
    cluster.call(attempt).await
}
