//! `parallax.controlplane.v1.Directory`: what data-plane nodes follow.

use std::time::Duration;

use futures::{StreamExt, stream, stream::BoxStream};
use parallax_proto::controlplane::v1::{
    AgentKey, DirectoryUpdate, FollowRequest, Heartbeat, Snapshot, directory_server,
    directory_update::Update as Wire,
};
use parallax_runtime::lifecycle::Lifecycle;
use tonic::{Request, Response, Status};

use super::edge::peer;
use crate::{
    dispatch::Nodes,
    error::Error,
    registry::{Registry, Update},
};

/// A follower hears something at least this often; it takes twice as long for a dead stream.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Serves the directory.
pub struct Service {
    pub registry: Registry,
    pub nodes: Nodes,
    pub life: Lifecycle,
}

#[tonic::async_trait]
impl directory_server::Directory for Service {
    type FollowStream = BoxStream<'static, Result<DirectoryUpdate, Status>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let identity = peer(&request).identity;
        let FollowRequest { node_id, advertise } = request.into_inner();
        let invalid = |field, problem: &str| Error::Invalid { field, problem: problem.to_owned() };
        if node_id.is_empty() {
            return Err(invalid("node_id", "is empty").into());
        }
        if advertise.parse::<http::uri::Authority>().ok().and_then(|a| a.port_u16()).is_none() {
            return Err(invalid("advertise", "is not host:port").into());
        }
        if identity.is_none_or(|identity| identity.id != node_id) {
            return Err(invalid("node_id", "is not the id in the node's certificate").into());
        }
        let membership = self.nodes.join(&node_id, &advertise);
        let updates = self.registry.follow(None);
        let state = (Box::pin(updates), membership, 0);
        let messages = stream::unfold(state, |(mut updates, membership, revision)| async move {
            let message = match tokio::time::timeout(HEARTBEAT, updates.next()).await {
                Ok(next) => {
                    let (revision, update) = next?;
                    DirectoryUpdate { revision, update: Some(to_wire(update)) }
                }
                Err(_) => {
                    let interval_ms = u32::try_from(HEARTBEAT.as_millis()).expect("seconds");
                    DirectoryUpdate { revision, update: Some(Wire::Heartbeat(Heartbeat { interval_ms })) }
                }
            };
            let revision = message.revision;
            Some((Ok(message), (updates, membership, revision)))
        });
        // A follower would hold up the drain for ever.
        Ok(Response::new(messages.take_until(self.life.stopping()).boxed()))
    }
}

fn to_wire(update: Update) -> Wire {
    match update {
        Update::Snapshot(agents) => {
            Wire::Snapshot(Snapshot { agents: agents.iter().map(|agent| agent.to_record()).collect() })
        }
        Update::Upsert(agent) => Wire::Upsert(agent.to_record()),
        Update::Remove(key) => Wire::Remove(AgentKey { tenant: key.tenant, agent_id: key.id }),
    }
}
