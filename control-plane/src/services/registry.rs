//! `parallax.registry.Registry`.

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use parallax_proto::registry::{
    AgentRegistration, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, RegisterRequest,
    RegisterResponse, RenewRequest, WatchEvent, WatchRequest, registry_server, watch_event::Type,
};
use parallax_runtime::{
    agent::{Agent, AgentKey},
    env::Env,
    lifecycle::Lifecycle,
    wire::{duration_from_wire, timestamp_to_wire},
};
use std::{collections::BTreeMap, sync::Arc};
use tonic::{Request, Response, Status};

use super::{edge::peer, grpc::capped};
use crate::{
    error::Error,
    registry::{Registry, Update},
    tenant,
};

/// The most agents that one page holds, and how many it holds when the caller does not say.
const PAGE: usize = 1000;

/// Serves the registry.
pub struct Service {
    pub registry: Registry,
    pub env: Arc<dyn Env>,
    pub life: Lifecycle,
}

#[tonic::async_trait]
impl registry_server::Registry for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let peer = peer(&request);
        let lease_id = self.registry.register(&peer, request.into_inner()).await?;
        Ok(Response::new(RegisterResponse { success: true, message: "registered".to_owned(), lease_id }))
    }

    async fn unregister(
        &self,
        request: Request<AgentRegistration>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let peer = peer(&request);
        let id = request.into_inner().id;
        if !self.registry.unregister(&peer, &id).await? {
            return Err(Error::NoAgent { id }.into());
        }
        let message = "unregistered".to_owned();
        Ok(Response::new(RegisterResponse { success: true, message, lease_id: String::new() }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RegisterResponse>, Status> {
        let peer = peer(&request);
        let RenewRequest { lease_id, ttl } = request.into_inner();
        let ttl = self.registry.renew(&peer, &lease_id, ttl.and_then(duration_from_wire)).await?;
        let message = format!("good for another {} s", ttl.as_secs());
        Ok(Response::new(RegisterResponse { success: true, message, lease_id }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let peer = peer(&request);
        let query = request.into_inner();
        let limit = capped("limit", query.limit, (PAGE, PAGE))?;
        let mut agents = self.registry.agents(tenant::of(&peer), &query.capabilities);
        agents.retain(|agent| query.labels.iter().all(|(k, v)| agent.metadata.labels.get(k) == Some(v)));
        let total_count = i32::try_from(agents.len()).unwrap_or(i32::MAX);
        // The token is the last id of the page before: pages stay whole while agents come and go.
        agents.retain(|agent| agent.key.id.as_str() > query.continuation_token.as_str());
        let more = agents.len() > limit;
        agents.truncate(limit);
        let last = agents.last().filter(|_| more).map(|agent| agent.key.id.clone());
        Ok(Response::new(ListAgentsResponse {
            agents: agents.iter().map(|agent| agent.to_wire()).collect(),
            next_continuation_token: last.unwrap_or_default(),
            total_count,
        }))
    }

    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<AgentRegistration>, Status> {
        let peer = peer(&request);
        let id = request.into_inner().agent_id;
        let agent = self.registry.get(tenant::of(&peer), &id).ok_or(Error::NoAgent { id })?;
        Ok(Response::new(agent.to_wire()))
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = peer(&request);
        let WatchRequest { capabilities, include_initial } = request.into_inner();
        let mut updates = Box::pin(self.registry.follow(Some(tenant::of(&peer))));
        // Read before we answer, so that what is registered after our answer is an event and not in the snapshot.
        let snapshot = updates.next().await;
        let updates = stream::iter(snapshot).chain(updates);
        let env = self.env.clone();
        let events = events(updates, capabilities, include_initial).map(move |(kind, agent)| {
            let timestamp = Some(timestamp_to_wire(env.now()));
            Ok(WatchEvent { r#type: kind.into(), agent: Some(agent.to_wire()), timestamp })
        });
        // A watcher would hold up the drain for ever.
        Ok(Response::new(events.take_until(self.life.stopping()).boxed()))
    }
}

/// Updates as events: what a client has been told decides whether a change is ADDED, MODIFIED or DELETED, also
/// when a snapshot stands in for changes that were missed.
fn events(
    updates: impl Stream<Item = (u64, Update)> + Send + 'static,
    capabilities: Vec<String>,
    include_initial: bool,
) -> impl Stream<Item = (Type, Arc<Agent>)> + Send {
    let mut told: BTreeMap<AgentKey, Arc<Agent>> = BTreeMap::new();
    let mut first = true;
    let batches = updates.map(move |(_, update)| {
        let mut events = Vec::new();
        let mut upsert = |told: &mut BTreeMap<AgentKey, Arc<Agent>>, agent: Arc<Agent>| {
            if !agent.has_all(&capabilities) {
                if let Some(gone) = told.remove(&agent.key) {
                    events.push((Type::Deleted, gone));
                }
                return;
            }
            match told.insert(agent.key.clone(), agent.clone()) {
                None => events.push((Type::Added, agent)),
                Some(before) if before != agent => events.push((Type::Modified, agent)),
                Some(_) => {}
            }
        };
        match update {
            Update::Upsert(agent) => upsert(&mut told, agent),
            Update::Remove(key) => {
                events.extend(told.remove(&key).map(|gone| (Type::Deleted, gone)));
            }
            Update::Snapshot(agents) => {
                let mut gone = std::mem::take(&mut told);
                for agent in agents {
                    if let Some(before) = gone.remove(&agent.key) {
                        told.insert(agent.key.clone(), before);
                    }
                    upsert(&mut told, agent);
                }
                events.extend(gone.into_values().map(|gone| (Type::Deleted, gone)));
                if std::mem::take(&mut first) && !include_initial {
                    events.clear();
                }
            }
        }
        stream::iter(events)
    });
    batches.flatten()
}
