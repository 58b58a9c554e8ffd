//! `parallax.coordinator.Coordinator`: every strategy, its constraints, its stream and its history.

use parallax_proto::coordinator::{
    CoordinateRequest, CoordinateResponse, GetHistoryRequest,
    coordinate_request::{Constraints, Strategy},
    coordinate_response::Result as Typed,
    coordinator_client::CoordinatorClient,
};
use parallax_runtime::wire::{struct_from_any, struct_to_json};
use parallax_sdk::{Answer, Task, agent};
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tonic::{Code, Status, transport::Channel};

use crate::{
    agents::says,
    world::{World, soon},
};

type Client = CoordinatorClient<Channel>;

async fn client(world: &World) -> Client {
    CoordinatorClient::new(world.dial("default", Kind::Operator, "someone").await)
}

fn task(strategy: Strategy, constraints: Constraints) -> CoordinateRequest {
    CoordinateRequest {
        task_id: "task-1".to_owned(),
        description: "tell".to_owned(),
        strategy: strategy.into(),
        data: Some(struct_from_any(&json!({"text": "Füße"}))),
        constraints: Some(constraints),
        ..CoordinateRequest::default()
    }
}

async fn ask(client: &mut Client, request: CoordinateRequest) -> Result<CoordinateResponse, Status> {
    Ok(soon(client.coordinate(request)).await?.into_inner())
}

fn custom(response: &CoordinateResponse) -> Json {
    match &response.result {
        Some(Typed::Custom(value)) => Json::Object(struct_to_json(value)),
        other => panic!("custom, not {other:?}"),
    }
}

/// Three that answer, the last otherwise than the others.
async fn three(world: &World) {
    for (id, value, sure) in [("a", "de", 0.9), ("b", "de", 0.6), ("c", "nl", 0.5)] {
        world.agent(says(id, value, sure).0).await;
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[tokio::test]
async fn each_strategy_has_its_result() {
    let world = World::start().await;
    three(&world).await;
    let mut client = client(&world).await;

    let answer = ask(&mut client, task(Strategy::Consensus, Constraints::default())).await.unwrap();
    assert_eq!(answer.task_id, "task-1");
    assert!(
        answer.explanation.contains("2 of 3 answers agree, 3 agents were asked"),
        "{}",
        answer.explanation
    );
    assert!(near(answer.overall_confidence, 0.5), "(0.9 + 0.6) / 3");
    let Some(Typed::Consensus(consensus)) = answer.result else { panic!("{answer:?}") };
    assert!(near(consensus.consensus_level, 2.0 / 3.0));
    assert_eq!((consensus.recommendation.as_str(), consensus.agent_results.len()), ("de", 3));

    let answer = ask(&mut client, task(Strategy::Epistemic, Constraints::default())).await.unwrap();
    let Some(Typed::Epistemic(epistemic)) = answer.result else { panic!("{answer:?}") };
    assert_eq!(epistemic.recommendation, "de");
    let [disagreement] = &epistemic.disagreements[..] else { panic!("{:?}", epistemic.disagreements) };
    assert_eq!(
        (disagreement.agent1_id.as_str(), disagreement.agent2_id.as_str()),
        ("a", "c"),
        "the surest of each"
    );
    assert_eq!(disagreement.issue, "a says \"de\", c says \"nl\"");
    assert!(near(disagreement.confidence_delta, 0.4));
    let paths: Vec<_> = epistemic
        .parallel_paths
        .iter()
        .map(|path| (path.path_id.as_str(), path.description.as_str(), path.supporting_agents.join(" ")))
        .collect();
    assert_eq!(paths, [("1", "de", "a b".to_owned()), ("2", "nl", "c".to_owned())]);
    assert!(near(epistemic.parallel_paths[0].confidence, 0.5));
    assert!(epistemic.parallel_paths[0].details.as_ref().unwrap().fields.contains_key("reasons"));
    assert!(answer.explanation.contains("agreed") && near(answer.overall_confidence, 0.5 - 0.5 / 3.0));

    let answer = ask(&mut client, task(Strategy::Cascade, Constraints::default())).await.unwrap();
    assert_eq!(custom(&answer)["decision"], "de");
    let answer = ask(&mut client, task(Strategy::UncertaintyRoute, Constraints::default())).await.unwrap();
    assert!(custom(&answer)["route"].is_string());
    world.stop().await;
}

#[tokio::test]
async fn a_pattern_of_ones_own_is_a_strategy() {
    let world =
        World::start_with_patterns(&[("mine", "", "({ text: input.text, task: input.task }) ~> 0.25")]).await;
    let mut client = client(&world).await;
    let of = |custom_pattern: &str| CoordinateRequest {
        custom_pattern: custom_pattern.to_owned(),
        ..task(Strategy::Custom, Constraints::default())
    };
    let answer = ask(&mut client, of("mine")).await.unwrap();
    assert_eq!(custom(&answer), json!({"task": "tell", "text": "Füße"}));
    assert_eq!(answer.overall_confidence, 0.25);
    assert_eq!(ask(&mut client, of("no-such-pattern")).await.unwrap_err().code(), Code::NotFound);
    for (request, named) in [
        (of(""), "custom_pattern: is empty"),
        (task(Strategy::Unknown, Constraints::default()), "strategy: 0 is none; give CONSENSUS (1)"),
        (CoordinateRequest { strategy: 77, ..of("mine") }, "strategy: 77 is none"),
    ] {
        let status = ask(&mut client, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(named), "{status}");
    }
    drop(client);
    world.stop().await;
}

#[tokio::test]
async fn constraints_are_obeyed() {
    let world = World::start().await;
    three(&world).await;
    let (special, calls) =
        (agent("special").capability("tell").capability("rare"), crate::agents::Calls::default());
    let counted = calls.clone();
    world
        .agent(special.answer(move |_: Task| {
            counted.add();
            async { Answer::new("fy", 0.7) }
        }))
        .await;
    let mut client = client(&world).await;
    let mut consensus = async |constraints| ask(&mut client, task(Strategy::Consensus, constraints)).await;
    let asked = |answer: &CoordinateResponse| match &answer.result {
        Some(Typed::Consensus(consensus)) => {
            let mut ids: Vec<_> = consensus.agent_results.iter().map(|r| r.agent_id.clone()).collect();
            ids.sort_unstable();
            ids.join(" ")
        }
        other => panic!("{other:?}"),
    };

    let rare = || Constraints { required_capabilities: vec!["rare".to_owned()], ..Constraints::default() };
    assert_eq!(asked(&consensus(rare()).await.unwrap()), "special");
    assert_eq!(calls.count(), 1);
    let two = Constraints { max_agents: 2, ..Constraints::default() };
    assert_eq!(asked(&consensus(two).await.unwrap()), "a b");
    let nobody = Constraints { required_capabilities: vec!["fly".to_owned()], ..Constraints::default() };
    let status = consensus(nobody).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("needs 1 agent(s) with fly, none is registered"), "{status}");

    let sure = |min_confidence| Constraints { min_confidence, ..rare() };
    assert_eq!(consensus(sure(0.7)).await.unwrap().overall_confidence, 0.7);
    let status = consensus(sure(0.71)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("confidence 0.70, and min_confidence is 0.71"), "{status}");

    for (constraints, named) in [
        (sure(1.5), "constraints.min_confidence: 1.5 is not from 0 to 1"),
        (sure(f64::NAN), "constraints.min_confidence: NaN"),
        (Constraints { max_agents: -1, ..rare() }, "constraints.max_agents: -1 is negative"),
        (Constraints { timeout_ms: -1, ..rare() }, "constraints.timeout_ms: -1 is negative"),
    ] {
        let status = consensus(constraints).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(named), "{status}");
    }

    let never = agent("never").capability("wait").answer(|_: Task| std::future::pending());
    world.agent(never).await;
    // The cascade asks for an answer to the end; the caller's bound is the run's.
    let late = Constraints {
        required_capabilities: vec!["wait".to_owned()],
        timeout_ms: 50,
        ..Constraints::default()
    };
    let answer = ask(&mut client, task(Strategy::Cascade, late)).await;
    assert!(answer.is_err() || custom(&answer.unwrap())["decision"].is_null());
    world.stop().await;
}

#[tokio::test]
async fn what_is_sure_enough_for_the_caller_ends_the_cascade() {
    let world = World::start().await;
    let (cheap, _) = says("a", "de", 0.6);
    let (dear, calls) = says("b", "de", 0.9);
    world.agent(cheap).await;
    world.agent(dear).await;
    let mut client = client(&world).await;
    let enough = Constraints { min_confidence: 0.6, ..Constraints::default() };
    let answer = ask(&mut client, task(Strategy::Cascade, enough)).await.unwrap();
    assert_eq!((custom(&answer)["agent"].clone(), calls.count()), (json!("a"), 0));
    world.stop().await;
}

#[tokio::test]
async fn answers_stream_as_they_come() {
    let world = World::start().await;
    let (quick, _) = says("quick", "de", 0.9);
    world.agent(quick).await;
    let go = std::sync::Arc::new(tokio::sync::Notify::new());
    let held = go.clone();
    let slow = agent("slow").answer(move |_: Task| {
        let held = held.clone();
        async move {
            held.notified().await;
            Answer::new("de", 0.5)
        }
    });
    world.agent(slow).await;
    let mut client = client(&world).await;
    let request = task(Strategy::Consensus, Constraints::default());
    let mut stream = client.stream_coordinate(request).await.unwrap().into_inner();
    let mut next = async || soon(stream.message()).await.unwrap();
    let first = next().await.unwrap();
    assert!(first.result.is_none() && first.explanation.contains("has begun"), "{first:?}");
    let mut answer = async |from: &str| {
        let Some(Typed::Consensus(consensus)) = next().await.unwrap().result else { panic!("a consensus") };
        assert_eq!(
            (consensus.agent_results[0].agent_id.as_str(), consensus.recommendation.as_str()),
            (from, "")
        );
    };
    answer("quick").await;
    // It has been told while the other was still thinking.
    go.notify_one();
    answer("slow").await;
    let last = next().await.unwrap();
    let Some(Typed::Consensus(consensus)) = last.result else { panic!("{last:?}") };
    assert_eq!((consensus.recommendation.as_str(), consensus.agent_results.len()), ("de", 2));
    assert!(next().await.is_none());
    world.stop().await;
}

#[tokio::test]
async fn a_task_has_a_history() {
    let world = World::start().await;
    three(&world).await;
    let mut client = client(&world).await;
    let sent =
        task(Strategy::Consensus, Constraints { max_agents: 2, timeout_ms: 9_000, ..Constraints::default() });
    let first = ask(&mut client, sent.clone()).await.unwrap();
    let unsure = Constraints { min_confidence: 0.99, ..Constraints::default() };
    ask(&mut client, task(Strategy::Epistemic, unsure)).await.unwrap_err();
    let other = CoordinateRequest { task_id: "another".to_owned(), ..sent.clone() };
    ask(&mut client, other).await.unwrap();
    let unnamed = CoordinateRequest { task_id: String::new(), ..sent.clone() };
    let unnamed = ask(&mut client, unnamed).await.unwrap().task_id;

    let mut history = async |task_id: &str, limit, since_timestamp| {
        let request = GetHistoryRequest { task_id: task_id.to_owned(), limit, since_timestamp };
        Ok::<_, Status>(client.get_history(request).await?.into_inner().entries)
    };
    let entries = history("task-1", 0, 0).await.unwrap();
    let [newest, oldest] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((oldest.request.as_ref(), oldest.response.as_ref()), (Some(&sent), Some(&first)));
    let explained = newest.response.as_ref().unwrap();
    assert!(
        explained.result.is_none() && explained.explanation.contains("min_confidence is 0.99"),
        "{explained:?}"
    );
    assert_eq!(newest.request.as_ref().unwrap().strategy(), Strategy::Epistemic);
    assert_eq!(history("task-1", 1, 0).await.unwrap()[..], entries[..1]);
    assert_eq!(history("task-1", 0, newest.timestamp + 1).await.unwrap(), []);
    assert_eq!(history(&unnamed, 0, 0).await.unwrap().len(), 1, "a task without a name is given one");
    assert_eq!(history("", 0, 0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(history("task-1", -1, 0).await.unwrap_err().code(), Code::InvalidArgument);
    world.stop().await;
}
