//! What the gRPC services share.

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parallax_proto::confidence::ConfidenceResult;
use parallax_runtime::{
    run::{Run, RunKey},
    wire::timestamp_to_wire,
};
use tonic::Status;

use crate::{
    error::{Error, Result},
    runs::Runs,
    view::{self, Call, calls},
};

/// A number that cannot be below 0.
pub fn not_negative(field: &'static str, value: i32) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Invalid {
        field,
        problem: format!("{value} is negative; 0 means none of its own"),
    })
}

/// How many a page holds: at most the first of `page`, and the second when the caller gives 0.
pub fn capped(field: &'static str, value: i32, page: (usize, usize)) -> Result<usize> {
    match usize::try_from(value) {
        Ok(0) => Ok(page.1),
        Ok(limit) => Ok(limit.min(page.0)),
        Err(_) => {
            let problem = format!("{value} is negative; 0 means {}", page.1);
            Err(Error::Invalid { field, problem })
        }
    }
}

/// A run as it happens: `first`, a message for each agent's answer, and one at the end. The run does not depend on
/// whether anybody reads it.
pub fn stream<T: Send + 'static>(
    runs: &Runs,
    key: RunKey,
    first: T,
    each: impl Fn(&Call<'_>) -> T + Send + 'static,
    last: impl FnOnce(&Run) -> Result<T> + Send + 'static,
) -> BoxStream<'static, Result<T, Status>> {
    let answers = runs.follow(&key, 0).map_ok(move |stretch| {
        let answers = stretch.entries.iter().filter_map(view::call).filter(|call| call.error.is_none());
        stream::iter(answers.map(|call| Ok(each(&call))).collect::<Vec<_>>())
    });
    let runs = runs.clone();
    let end = stream::once(async move { last(&runs.finished(&key).await?) });
    stream::iter([Ok(first)]).chain(answers.try_flatten()).chain(end).map_err(Status::from).boxed()
}

/// What the agents of a run answered, in the order in which they did.
pub fn results(run: &Run) -> Vec<ConfidenceResult> {
    calls(run).iter().filter(|call| call.error.is_none()).map(result).collect()
}

/// One agent's answer.
pub fn result(call: &Call<'_>) -> ConfidenceResult {
    let text = |field: &str| call.answer[field].as_str().unwrap_or_default().to_owned();
    let uncertainties = call.answer["uncertainties"].as_array().into_iter().flatten();
    let metadata = call.answer["metadata"].as_object().into_iter().flatten();
    ConfidenceResult {
        value_json: call.answer["value"].to_string(),
        confidence: call.confidence.unwrap_or_default(),
        agent_id: call.agent.to_owned(),
        timestamp: Some(timestamp_to_wire(call.ended_at)),
        uncertainties: uncertainties.filter_map(|u| u.as_str()).map(str::to_owned).collect(),
        reasoning: text("reasoning"),
        metadata: metadata
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    }
}
