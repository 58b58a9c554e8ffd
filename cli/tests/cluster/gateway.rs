//! Agents behind NAT: one stream outwards, and calls come through it.

use futures::StreamExt;
use parallax_proto::gateway::{
    AgentHeartbeat, AgentHello, AgentToControlPlane, ControlPlaneToAgent, TaskError, TaskRequest, TaskResult,
    ThreadEvent, agent_gateway_client::AgentGatewayClient, agent_to_control_plane::Payload as Say,
    control_plane_to_agent::Payload as Told,
};
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    agents::says,
    world::{World, soon},
};

/// An agent as existing clients write it: the contract's messages and nothing else.
struct Behind {
    say: mpsc::UnboundedSender<AgentToControlPlane>,
    told: Streaming<ControlPlaneToAgent>,
}

impl Behind {
    async fn connect(channel: Channel, id: &str) -> Self {
        let (say, said) = mpsc::unbounded_channel();
        let hello = AgentHello {
            agent_id: id.to_owned(),
            agent_name: id.to_uppercase(),
            capabilities: vec!["tell".to_owned()],
            metadata: [("region".to_owned(), "eu".to_owned()), ("team".to_owned(), "a".to_owned())].into(),
            heartbeat_interval_ms: 1_000,
        };
        say.send(AgentToControlPlane { request_id: "hello-1".to_owned(), payload: Some(Say::Hello(hello)) })
            .unwrap();
        let told =
            AgentGatewayClient::new(channel).connect(UnboundedReceiverStream::new(said)).await.unwrap();
        Self { say, told: told.into_inner() }
    }

    /// Connected, and let in.
    async fn accepted(world: &World, id: &str) -> Self {
        let mut behind = Self::connect(world.dial("default", Kind::Agent, id).await, id).await;
        let (request_id, ack) = behind.next().await;
        let Told::Ack(ack) = ack else { panic!("{ack:?}") };
        assert!(ack.accepted && request_id == "hello-1", "{ack:?}");
        behind
    }

    /// The next message that is no ping.
    async fn next(&mut self) -> (String, Told) {
        loop {
            let message = soon(self.told.next()).await.expect("the stream goes on").unwrap();
            match message.payload.expect("a payload") {
                Told::Ping(_) => self.say(String::new(), Say::Heartbeat(AgentHeartbeat::default())),
                other => return (message.request_id, other),
            }
        }
    }

    async fn task(&mut self) -> (String, TaskRequest) {
        match self.next().await {
            (id, Told::TaskRequest(task)) => (id, task),
            other => panic!("no task but {other:?}"),
        }
    }

    fn say(&self, request_id: String, say: Say) {
        self.say.send(AgentToControlPlane { request_id, payload: Some(say) }).unwrap();
    }

    fn answer(&self, request_id: String, task_id: &str, value: &str) {
        let result = TaskResult {
            task_id: task_id.to_owned(),
            value_json: format!("\"{value}\""),
            confidence: 0.8,
            ..TaskResult::default()
        };
        self.say(request_id, Say::TaskResult(result));
    }

    /// How the stream ends.
    async fn end(mut self) -> Option<Status> {
        loop {
            match soon(self.told.next()).await {
                Some(Ok(_)) => {}
                ended => return ended.map(Result::unwrap_err),
            }
        }
    }
}

async fn ask(world: &World, agents: &[&str]) -> tokio::task::JoinHandle<Json> {
    let body = json!({"input": {"task": "tell", "agents": agents}});
    let mut api = world.api().await;
    tokio::spawn(async move {
        soon(api.post("/api/patterns/consensus-builder/execute", &body)).await.unwrap()["execution"].clone()
    })
}

#[tokio::test]
async fn a_call_reaches_an_agent_through_its_own_stream() {
    let world = World::start().await;
    let mut behind = Behind::accepted(&world, "behind").await;
    world.agent(says("beside", "de", 0.6).0).await;
    let agents = world.api().await.get("/api/agents/behind").await.unwrap();
    assert_eq!((&agents["transport"], &agents["metadata"]["region"]), (&json!("gateway"), &json!("eu")));
    assert_eq!((&agents["metadata"]["labels"], &agents["status"]), (&json!({"team": "a"}), &json!("active")));

    let run = ask(&world, &["behind", "beside"]).await;
    let (request, task) = behind.task().await;
    assert_eq!((task.task_description.as_str(), task.pattern_name.as_str()), ("tell", "ConsensusBuilder"));
    behind.answer(request, &task.task_id, "de");
    let run = run.await.unwrap();
    assert_eq!((&run["result"]["decision"], &run["result"]["answered"]), (&json!("de"), &json!(2)), "{run}");
    let call = run["calls"].as_array().unwrap().iter().find(|call| call["agentId"] == "behind").unwrap();
    assert_eq!((&call["value"], &call["confidence"]), (&json!("de"), &json!(0.8)));

    // An error is the agent's own; a thread is refused politely; neither ends the stream.
    let run = ask(&world, &["behind"]).await;
    let (request, task) = behind.task().await;
    let error = TaskError {
        task_id: task.task_id,
        error_message: "no model".to_owned(),
        error_code: "E1".to_owned(),
    };
    behind.say(request, Say::TaskError(error));
    let failed = run.await.unwrap();
    assert!(failed["calls"].to_string().contains("no model (E1)"), "{failed}");
    let event = ThreadEvent { thread_id: "t1".to_owned(), ..ThreadEvent::default() };
    behind.say(String::new(), Say::ThreadEvent(event));
    let (_, refused) = behind.next().await;
    assert!(matches!(&refused, Told::ThreadStop(stop) if stop.thread_id == "t1"), "{refused:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_cancels_the_task() {
    let world = World::start().await;
    let mut behind = Behind::accepted(&world, "behind").await;
    let run = ask(&world, &["behind"]).await;
    let (request, task) = behind.task().await;
    let id = task.task_id.split('/').next().unwrap();
    world.api().await.post(&format!("/api/executions/{id}/cancel"), &json!({})).await.unwrap();
    let (cancelled, told) = behind.next().await;
    assert!(matches!(&told, Told::CancelTask(cancel) if cancel.task_id == task.task_id), "{told:?}");
    assert_eq!(cancelled, request);
    assert_eq!(run.await.unwrap()["status"], "cancelled");
    // What comes late is nobody's.
    behind.answer(request, &task.task_id, "late");
    let run = ask(&world, &["behind"]).await;
    let (request, task) = behind.task().await;
    behind.answer(request, &task.task_id, "now");
    assert_eq!(run.await.unwrap()["result"]["decision"], "now");
    world.stop().await;
}

#[tokio::test]
async fn one_that_leaves_fails_its_own_calls_only() {
    let world = World::start().await;
    let mut leaving = Behind::accepted(&world, "leaving").await;
    let mut staying = Behind::accepted(&world, "staying").await;
    let run = ask(&world, &["leaving", "staying"]).await;
    let ((_, _), (request, task)) = (leaving.task().await, staying.task().await);
    drop(leaving);
    soon(async {
        while world.api().await.get("/api/agents/leaving").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    staying.answer(request, &task.task_id, "de");
    let run = run.await.unwrap();
    assert_eq!((&run["result"]["decision"], &run["result"]["answered"]), (&json!("de"), &json!(1)), "{run}");
    let lost = run["calls"].as_array().unwrap().iter().find(|call| call["agentId"] == "leaving").unwrap();
    assert!(lost["error"]["message"].as_str().unwrap().contains("left while it was asked"), "{lost}");
    world.stop().await;
}

#[tokio::test]
async fn an_id_is_its_identitys_and_a_new_stream_takes_the_place_of_the_old() {
    let world = World::start().await;
    let first = Behind::accepted(&world, "taken").await;
    // Another certificate, and none.
    for channel in [world.dial("default", Kind::Agent, "other").await, world.dial_plain().await] {
        let mut refused = Behind::connect(channel, "taken").await;
        let (_, ack) = refused.next().await;
        assert!(matches!(&ack, Told::Ack(ack) if !ack.accepted && !ack.message.is_empty()), "{ack:?}");
        assert_eq!(refused.end().await.unwrap().code(), tonic::Code::PermissionDenied);
    }
    let mut second = Behind::accepted(&world, "taken").await;
    assert!(first.end().await.is_none(), "the former stream is closed");
    let run = ask(&world, &["taken"]).await;
    let (request, task) = second.task().await;
    second.answer(request, &task.task_id, "second");
    assert_eq!(run.await.unwrap()["result"]["decision"], "second");

    // In plaintext on this machine too, under an id that no certificate has.
    let mut plain = Behind::connect(world.dial_plain().await, "plain").await;
    assert!(matches!(plain.next().await.1, Told::Ack(ack) if ack.accepted));
    let run = ask(&world, &["plain"]).await;
    let (request, task) = plain.task().await;
    plain.answer(request, &task.task_id, "plain");
    assert_eq!(run.await.unwrap()["result"]["decision"], "plain");
    world.stop().await;
}

#[tokio::test]
async fn silence_ends_a_registration() {
    let world = World::start().await;
    let silent = Behind::accepted(&world, "silent").await;
    // It neither reads nor writes: three intervals of one second, and it is gone.
    soon(async {
        while world.api().await.get("/api/agents/silent").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(silent.end().await.is_none());
    world.stop().await;
}
