//! Follows the control plane: a snapshot, then what changes. While it is away the last snapshot serves on.
//!
//! Of several replicas each is followed, so that each has this node to call through. All read the same registry: what
//! the one that is furthest has said counts, and what another says of an earlier revision is known already.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::FutureExt;
use parallax_proto::controlplane::v1::{
    DirectoryUpdate, FollowRequest, directory_client::DirectoryClient, directory_update::Update,
};
use parallax_runtime::env::Env;
use parallax_security::{Expect, Kind, Tls};
use parallax_telemetry::{admin::Block, metrics::DataPlaneMetrics};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::{Book, Directory};
use crate::{channel, config::Current};

/// Why the control plane is not followed at the moment.
#[derive(Debug, Error)]
enum Break {
    #[error("{0}")]
    Connect(#[from] channel::ConnectError),
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("it ended the stream")]
    Ended,
    #[error("nothing was heard of it for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("its first message was no snapshot")]
    NoSnapshot,
}

/// What the followers of all replicas share.
pub(crate) struct Followed {
    state: Mutex<State>,
    directory: Arc<Directory>,
    metrics: DataPlaneMetrics,
}

struct State {
    book: Book,
    /// The registry's, as far as any replica has said.
    revision: u64,
    /// Replicas that are followed.
    live: usize,
    /// Dropped with the first snapshot.
    joining: Option<Block>,
}

impl Followed {
    pub(crate) fn new(
        config: Current,
        directory: Arc<Directory>,
        metrics: DataPlaneMetrics,
        joining: Block,
    ) -> Arc<Self> {
        let book = Book::new(config, metrics.clone());
        let state = Mutex::new(State { book, revision: 0, live: 0, joining: Some(joining) });
        Arc::new(Self { state, directory, metrics })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no follower panics while it holds it")
    }

    fn count(&self, state: &mut State, live: usize) {
        state.live = live;
        self.metrics.set_directory_connected(live > 0);
    }
}

/// The task that follows one replica.
pub(crate) struct Follower {
    /// `host:port` of the replica.
    pub(crate) control_plane: String,
    pub(crate) config: Current,
    pub(crate) advertise: String,
    pub(crate) tls: Tls,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) followed: Arc<Followed>,
}

/// A replica is followed as long as this lives.
struct Live<'a>(&'a Followed);

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let live = state.live - 1;
        self.0.count(&mut state, live);
    }
}

impl Follower {
    /// Until it is dropped.
    pub(crate) async fn run(self) {
        let (first, longest) = self.config.now().follow_backoff;
        let mut pause = first;
        loop {
            let mut live = None;
            let broken = match self.follow(&mut live).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            if live.take().is_some() {
                pause = first;
            }
            warn!(
                control_plane = self.control_plane,
                "not following the control plane: {broken}; the last directory serves on"
            );
            sleep(jitter(pause, self.env.random())).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn follow<'a>(&'a self, live: &mut Option<Live<'a>>) -> Result<std::convert::Infallible, Break> {
        let mut silence = self.config.now().first_heartbeat;
        let mut stream = timeout(silence, self.open()).await.map_err(|_| Break::Silent(silence))??;
        loop {
            let mut next =
                Some(timeout(silence, stream.message()).await.map_err(|_| Break::Silent(silence))?);
            let mut state = self.followed.state();
            let mut changed = false;
            // What has come already goes into the same snapshot: a burst costs one.
            while let Some(message) = next {
                let message = message?.ok_or(Break::Ended)?;
                if live.is_none() && !matches!(message.update, Some(Update::Snapshot(_))) {
                    return Err(Break::NoSnapshot);
                }
                changed |= state.apply(message, &mut silence);
                if live.is_none() {
                    let count = state.live + 1;
                    self.followed.count(&mut state, count);
                    *live = Some(Live(&self.followed));
                    info!(control_plane = self.control_plane, "following the control plane");
                }
                next = stream.message().now_or_never();
            }
            if changed {
                let State { book, revision, joining, .. } = &mut *state;
                self.followed.directory.publish(book.snapshot(*revision, Instant::now()));
                *joining = None;
                debug!(revision, "directory updated");
            }
        }
    }

    async fn open(&self) -> Result<Streaming<DirectoryUpdate>, Break> {
        let addr = &self.control_plane;
        let channel =
            channel::connect(&self.tls, &*self.env, addr, &Expect::kind(Kind::ControlPlane)).await?;
        let mut client = DirectoryClient::new(channel).max_decoding_message_size(usize::MAX);
        let request =
            FollowRequest { node_id: self.config.now().node_id.clone(), advertise: self.advertise.clone() };
        Ok(client.follow(request).await?.into_inner())
    }
}

impl State {
    /// Takes a replica's word; whether there was anything new in it.
    fn apply(&mut self, message: DirectoryUpdate, silence: &mut Duration) -> bool {
        let (now, known) = (Instant::now(), message.revision < self.revision);
        match message.update {
            // With nobody else to ask, whatever it says is the truth: the registry may have begun anew.
            Some(Update::Snapshot(snapshot)) if !known || self.live == 0 => {
                self.book.replace(snapshot.agents, now);
            }
            Some(Update::Upsert(record)) if !known => _ = self.book.upsert(record, now),
            Some(Update::Remove(key)) if !known => self.book.remove(key, now),
            Some(Update::Heartbeat(heartbeat)) => {
                if heartbeat.interval_ms > 0 {
                    *silence = 2 * Duration::from_millis(heartbeat.interval_ms.into());
                }
                return false;
            }
            // Known already, or of a later version.
            _ => return false,
        }
        self.revision = message.revision;
        true
    }
}

/// Between half of `pause` and all of it.
pub(crate) fn jitter(pause: Duration, random: u64) -> Duration {
    let half = pause / 2;
    let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX - 1);
    half + Duration::from_micros(random % (micros + 1))
}
