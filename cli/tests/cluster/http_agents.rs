//! Agents that are reached by HTTP, end to end, and questions to many agents.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{
    Json as Body, Router,
    http::StatusCode,
    routing::{get, post},
};
use parallax_proto::{dataplane::v1::fan_out_summary::Ended, registry::registry_client::RegistryClient};
use parallax_sdk::{Answer, Client, Many, Task, TlsOptions, Until, agent};
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tokio::{net::TcpListener, process::Command};
use tonic::Code;

use crate::{
    agents::{registration, says},
    program::run as command,
    world::{World, soon},
};

/// A server in plain HTTP that answers so; it ends with the test's runtime. Returns its endpoint, and what it was asked.
async fn server(answer: Json) -> (String, Arc<Mutex<Vec<Json>>>) {
    let asked: Arc<Mutex<Vec<Json>>> = Arc::default();
    let heard = asked.clone();
    let analyze = async move |Body(question): Body<Json>| {
        let task = question["task"].clone();
        heard.lock().unwrap().push(question);
        match task.as_str() {
            Some("fail") => {
                (StatusCode::UNPROCESSABLE_ENTITY, Body(json!({"detail": "data.text is missing"})))
            }
            _ => (StatusCode::OK, Body(answer.clone())),
        }
    };
    let health = async || Body(json!({"status": "degraded", "message": "one model is down"}));
    let router = Router::new().route("/v1/analyze", post(analyze)).route("/v1/health", get(health));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, asked)
}

/// Waits until a node knows the agent.
async fn known(world: &World, id: &str) -> Json {
    let mut api = world.api().await;
    let asked = async {
        loop {
            let health = api.get(&format!("/api/agents/{id}/health")).await.unwrap();
            if !health["message"].as_str().unwrap().contains("no agent") {
                return health;
            }
        }
    };
    soon(asked).await
}

#[tokio::test]
async fn an_agent_of_json_is_registered_asked_and_part_of_runs() {
    let world = World::start().await;
    let dir = world.data_dir();
    let (endpoint, asked) = server(json!({"value": "de", "confidence": 0.75, "reasoning": "umlauts"})).await;
    let mut registry = RegistryClient::new(world.dial_plain().await);
    let lease = registry.register(registration("web", &endpoint)).await.unwrap().into_inner().lease_id;
    let health = known(&world, "web").await;
    assert_eq!((&health["status"], &health["source"]), (&json!("degraded"), &json!("agent")), "{health}");
    assert_eq!(health["message"], "one model is down");
    let shown = world.get_as("default", "/api/agents/web").await.1;
    assert_eq!((&shown["transport"], &shown["endpoint"]), (&json!("http"), &json!(endpoint)));

    let ended = command(dir, &["agent", "test", "web", "-t", "tell", "--data", "{\"text\": \"Füße\"}"]).await;
    assert!(ended.code == 0 && ended.out.starts_with("de ~ 0.75\numlauts"), "{} {}", ended.out, ended.err);
    assert_eq!(asked.lock().unwrap().remove(0)["data"], json!({"text": "Füße"}));
    let ended = command(dir, &["agent", "test", "web", "-t", "fail"]).await;
    assert!(ended.code == 1 && ended.err.contains("data.text is missing"), "{}", ended.err);
    assert_eq!(command(dir, &["agent", "status", "web"]).await.code, 1, "it is degraded");

    let run = world.run("consensus-builder", json!({"task": "tell"})).await;
    assert_eq!((&run["status"], &run["result"]["decision"]), (&json!("completed"), &json!("de")), "{run}");
    let question = asked.lock().unwrap().pop().unwrap();
    assert_eq!((&question["task"], &question["pattern_name"]), (&json!("tell"), &json!("ConsensusBuilder")));
    assert!(question["timeout_ms"].as_u64().unwrap() > 0);
    assert!(!lease.is_empty());
    drop(registry);
    world.stop().await;
}

#[tokio::test]
async fn where_http_may_go_is_told() {
    let world = World::start().await;
    let mut plain = RegistryClient::new(world.dial_plain().await);
    let mut own = RegistryClient::new(world.dial("default", Kind::Agent, "a").await);
    for (endpoint, words) in [
        ("http://192.0.2.1:80/x", "is not on this machine, where alone plaintext may go; give an https URL"),
        ("ftp://localhost/x", "is neither an http nor an https URL"),
        ("https://me:secret@h/", "carries a user's name or password"),
        ("https://h/?q=1", "has a query or a fragment"),
    ] {
        let status = plain.register(registration("a", endpoint)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status.message().starts_with("agent.endpoint: ") && status.message().contains(words),
            "{status}"
        );
    }
    let status = own.register(registration("a", "http://127.0.0.1:1/")).await.unwrap_err();
    assert!(status.message().contains("is plain HTTP"), "{status}");
    own.register(registration("a", "https://agents.example/a")).await.unwrap();
    let shown = world.get_as("default", "/api/agents/a").await.1;
    assert_eq!(shown["transport"], "https");
    drop((plain, own));
    world.stop().await;
}

#[tokio::test]
async fn registration_and_renewal_over_http() {
    let world = World::start().await;
    let mut api = world.api().await;
    let agent = json!({
        "id": "web", "endpoint": "https://agents.example/a", "capabilities": ["tell"], "ttlSeconds": 30,
        "metadata": {"labels": {"cost": "2"}, "defaultConfidence": 0.6},
    });
    let lease = api.post("/api/agents", &agent).await.unwrap();
    assert_eq!(lease["ttlSeconds"], 30);
    let shown = api.get("/api/agents/web").await.unwrap();
    assert_eq!((&shown["ttlSeconds"], &shown["metadata"]["labels"]), (&json!(30), &json!({"cost": "2"})));
    assert_eq!(shown["metadata"]["defaultConfidence"], 0.6);
    let renew = json!({"leaseId": lease["leaseId"], "ttlSeconds": 40});
    assert_eq!(api.post("/api/agents/web/renew", &renew).await.unwrap()["ttlSeconds"], 40);
    assert!(api.post("/api/agents/other/renew", &renew).await.is_err(), "the lease is another's");
    api.delete("/api/agents/web").await.unwrap();
    let gone = api.post("/api/agents/web/renew", &renew).await.unwrap_err().to_string();
    assert!(gone.contains("register again"), "{gone}");
    let misspelt = json!({"id": "web", "endpoint": "https://h/", "capability": "tell"});
    let refused = api.post("/api/agents", &misspelt).await.unwrap_err().to_string();
    assert!(refused.contains("unknown field `capability`"), "{refused}");
    drop(api);
    world.stop().await;
}

#[tokio::test]
async fn the_example_in_python_is_an_agent() {
    let python = Path::new("/usr/bin/python3");
    if !python.is_file() {
        assert!(std::env::var_os("PARALLAX_TEST_REQUIRE").is_none(), "there is no python3");
        println!("SKIPPED: there is no python3");
        return;
    }
    let world = World::start().await;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/python/examples/http_agent.py");
    let mut program = Command::new(python);
    program.arg(example).env("PARALLAX_API_URL", format!("http://{}", world.http()));
    let mut program = program.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut api = world.api().await;
    let registered = async { while api.get("/api/agents/py-greeter").await.is_err() {} };
    soon(registered).await;
    assert_eq!(known(&world, "py-greeter").await["status"], "healthy");
    let greet = json!({"task": "greet", "data": {"name": "Ada"}});
    let answer = api.post("/api/agents/py-greeter/test", &greet).await.unwrap();
    assert_eq!((&answer["result"], &answer["confidence"]), (&json!("Hello, Ada!"), &json!(0.9)));
    let nameless = api.post("/api/agents/py-greeter/test", &json!({"task": "greet"})).await.unwrap_err();
    assert!(nameless.to_string().contains("data.name is missing"), "{nameless}");
    program.kill().await.unwrap();
    drop(api);
    world.stop().await;
}

#[tokio::test]
async fn many_agents_are_asked_by_program_and_command() {
    let world = World::start().await;
    let dir = world.data_dir();
    let (endpoint, _) = server(json!({"value": "web", "confidence": 0.4})).await;
    RegistryClient::new(world.dial_plain().await).register(registration("web", &endpoint)).await.unwrap();
    world.agent(says("sure", "s", 0.9).0).await;
    let hanging = agent("hangs").capability("sleep").answer(|_: Task| async {
        std::future::pending::<()>().await;
        Answer::new("never", 1.0)
    });
    world.agent(hanging).await;
    for id in ["web", "sure", "hangs"] {
        known(&world, id).await;
    }

    let tls = TlsOptions::Local { data_dir: dir.into() };
    let client = Client::new(world.grpc(), world.data_plane(), &tls).unwrap();
    let mut many = Many::capability("tell").until(Until::Quorum(2));
    many.agents.push("hangs".to_owned());
    let mut asked = soon(client.ask_many(&many, Task::new("tell", json!({})))).await.unwrap();
    let mut outcomes = Vec::new();
    while let Some(outcome) = soon(asked.next()).await.unwrap() {
        outcomes.push((outcome.agent, outcome.result.map(|answer| answer.value).map_err(|(cause, _)| cause)));
    }
    outcomes.sort_by(|a, b| a.0.cmp(&b.0));
    let cancelled = parallax_proto::dataplane::v1::failure::Cause::Cancelled;
    let expected = [("hangs", Err(cancelled)), ("sure", Ok(json!("s"))), ("web", Ok(json!("web")))];
    assert_eq!(outcomes, expected.map(|(id, result)| (id.to_owned(), result)));
    assert_eq!(asked.summary().unwrap().ended(), Ended::Quorum);
    let mut refused = client.ask_many(&Many::default(), Task::new("tell", json!({}))).await.unwrap();
    assert!(soon(refused.next()).await.unwrap_err().to_string().contains("names nobody to ask"));

    let ask = async |rest: &[&str]| {
        let ended = command(dir, &[&["agent", "ask", "--task", "tell"][..], rest].concat()).await;
        (ended.code, ended.out, ended.err)
    };
    let (code, out, err) = ask(&["--capability", "tell"]).await;
    assert!(code == 0 && out.contains("all: 2 asked, 2 answered, 0 failed, 0 cancelled"), "{out} {err}");
    let (code, out, err) =
        ask(&["--agent", "hangs,sure", "--capability", "tell", "--mode", "quorum", "--n", "2", "--json"])
            .await;
    let shown: Json = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &shown["ended"], &shown["cancelled"]), (0, &json!("quorum"), &json!(1)), "{out} {err}");
    let (code, out, err) = ask(&["--agent", "sure,nobody", "--mode", "quorum", "--n", "2"]).await;
    assert!(code == 1 && out.contains("impossible: ") && err.contains("too few"), "{out} {err}");
    let (code, out, err) = ask(&["--agent", "hangs,sure", "--mode", "best-effort", "--by", "200ms"]).await;
    assert!(code == 0 && out.contains("deadline: 2 asked, 1 answered, 0 failed, 1 cancelled"), "{out} {err}");
    let (code, out, err) = ask(&["--capability", "tell", "--mode", "ordered", "--confidence", "0.8"]).await;
    assert!(code == 0 && out.contains("confidence: "), "{out} {err}");
    let (code, _, err) = ask(&["--capability", "tell", "--mode", "ordered", "--confidence", "1"]).await;
    assert!(code == 4 && err.contains("nobody was as sure as that"), "{err}");
    for wrong in [&["--capability", "tell", "--mode", "quorum"][..], &["--agent", "sure", "--n", "1"], &[]] {
        let (code, _, err) = ask(wrong).await;
        assert_eq!(code, 2, "{err}");
    }
    let (code, _, err) = ask(&["--capability", "tel"]).await;
    assert!(code == 1 && err.contains("did you mean tell?"), "{err}");
    world.stop().await;
}
