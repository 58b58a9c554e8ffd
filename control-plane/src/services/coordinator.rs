//! `parallax.coordinator.Coordinator`.

use std::time::Duration;

use futures::stream::BoxStream;
use jiff::Timestamp;
use parallax_proto::coordinator::{
    ConsensusResult, CoordinateRequest, CoordinateResponse, Disagreement, EpistemicResult, GetHistoryRequest,
    GetHistoryResponse, HistoryEntry, ParallelPath,
    coordinate_request::{Constraints, Strategy as Wire},
    coordinate_response::Result as Typed,
    coordinator_server,
};
use parallax_runtime::{
    env::millis,
    run::{Run, RunKey},
    wire::{struct_from_any, struct_from_json, struct_to_json},
};
use serde_json::{Value as Json, json};
use tonic::{Request, Response, Status};

use super::{
    edge::peer,
    grpc::{capped, not_negative, result, results, stream},
};
use crate::{
    coordinate::{Answer, Findings, Strategy, Task, history},
    error::{Error, Result},
    runs::Runs,
    tenant,
    view::Call,
};

/// The most entries of a history, and how many there are when the caller does not say.
const PAGE: (usize, usize) = (1000, 100);

/// Serves the coordinator.
pub struct Service {
    pub runs: Runs,
}

#[tonic::async_trait]
impl coordinator_server::Coordinator for Service {
    /// Waits for the task's answer. A task that fails, or whose answer is less sure than `constraints.min_confidence`,
    /// is an error and never a recommendation: `FAILED_PRECONDITION`, or what the failure calls for.
    async fn coordinate(
        &self,
        request: Request<CoordinateRequest>,
    ) -> Result<Response<CoordinateResponse>, Status> {
        let (task, key) = self.start(request).await?;
        let run = self.runs.wait(&key).await?;
        Ok(Response::new(response(&task, &run)?))
    }

    type StreamCoordinateStream = BoxStream<'static, Result<CoordinateResponse, Status>>;

    /// One message when the task's run has begun, one with each agent's answer as it comes, in the strategy's type,
    /// and the last as `Coordinate` answers. The run goes on when its caller has gone, and is in the history.
    async fn stream_coordinate(
        &self,
        request: Request<CoordinateRequest>,
    ) -> Result<Response<Self::StreamCoordinateStream>, Status> {
        let (task, key) = self.start(request).await?;
        let first = CoordinateResponse {
            task_id: task.id.clone(),
            explanation: format!("run {} has begun", key.id),
            ..CoordinateResponse::default()
        };
        let of = task.clone();
        let each = move |call: &Call<'_>| answered(&of, call);
        Ok(Response::new(stream(&self.runs, key, first, each, move |run| response(&task, run))))
    }

    /// What was coordinated under a task's id at `since_timestamp` or later, the newest first. Of a task that failed
    /// the response holds the explanation only; one that is under way has none.
    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let peer = peer(&request);
        let GetHistoryRequest { task_id, limit, since_timestamp } = request.into_inner();
        if task_id.is_empty() {
            return Err(Error::Invalid { field: "task_id", problem: "is empty".to_owned() }.into());
        }
        let limit = capped("limit", limit, PAGE)?;
        let since = Timestamp::from_millisecond(since_timestamp).map_err(|e| Error::Invalid {
            field: "since_timestamp",
            problem: format!("{since_timestamp} ms is no time: {e}"),
        })?;
        let found = history(&self.runs, tenant::of(&peer), &task_id, limit, since).await?;
        let entries = found.iter().map(|(task, run)| HistoryEntry {
            request: Some(to_wire(task)),
            response: match response(task, run) {
                Err(Error::NotEnded { .. }) => None,
                answer => Some(answer.unwrap_or_else(|e| CoordinateResponse {
                    task_id: task.id.clone(),
                    explanation: e.to_string(),
                    ..CoordinateResponse::default()
                })),
            },
            timestamp: run.summary.started_at.as_millisecond(),
        });
        Ok(Response::new(GetHistoryResponse { entries: entries.collect() }))
    }
}

impl Service {
    async fn start(&self, request: Request<CoordinateRequest>) -> Result<(Task, RunKey)> {
        let peer = peer(&request);
        let mut task = from_wire(request.into_inner())?;
        if task.id.is_empty() {
            task.id = self.runs.context().env.id();
        }
        let key = task.start(&self.runs, tenant::of(&peer)).await?;
        Ok((task, key))
    }
}

fn from_wire(message: CoordinateRequest) -> Result<Task> {
    let strategy = match message.strategy() {
        Wire::Consensus => Strategy::Consensus,
        Wire::Epistemic => Strategy::Epistemic,
        Wire::Cascade => Strategy::Cascade,
        Wire::UncertaintyRoute => Strategy::UncertaintyRoute,
        Wire::Custom if message.custom_pattern.is_empty() => {
            let problem = "is empty; the strategy CUSTOM needs the name of a pattern".to_owned();
            return Err(Error::Invalid { field: "custom_pattern", problem });
        }
        Wire::Custom => Strategy::Custom(message.custom_pattern),
        Wire::Unknown => {
            let known = "CONSENSUS (1), EPISTEMIC (2), CASCADE (3), UNCERTAINTY_ROUTE (4) or CUSTOM (5)";
            let problem = format!("{} is none; give {known}", message.strategy);
            return Err(Error::Invalid { field: "strategy", problem });
        }
    };
    let Constraints { min_confidence, max_agents, required_capabilities, timeout_ms } =
        message.constraints.unwrap_or_default();
    if !(0.0..=1.0).contains(&min_confidence) {
        let problem = format!("{min_confidence} is not from 0 to 1");
        return Err(Error::Invalid { field: "constraints.min_confidence", problem });
    }
    // Proto3 cannot tell an unset number from zero, and zero bounds nothing.
    let bound = |field, value| Ok::<_, Error>(Some(not_negative(field, value)?).filter(|value| *value > 0));
    Ok(Task {
        id: message.task_id,
        description: message.description,
        strategy,
        data: struct_to_json(&message.data.unwrap_or_default()),
        min_confidence: Some(min_confidence).filter(|least| *least > 0.0),
        max_agents: bound("constraints.max_agents", max_agents)?,
        capabilities: required_capabilities,
        timeout: bound("constraints.timeout_ms", timeout_ms)?.map(|ms| Duration::from_millis(ms.into())),
    })
}

fn to_wire(task: &Task) -> CoordinateRequest {
    let (strategy, custom_pattern) = match &task.strategy {
        Strategy::Consensus => (Wire::Consensus, String::new()),
        Strategy::Epistemic => (Wire::Epistemic, String::new()),
        Strategy::Cascade => (Wire::Cascade, String::new()),
        Strategy::UncertaintyRoute => (Wire::UncertaintyRoute, String::new()),
        Strategy::Custom(pattern) => (Wire::Custom, pattern.clone()),
    };
    let count = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
    CoordinateRequest {
        task_id: task.id.clone(),
        description: task.description.clone(),
        strategy: strategy.into(),
        custom_pattern,
        data: Some(struct_from_json(&task.data)),
        constraints: Some(Constraints {
            min_confidence: task.min_confidence.unwrap_or_default(),
            max_agents: count(task.max_agents.unwrap_or_default().into()),
            required_capabilities: task.capabilities.clone(),
            timeout_ms: count(task.timeout.map_or(0, millis)),
        }),
    }
}

fn response(task: &Task, run: &Run) -> Result<CoordinateResponse> {
    let Answer { findings, confidence, explanation } = task.answer(run)?;
    let typed = match findings {
        Findings::Consensus { level, recommendation } => Typed::Consensus(ConsensusResult {
            consensus_level: level,
            recommendation: text(&recommendation),
            agent_results: results(run),
        }),
        Findings::Epistemic { disagreements, paths, recommendation } => Typed::Epistemic(EpistemicResult {
            disagreements: disagreements
                .into_iter()
                .map(|disagreement| Disagreement {
                    agent1_id: disagreement.agents.0,
                    agent2_id: disagreement.agents.1,
                    issue: disagreement.issue,
                    confidence_delta: disagreement.confidence_delta,
                })
                .collect(),
            parallel_paths: (1..)
                .zip(paths)
                .map(|(number, path)| ParallelPath {
                    path_id: number.to_string(),
                    description: text(&path.answer),
                    confidence: path.confidence,
                    supporting_agents: path.agents,
                    details: Some(struct_from_any(&path.details)),
                })
                .collect(),
            recommendation: text(&recommendation),
        }),
        Findings::Custom(value) => Typed::Custom(struct_from_any(&value)),
    };
    Ok(CoordinateResponse {
        task_id: task.id.clone(),
        result: Some(typed),
        overall_confidence: confidence.unwrap_or_default(),
        explanation,
    })
}

/// One agent's answer, before there is a result.
fn answered(task: &Task, call: &Call<'_>) -> CoordinateResponse {
    let value = &call.answer["value"];
    let typed = match task.strategy {
        Strategy::Consensus => Typed::Consensus(ConsensusResult {
            agent_results: vec![result(call)],
            ..ConsensusResult::default()
        }),
        Strategy::Epistemic => Typed::Epistemic(EpistemicResult {
            parallel_paths: vec![ParallelPath {
                path_id: call.effect.to_string(),
                description: text(value),
                confidence: call.confidence.unwrap_or_default(),
                supporting_agents: vec![call.agent.to_owned()],
                details: Some(struct_from_any(call.answer)),
            }],
            ..EpistemicResult::default()
        }),
        _ => Typed::Custom(struct_from_any(
            &json!({"agentId": call.agent, "value": value, "confidence": call.confidence}),
        )),
    };
    CoordinateResponse {
        task_id: task.id.clone(),
        result: Some(typed),
        explanation: format!("{} has answered", call.agent),
        ..CoordinateResponse::default()
    }
}

/// Text as it is, anything else as JSON, and nothing for null.
fn text(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}
