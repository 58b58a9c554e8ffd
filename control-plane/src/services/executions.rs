//! `parallax.executions.ExecutionService`.

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parallax_proto::executions::{
    Execution, ExecutionStatus, GetExecutionRequest, GetExecutionResponse, ListExecutionsRequest,
    ListExecutionsResponse, StreamExecutionRequest, StreamExecutionResponse, execution_service_server,
};
use parallax_runtime::{
    run::{Run, Status as RunStatus, Summary},
    store::RunQuery,
    wire::{struct_from_any, timestamp_to_wire},
};
use serde_json::{Value as Json, json};
use tonic::{Request, Response, Status};

use super::{
    edge::peer,
    grpc::{capped, not_negative},
    json::Metrics,
};
use crate::{
    error::{Error, Result},
    runs::{Runs, Stretch},
    tenant,
    view::{Happening, happenings},
};

/// The most runs that one page holds, and how many it holds when the caller does not say.
const PAGE: (usize, usize) = (1000, 50);

/// Serves runs.
pub struct Service {
    pub runs: Runs,
}

#[tonic::async_trait]
impl execution_service_server::ExecutionService for Service {
    async fn get_execution(
        &self,
        request: Request<GetExecutionRequest>,
    ) -> Result<Response<GetExecutionResponse>, Status> {
        let peer = peer(&request);
        let run = self.runs.find(tenant::of(&peer), &request.into_inner().execution_id).await?;
        Ok(Response::new(GetExecutionResponse { execution: Some(whole(&run)) }))
    }

    /// The newest first. Lists carry neither input nor result; `GetExecution` does.
    async fn list_executions(
        &self,
        request: Request<ListExecutionsRequest>,
    ) -> Result<Response<ListExecutionsResponse>, Status> {
        let peer = peer(&request);
        let ListExecutionsRequest { limit, offset, status } = request.into_inner();
        let word = || status.parse().map_err(|problem| Error::Invalid { field: "status", problem });
        let query = RunQuery {
            tenant: tenant::of(&peer).to_owned(),
            status: if status.is_empty() { None } else { Some(word()?) },
            offset: not_negative("offset", offset)?.into(),
            limit: capped("limit", limit, PAGE)? as u64,
            ..RunQuery::default()
        };
        let page = self.runs.list(&query).await?;
        Ok(Response::new(ListExecutionsResponse {
            executions: page.runs.iter().map(execution).collect(),
            total: i32::try_from(page.total).unwrap_or(i32::MAX),
        }))
    }

    type StreamExecutionStream = BoxStream<'static, Result<StreamExecutionResponse, Status>>;

    /// A snapshot, then what happens from there on, to the end of the run; of one that has ended, how it did. Where
    /// this process stops before the run has ended, the stream ends in `UNAVAILABLE`: open it again.
    async fn stream_execution(
        &self,
        request: Request<StreamExecutionRequest>,
    ) -> Result<Response<Self::StreamExecutionStream>, Status> {
        let peer = peer(&request);
        let run = self.runs.find(tenant::of(&peer), &request.into_inner().execution_id).await?;
        let snapshot = StreamExecutionResponse {
            event_type: "started".to_owned(),
            execution: Some(whole(&run)),
            event_time: Some(timestamp_to_wire(run.summary.started_at)),
            event_data: Some(struct_from_any(&json!({"source": "snapshot"}))),
        };
        let (len, ended) = (run.summary.len, run.summary.status.is_final());
        let stretches = self.runs.follow(&run.summary.key, if ended { len - 1 } else { len });
        let input = run.start().input.clone();
        let events = stretches.map_ok(move |stretch| stream::iter(of(&stretch, &input).into_iter().map(Ok)));
        let (runs, key) = (self.runs.clone(), run.summary.key);
        let end = stream::once(async move { runs.finished(&key).await.map(|_| None) });
        let events = stream::iter([Ok(snapshot)])
            .chain(events.try_flatten())
            .chain(end.try_filter_map(futures::future::ok));
        Ok(Response::new(events.map_err(Status::from).boxed()))
    }
}

fn of(stretch: &Stretch, input: &Json) -> Vec<StreamExecutionResponse> {
    let entries = (stretch.from..).zip(&stretch.entries);
    let happenings = entries.flat_map(|(position, entry)| happenings(position, entry, &stretch.summary));
    let event = |happening: Happening| StreamExecutionResponse {
        event_type: happening.kind.to_owned(),
        execution: Some(Execution {
            input: Some(struct_from_any(input)),
            result: happening.data.get("result").map(struct_from_any),
            ..execution(&stretch.summary)
        }),
        event_time: Some(timestamp_to_wire(happening.timestamp)),
        event_data: Some(struct_from_any(&happening.data)),
    };
    happenings.map(event).collect()
}

fn execution(run: &Summary) -> Execution {
    let status = match run.status {
        RunStatus::Pending => ExecutionStatus::Pending,
        RunStatus::Running => ExecutionStatus::Running,
        RunStatus::Completed => ExecutionStatus::Completed,
        RunStatus::Failed => ExecutionStatus::Failed,
        RunStatus::Cancelled => ExecutionStatus::Cancelled,
    };
    Execution {
        id: run.key.id.clone(),
        pattern_name: run.pattern.clone(),
        status: status.into(),
        start_time: Some(timestamp_to_wire(run.started_at)),
        end_time: run.ended_at.map(timestamp_to_wire),
        input: None,
        result: None,
        error: run.error.clone().unzip().1.unwrap_or_default(),
        confidence: run.confidence.unwrap_or_default(),
        metrics: Some(struct_from_any(&json!(Metrics::of(run)))),
    }
}

fn whole(run: &Run) -> Execution {
    Execution {
        input: Some(struct_from_any(&run.start().input)),
        result: run.value().map(struct_from_any),
        ..execution(&run.summary)
    }
}
