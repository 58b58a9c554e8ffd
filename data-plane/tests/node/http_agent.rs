//! Agents that are reached by HTTP, with real servers.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parallax_proto::{
    confidence::{
        AgentRequest, ConfidenceResult, confidence_agent_client::ConfidenceAgentClient,
        health::Status as Condition,
    },
    controlplane::v1::Transport,
};
use parallax_runtime::{
    store::CallOutcome,
    wire::{self, struct_from_json},
};
use parallax_security::{Alpn, Kind, Plaintext};
use prost::Message;
use serde_json::{Value as Json, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::{JoinHandle, JoinSet},
};
use tonic::{
    Code,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tower::ServiceExt;

use crate::{
    agent::framed,
    proxy::{ANALYZE, Raw, ask, bare, call, request},
    trouble::{Gone, hears},
    world::{World, record, within},
};

/// A server; its connections end with it.
struct Server {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Server {
    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    async fn die(self) -> SocketAddr {
        self.accepting.abort();
        assert!(self.accepting.await.unwrap_err().is_cancelled());
        self.addr
    }
}

/// A server of HTTP/1.1, and of HTTP/2 over TLS, in the name of an agent.
async fn serve<F, A>(world: &World, id: &str, addr: SocketAddr, script: F) -> Server
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (script, connections) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
    let acceptor = world.tls("default", Kind::Agent, id).acceptor(Alpn::Http, Plaintext::Loopback);
    let listener = TcpListener::bind(addr).await.unwrap();
    let (addr, counter) = (listener.local_addr().unwrap(), connections.clone());
    let accepting = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, SeqCst);
            let (acceptor, script) = (acceptor.clone(), script.clone());
            tasks.spawn(async move {
                let Ok((stream, _)) = acceptor.accept(socket).await else { return };
                let service = service_fn(move |request| {
                    let answer = script(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Server { addr, connections, accepting }
}

fn register(world: &World, id: &str, addr: SocketAddr, transport: Transport) {
    let scheme = if transport == Transport::Https { "https" } else { "http" };
    let mut record = record(id, addr, transport);
    record.registration.as_mut().unwrap().endpoint = format!("{scheme}://{addr}/base/");
    world.control_plane.put(record);
}

/// An agent in plain HTTP, registered.
async fn agent<F, A>(world: &World, id: &str, script: F) -> Server
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let server = serve(world, id, ([127, 0, 0, 1], 0).into(), script).await;
    register(world, id, server.addr, Transport::Http);
    server
}

fn says(code: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::new(body.into())).unwrap()
}

fn sure(confidence: f64) -> Response<Full<Bytes>> {
    says(200, json!({"value": "de", "confidence": confidence}).to_string())
}

fn result(raw: &Raw) -> ConfidenceResult {
    assert_eq!(raw.status().code(), Code::Ok, "{}", raw.status());
    ConfidenceResult::decode(&raw.bytes[5..]).unwrap()
}

type Seen = Arc<Mutex<Vec<(Method, String, Version, HeaderMap, Bytes)>>>;

/// Writes down what it is asked.
async fn listens(request: Request<Incoming>, seen: Seen) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    seen.lock().await.push((head.method, head.uri.path().to_owned(), head.version, head.headers, body));
    let answer = json!({
        "value": {"language": "de"}, "confidence": 0.75, "reasoning": "umlauts", "uncertainties": ["short"],
        "metadata": {"k": "v"},
    });
    let mut said = says(200, answer.to_string());
    let load = "TEXT named_metrics.in_flight=3,named_metrics.service_time_ms=12.5";
    said.headers_mut().insert(wire::LOAD, load.parse().unwrap());
    said
}

#[tokio::test]
async fn any_client_reaches_it_and_it_is_asked_in_json() {
    let world = World::new().await;
    let seen = Seen::default();
    let heard = seen.clone();
    let _agent = agent(&world, "a", move |request| listens(request, heard.clone())).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;

    let data = json!({"text": "Füße", "n": 3});
    let asked = AgentRequest {
        task_id: "t1".into(),
        task_description: "which language?".into(),
        data: Some(struct_from_json(data.as_object().unwrap())),
        timeout_ms: 30_000,
        pattern_name: "voting".into(),
        ..Default::default()
    };
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let metadata = [
        (wire::CAPABILITY, "only-a"),
        (wire::EFFECT, "run-1/7"),
        (wire::ATTEMPT, "2"),
        (wire::CLIENT_ID, "somebody-else"),
        ("traceparent", trace),
        ("grpc-timeout", "20S"),
        ("some-bin", "AAAA"),
    ];
    let raw = call(&operator, ANALYZE, framed(&asked.encode_to_vec()), &metadata).await;
    let answer = result(&raw);
    assert_eq!(answer.value_json, r#"{"language":"de"}"#);
    assert_eq!((answer.confidence, answer.reasoning.as_str()), (0.75, "umlauts"));
    assert_eq!((answer.agent_id.as_str(), &answer.uncertainties), ("a", &vec!["short".to_owned()]));
    assert!(answer.timestamp.is_some() && answer.metadata["k"] == "v");
    assert_eq!(raw.trailers[wire::SERVED_BY], "a");
    assert!(raw.headers.contains_key(wire::LOAD), "its load is heard as that of others");

    let (method, path, version, headers, body) = seen.lock().await.remove(0);
    assert_eq!((method, path.as_str(), version), (Method::POST, "/base/analyze", Version::HTTP_11));
    let asked: Json = serde_json::from_slice(&body).unwrap();
    assert_eq!((&asked["task_description"], &asked["data"]), (&json!("which language?"), &data));
    let left: u64 = headers[wire::TIMEOUT_MS].to_str().unwrap().parse().unwrap();
    assert!((1..=20_000).contains(&left), "the caller's deadline is the shorter one");
    assert_eq!(asked["timeout_ms"], left);
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-length", &body.len().to_string()),
        (wire::EFFECT, "run-1/7"),
        (wire::ATTEMPT, "2"),
        (wire::CLIENT_ID, "spiffe://parallax/default/operator/caller"),
        ("traceparent", trace),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    for own in ["grpc-timeout", "te", "some-bin", wire::AGENT, wire::CAPABILITY] {
        assert!(!headers.contains_key(own), "{own} is gRPC's or ours");
    }
    let sample = world.samples("a", 1).await.remove(0);
    assert_eq!((sample.outcome, sample.confidence.map(|c| c.get())), (CallOutcome::Answered, Some(0.75)));
}

/// A generated client whose calls are for this agent.
fn client_of(
    channel: &Channel,
    agent: &'static str,
) -> ConfidenceAgentClient<InterceptedService<Channel, impl Interceptor>> {
    ConfidenceAgentClient::with_interceptor(channel.clone(), move |mut request: tonic::Request<()>| {
        request.metadata_mut().insert(wire::AGENT, agent.parse().unwrap());
        Ok(request)
    })
}

#[tokio::test]
async fn every_method_of_the_contract_is_answered() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |request| async move {
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/base/health") => says(200, r#"{"status": "degraded", "queue": 3}"#),
            ("POST", "/base/analyze") => sure(0.5),
            _ => says(404, ""),
        }
    })
    .await;
    let _mute = agent(&world, "mute", |_| async { says(404, "") }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let mut client = client_of(&operator, "a");
    let mut stream = client.stream_analyze(AgentRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().value_json, "\"de\"");
    assert_eq!(stream.message().await.unwrap(), None);
    let capabilities = client.get_capabilities(()).await.unwrap().into_inner();
    assert_eq!((capabilities.agent_id.as_str(), capabilities.name.as_str()), ("a", "a"));
    assert_eq!(capabilities.capabilities, ["test", "only-a"]);
    assert!(capabilities.expertise_level.is_nan() && capabilities.capability_scores.is_empty());
    let health = client.health_check(()).await.unwrap().into_inner();
    assert_eq!((health.status(), health.details["queue"].as_str()), (Condition::Degraded, "3"));

    let silent = client_of(&operator, "mute").health_check(()).await.unwrap_err();
    assert_eq!(silent.code(), Code::Unimplemented);
    let path = "/parallax.confidence.ConfidenceAgent/Dream";
    let raw = call(&operator, path, framed(b""), &[(wire::AGENT, "a")]).await;
    assert_eq!(raw.status().code(), Code::Unimplemented);
    assert!(raw.status().message().contains("Dream"), "{}", raw.status());
    let raw = call(&operator, ANALYZE, Bytes::from_static(b"\x01\0\0\0\0"), &[(wire::AGENT, "a")]).await;
    assert_eq!(raw.status().code(), Code::Unimplemented, "compressed");
}

#[tokio::test]
async fn failures_are_told_in_the_agents_words() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let asked: Json = serde_json::from_slice(&body).unwrap();
        match asked["task"].as_str().unwrap() {
            "busy" => {
                let mut busy = says(429, r#"{"title": "Busy", "detail": "three are waiting"}"#);
                busy.headers_mut().insert("retry-after", "2".parse().unwrap());
                busy
            }
            "away" => says(503, "maintenance"),
            "broken" => says(500, r#"{"error": "no idea"}"#),
            "bad" => says(422, r#"{"detail": "data.text is missing"}"#),
            "garbage" => says(200, "<html>"),
            "large" => says(200, vec![b' '; 70_000]),
            "moved" => says(307, ""),
            "nan" => says(200, r#"{"value": NaN, "confidence": NaN}"#),
            "over" => says(200, r#"{"value": [1, {"a": null}], "confidence": 7}"#),
            _ => says(200, r#"{"value": "unstated"}"#),
        }
    })
    .await;
    let node = world
        .node_with(|config| {
            config.max_message = 65_536;
            config.breaker.failures = 1000;
            config.breaker.ratio_calls = 1000;
            // Nobody rests here.
            config.breaker.longest_hint = std::time::Duration::ZERO;
        })
        .await;
    within("the node is ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    let ask = async |task: &str| {
        let request = AgentRequest { task_description: task.into(), ..Default::default() };
        call(&operator, ANALYZE, framed(&request.encode_to_vec()), &[(wire::AGENT, "a")]).await
    };
    for (task, code, words) in [
        ("busy", Code::ResourceExhausted, "HTTP 429 Too Many Requests at /base/analyze: three are waiting"),
        ("away", Code::Unavailable, ": maintenance"),
        ("broken", Code::Internal, ": no idea"),
        ("bad", Code::InvalidArgument, "data.text is missing"),
        ("garbage", Code::Internal, "not JSON"),
        ("large", Code::Internal, "more than 65536 bytes"),
        ("moved", Code::Internal, "not followed"),
    ] {
        let raw = ask(task).await;
        let status = raw.status();
        assert_eq!(status.code(), code, "{task}: {status}");
        assert!(status.message().contains(words), "{task}: {status}");
        let pushback = raw.trailers.get("grpc-retry-pushback-ms").map(|ms| ms.to_str().unwrap().to_owned());
        assert_eq!(pushback.as_deref(), (task == "busy").then_some("2000"));
    }
    let (nan, over, unstated) =
        (result(&ask("nan").await), result(&ask("over").await), result(&ask("").await));
    assert!(nan.value_json == "null" && nan.confidence.is_nan() && unstated.confidence.is_nan());
    assert_eq!((over.value_json.as_str(), over.confidence), (r#"[1,{"a":null}]"#, 1.0));
    let too_much = AgentRequest { task_description: "x".repeat(70_000), ..Default::default() };
    let raw = call(&operator, ANALYZE, framed(&too_much.encode_to_vec()), &[(wire::AGENT, "a")]).await;
    assert_eq!(raw.status().code(), Code::InvalidArgument, "{}", raw.status());
    assert!(raw.status().message().contains("larger than 65536 bytes"), "{}", raw.status());
}

/// One that begins and never ends; it tells when it has begun, and when it was cancelled.
async fn hanging(world: &World, transport: Transport) -> (Server, mpsc::UnboundedReceiver<&'static str>) {
    let (tell, told) = mpsc::unbounded_channel();
    let script = move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let _body = request.into_body().collect().await.unwrap();
            tell.send("began").unwrap();
            let _gone = Gone(tell);
            pending().await
        }
    };
    let server = serve(world, "slow", ([127, 0, 0, 1], 0).into(), script).await;
    register(world, "slow", server.addr, transport);
    (server, told)
}

#[tokio::test]
async fn a_deadline_acts_from_outside_and_a_cancellation_reaches_the_agent() {
    for transport in [Transport::Http, Transport::Https] {
        let world = World::new().await;
        let (_agent, mut told) = hanging(&world, transport).await;
        let node = world.ready_node().await;
        let metadata = [(wire::AGENT, "slow"), ("grpc-timeout", "1S")];
        let raw = bare(&node, request(ANALYZE, framed(b""), &metadata)).await;
        assert_eq!(raw.status().code(), Code::DeadlineExceeded, "{}", raw.status());
        hears(&mut told, "began").await;
        hears(&mut told, "gone").await;
        assert_eq!(world.samples("slow", 1).await[0].outcome, CallOutcome::DeadlineExceeded);

        let operator = world.operator(&node).await;
        let asked = operator.oneshot(request(ANALYZE, framed(b""), &[(wire::AGENT, "slow")]));
        let asked = tokio::spawn(asked);
        hears(&mut told, "began").await;
        node.shows("slow", "in_flight", 1).await;
        asked.abort();
        hears(&mut told, "gone").await;
        node.shows("slow", "in_flight", 0).await;
        assert_eq!(world.samples("slow", 2).await[1].outcome, CallOutcome::Cancelled);
    }
}

#[tokio::test]
async fn connections_are_few_and_kept() {
    for transport in [Transport::Http, Transport::Https] {
        let world = World::new().await;
        let script = |_| async {
            tokio::task::yield_now().await;
            sure(0.5)
        };
        let server = serve(&world, "a", ([127, 0, 0, 1], 0).into(), script).await;
        register(&world, "a", server.addr, transport);
        let node = world.node_with(|config| config.http_calls_per_agent = 3).await;
        within("the node is ready", node.plane.readiness().ready()).await;
        let operator = world.operator(&node).await;
        for _ in 0..200 {
            result(&ask(&operator, "a").await);
        }
        let one_by_one = server.connections();
        assert!(one_by_one <= 2, "{one_by_one} connections for calls that came one after the other");
        let calls: Vec<_> = (0..60)
            .map(|_| {
                let operator = operator.clone();
                tokio::spawn(async move { ask(&operator, "a").await })
            })
            .collect();
        for call in calls {
            result(&call.await.unwrap());
        }
        assert!(
            server.connections() <= 4,
            "{} connections; three calls may be in flight",
            server.connections()
        );
    }
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.node_with(|config| config.http_idle = Duration::from_millis(20)).await;
    within("the node is ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for _ in 0..3 {
        result(&ask(&operator, "a").await);
        node.shows("a", "connections", 0).await;
    }
}

#[tokio::test]
async fn an_agent_that_restarts_is_found_again() {
    let world = World::new().await;
    let first = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    result(&ask(&operator, "a").await);
    let addr = first.die().await;
    node.shows("a", "connections", 0).await;
    let raw = ask(&operator, "a").await;
    assert_eq!(raw.status().code(), Code::Unavailable, "{}", raw.status());
    assert!(raw.status().message().contains("agent a at http://127.0.0.1:"), "{}", raw.status());
    let _second = serve(&world, "a", addr, |_| async { sure(0.6) }).await;
    // The pause after a failed connect goes by.
    let again = crate::world::until("it is reached", || async {
        let raw = ask(&operator, "a").await;
        (raw.status().code() == Code::Ok).then_some(raw)
    });
    assert_eq!(result(&again.await).confidence, 0.6);
}

#[tokio::test]
async fn the_breaker_opens_for_it_and_one_probe_closes_it() {
    let world = World::new().await;
    let (well, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (is_well, counted) = (well.clone(), asked.clone());
    let _agent = agent(&world, "a", move |_| {
        counted.fetch_add(1, SeqCst);
        let well = is_well.load(SeqCst) > 0;
        async move { if well { sure(0.5) } else { says(500, "") } }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let failures = node_failures(&operator).await;
    node.shows("a", "breaker", "open").await;
    assert_eq!(asked.load(SeqCst), failures);
    well.store(1, SeqCst);
    crate::world::until("the probe is let in", || async {
        (ask(&operator, "a").await.status().code() == Code::Ok).then_some(())
    })
    .await;
    node.shows("a", "breaker", "closed").await;
}

/// Asks until the breaker opens; how many calls that took.
async fn node_failures(operator: &Channel) -> usize {
    for n in 0..100 {
        let status = ask(operator, "a").await.status();
        if status.code() == Code::Unavailable {
            return n;
        }
        assert_eq!(status.code(), Code::Internal);
    }
    panic!("the breaker stays closed");
}

#[tokio::test]
async fn over_tls_the_agent_must_be_itself() {
    let world = World::new().await;
    let seen = Seen::default();
    let heard = seen.clone();
    let script = move |request| listens(request, heard.clone());
    let server = serve(&world, "a", ([127, 0, 0, 1], 0).into(), script).await;
    register(&world, "a", server.addr, Transport::Https);
    // It has the certificate of another.
    register(&world, "b", server.addr, Transport::Https);
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    assert_eq!(result(&ask(&operator, "a").await).confidence, 0.75);
    assert_eq!(seen.lock().await[0].2, Version::HTTP_2, "as they agreed");
    let refused = ask(&operator, "b").await.status();
    assert_eq!(refused.code(), Code::Unavailable);
    let words = "spiffe://parallax/default/agent/a is there, not spiffe://parallax/default/agent/b";
    assert!(refused.message().contains(words), "{refused}");
    assert_eq!(seen.lock().await.len(), 1, "nothing was sent to the wrong one");
}
