//! `parallax.patterns.PatternService`.

use std::time::Duration;

use futures::stream::BoxStream;
use parallax_proto::patterns::{
    ExecutePatternRequest, ExecutePatternResponse, GetPatternRequest, ListPatternsRequest,
    ListPatternsResponse, Pattern as Wire, UploadPatternRequest, UploadPatternResponse,
    execute_pattern_response::{Metrics, Status as WireStatus},
    pattern::Requirements,
    pattern_service_server,
};
use parallax_runtime::{
    run::{Options, Run, RunKey, Status as RunStatus},
    wire::{struct_from_any, struct_to_json, timestamp_to_wire},
};
use serde_json::{Value as Json, json};
use tonic::{Request, Response, Status};

use super::{
    edge::peer,
    grpc::{not_negative, result, results, stream},
};
use crate::{
    driver::TIMEOUT,
    error::Error,
    patterns::{Catalog, Pattern},
    runs::{self, Runs},
    tenant,
    view::{Call, calls},
};

/// Serves patterns.
pub struct Service {
    pub catalog: Catalog,
    pub runs: Runs,
}

#[tonic::async_trait]
impl pattern_service_server::PatternService for Service {
    async fn execute_pattern(
        &self,
        request: Request<ExecutePatternRequest>,
    ) -> Result<Response<ExecutePatternResponse>, Status> {
        let key = self.start(request).await?;
        let run = self.runs.wait(&key).await?;
        Ok(Response::new(execution(&run)))
    }

    type StreamExecutePatternStream = BoxStream<'static, Result<ExecutePatternResponse, Status>>;

    /// One message when the run has begun (status UNKNOWN, with its id), one with each agent's answer as it comes,
    /// and the last with status and result. A caller that goes away does not end the run, which may be joined by
    /// `StreamExecution` and ended by cancelling it: a lost connection is no decision.
    async fn stream_execute_pattern(
        &self,
        request: Request<ExecutePatternRequest>,
    ) -> Result<Response<Self::StreamExecutePatternStream>, Status> {
        let key = self.start(request).await?;
        let run = self.runs.get(&key).await?;
        let begun = ExecutePatternResponse {
            execution_id: key.id.clone(),
            pattern_name: run.summary.pattern.clone(),
            metrics: Some(Metrics {
                start_time: Some(timestamp_to_wire(run.summary.started_at)),
                ..Metrics::default()
            }),
            ..ExecutePatternResponse::default()
        };
        let first = begun.clone();
        let each = move |call: &Call<'_>| ExecutePatternResponse {
            agent_results: vec![result(call)],
            ..begun.clone()
        };
        Ok(Response::new(stream(&self.runs, key, first, each, |run| Ok(execution(run)))))
    }

    async fn list_patterns(
        &self,
        request: Request<ListPatternsRequest>,
    ) -> Result<Response<ListPatternsResponse>, Status> {
        let peer = peer(&request);
        let ListPatternsRequest { tags, include_scripts } = request.into_inner();
        let tagged = |pattern: &Pattern| tags.iter().all(|tag| pattern.header.tags.contains(tag));
        let patterns = self.catalog.list(tenant::of(&peer));
        let patterns = patterns.iter().filter(|pattern| tagged(pattern));
        Ok(Response::new(ListPatternsResponse {
            patterns: patterns.map(|p| to_wire(p, include_scripts)).collect(),
        }))
    }

    async fn get_pattern(&self, request: Request<GetPatternRequest>) -> Result<Response<Wire>, Status> {
        let peer = peer(&request);
        let GetPatternRequest { name, version } = request.into_inner();
        Ok(Response::new(to_wire(&*self.catalog.get(tenant::of(&peer), &name, &version)?, true)))
    }

    async fn upload_pattern(
        &self,
        request: Request<UploadPatternRequest>,
    ) -> Result<Response<UploadPatternResponse>, Status> {
        let peer = peer(&request);
        let UploadPatternRequest { pattern, overwrite } = request.into_inner();
        let wire = pattern.unwrap_or_default();
        let origin = if wire.name.is_empty() { "pattern.prism_script" } else { &wire.name };
        let (pattern, _) = Pattern::validate(origin, &wire.prism_script).map_err(Error::from)?;
        pattern.is_called(&wire.name, &wire.version)?;
        check_said(&to_wire(&pattern, false), &wire)?;
        self.catalog.upload(tenant::of(&peer), &pattern, &tenant::who(&peer), overwrite).await?;
        let id = pattern.id();
        Ok(Response::new(UploadPatternResponse {
            success: true,
            message: format!("{id} is the current version"),
            pattern_id: id,
        }))
    }
}

impl Service {
    async fn start(&self, request: Request<ExecutePatternRequest>) -> crate::error::Result<RunKey> {
        let peer = peer(&request);
        let message = request.into_inner();
        let options = message.options.unwrap_or_default();
        let timeout = not_negative("options.timeout_ms", options.timeout_ms)?;
        let request = runs::Request {
            pattern: message.pattern_name,
            version: message.pattern_version,
            input: Json::Object(struct_to_json(&message.input.unwrap_or_default())),
            options: Options {
                timeout: (timeout > 0).then(|| Duration::from_millis(timeout.into())),
                max_parallel: not_negative("options.max_parallel", options.max_parallel)?,
                context: options.context.into_iter().collect(),
                cache_results: options.cache_results,
                ..Options::default()
            },
            ..runs::Request::default()
        };
        self.runs.start(tenant::of(&peer), request).await
    }
}

fn to_wire(pattern: &Pattern, with_script: bool) -> Wire {
    let requirements = &pattern.header.requirements;
    let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let Pattern { header, hash, origin, .. } = pattern;
    let metadata = json!({"tags": header.tags, "hash": hash, "origin": origin, "input": header.input});
    Wire {
        name: pattern.header.name.clone(),
        version: pattern.header.version.clone(),
        description: pattern.header.description.clone(),
        requirements: Some(Requirements {
            capabilities: requirements.capabilities.clone(),
            min_agents: count(requirements.min_agents),
            max_agents: requirements.max_agents.map_or(0, count),
            min_confidence: requirements.min_confidence,
        }),
        prism_script: if with_script { pattern.script.clone() } else { String::new() },
        metadata: Some(struct_from_any(&metadata)),
    }
}

/// The script's header says what a pattern is: beside it, a message says nothing or the same.
fn check_said(header: &Wire, message: &Wire) -> crate::error::Result<()> {
    let check = |field, own: String, said: String, unsaid: String| {
        if said == unsaid || said == own {
            return Ok(());
        }
        Err(Error::Invalid {
            field,
            problem: format!("{said} is not it, the script says {own}; leave it out"),
        })
    };
    let quoted = |wire: &Wire| format!("\"{}\"", wire.description);
    check("description", quoted(header), quoted(message), quoted(&Wire::default()))?;
    let none = Requirements::default();
    let own = header.requirements.as_ref().unwrap_or(&none);
    let said = message.requirements.as_ref().unwrap_or(&none);
    let list = |of: &Requirements| format!("{:?}", of.capabilities);
    check("requirements.capabilities", list(own), list(said), list(&none))?;
    let number = |field, of: fn(&Requirements) -> f64| {
        check(field, of(own).to_string(), of(said).to_string(), of(&none).to_string())
    };
    number("requirements.min_agents", |of| of.min_agents.into())?;
    number("requirements.max_agents", |of| of.max_agents.into())?;
    number("requirements.min_confidence", |of| of.min_confidence)
}

fn execution(run: &Run) -> ExecutePatternResponse {
    let calls = calls(run);
    let stated: Vec<f64> = calls.iter().filter_map(|call| call.confidence).collect();
    let (_, error) = run.summary.error.clone().unzip();
    let timed_out = run.summary.error.as_ref().is_some_and(|(code, _)| code == TIMEOUT);
    let status = match run.summary.status {
        RunStatus::Completed => WireStatus::Success,
        RunStatus::Failed if timed_out => WireStatus::Timeout,
        RunStatus::Failed => WireStatus::Failure,
        RunStatus::Cancelled => WireStatus::Cancelled,
        RunStatus::Pending | RunStatus::Running => WireStatus::Unknown,
    };
    let mut asked: Vec<&str> = calls.iter().map(|call| call.agent).collect();
    asked.sort_unstable();
    asked.dedup();
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    ExecutePatternResponse {
        execution_id: run.summary.key.id.clone(),
        pattern_name: run.summary.pattern.clone(),
        status: status.into(),
        result: run.value().map(struct_from_any),
        confidence: run.summary.confidence.unwrap_or_default(),
        metrics: Some(Metrics {
            start_time: Some(timestamp_to_wire(run.summary.started_at)),
            end_time: run.summary.ended_at.map(timestamp_to_wire),
            agents_used: count(asked.len()),
            parallel_paths: count(most_at_once(&calls)),
            average_confidence: if stated.is_empty() {
                0.0
            } else {
                stated.iter().sum::<f64>() / stated.len() as f64
            },
        }),
        agent_results: results(run),
        error_message: error.unwrap_or_default(),
    }
}

/// The most calls that were in flight at one moment.
fn most_at_once(calls: &[Call<'_>]) -> usize {
    let at_once = |at| calls.iter().filter(|call| call.started_at <= at && at < call.ended_at).count();
    calls.iter().map(|call| at_once(call.started_at)).max().unwrap_or(0)
}
