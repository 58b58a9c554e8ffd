//! Follows the control plane: a snapshot, then what changes. While it is away the last snapshot serves on.

use std::{sync::Arc, time::Duration};

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
use crate::{channel, config::Config};

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

/// The task that keeps the directory current.
pub(crate) struct Follower {
    pub(crate) config: Arc<Config>,
    pub(crate) advertise: String,
    pub(crate) tls: Tls,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) metrics: DataPlaneMetrics,
    /// Dropped with the first snapshot.
    pub(crate) joining: Option<Block>,
}

impl Follower {
    /// Until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut book = Book::new(self.config.breaker, self.config.remember, self.metrics.clone());
        let (first, longest) = self.config.follow_backoff;
        let mut pause = first;
        loop {
            let mut followed = false;
            let broken = match self.follow(&mut book, &mut followed).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            self.metrics.set_directory_connected(false);
            if followed {
                pause = first;
            }
            warn!(
                control_plane = self.config.control_plane,
                "not following the control plane: {broken}; the last directory serves on"
            );
            sleep(jitter(pause, self.env.random())).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn follow(
        &mut self,
        book: &mut Book,
        followed: &mut bool,
    ) -> Result<std::convert::Infallible, Break> {
        let mut silence = self.config.first_heartbeat;
        let mut stream = timeout(silence, self.open()).await.map_err(|_| Break::Silent(silence))??;
        loop {
            let message = timeout(silence, stream.message()).await.map_err(|_| Break::Silent(silence))??;
            let mut revision = self.apply(book, message.ok_or(Break::Ended)?, *followed, &mut silence)?;
            if !*followed {
                *followed = true;
                self.metrics.set_directory_connected(true);
                info!(control_plane = self.config.control_plane, "following the control plane");
            }
            // What has come already goes into the same snapshot: a burst costs one.
            while let Some(Ok(Some(message))) = stream.message().now_or_never() {
                let next = self.apply(book, message, true, &mut silence)?;
                revision = next.or(revision);
            }
            if let Some(revision) = revision {
                self.directory.publish(book.snapshot(revision, Instant::now()));
                self.joining = None;
                debug!(revision, "directory updated");
            }
        }
    }

    async fn open(&self) -> Result<Streaming<DirectoryUpdate>, Break> {
        let addr = &self.config.control_plane;
        let channel =
            channel::connect(&self.tls, &*self.env, addr, &Expect::kind(Kind::ControlPlane)).await?;
        let mut client = DirectoryClient::new(channel).max_decoding_message_size(usize::MAX);
        let request =
            FollowRequest { node_id: self.config.node_id.clone(), advertise: self.advertise.clone() };
        Ok(client.follow(request).await?.into_inner())
    }

    /// The revision that was reached, if anything changed.
    fn apply(
        &self,
        book: &mut Book,
        message: DirectoryUpdate,
        followed: bool,
        silence: &mut Duration,
    ) -> Result<Option<u64>, Break> {
        let now = Instant::now();
        match message.update {
            Some(Update::Snapshot(snapshot)) => book.replace(snapshot.agents, now),
            _ if !followed => return Err(Break::NoSnapshot),
            Some(Update::Upsert(record)) => _ = book.upsert(record, now),
            Some(Update::Remove(key)) => book.remove(key, now),
            Some(Update::Heartbeat(heartbeat)) => {
                if heartbeat.interval_ms > 0 {
                    *silence = 2 * Duration::from_millis(heartbeat.interval_ms.into());
                }
                return Ok(None);
            }
            // Of a later version.
            None => return Ok(None),
        }
        Ok(Some(message.revision))
    }
}

/// Between half of `pause` and all of it.
pub(crate) fn jitter(pause: Duration, random: u64) -> Duration {
    let half = pause / 2;
    let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX - 1);
    half + Duration::from_micros(random % (micros + 1))
}
