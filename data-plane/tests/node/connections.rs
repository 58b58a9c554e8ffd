//! How the node keeps its connections to agents.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::join_all;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parallax_proto::controlplane::v1::Transport;
use parallax_runtime::wire;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tonic::Code;

use crate::{
    agent::{agent, framed, plain_agent, sure},
    cache::metric,
    proxy::{ANALYZE, Bare, ask, bare, call, request},
    trouble::{hanging, hears},
    world::{World, record, until, within},
};

#[tokio::test]
async fn a_thousand_calls_in_a_row_and_two_hundred_at_once_open_two_connections_at_most() {
    let world = World::new().await;
    let (gate, waiting) = (Arc::new(Semaphore::new(1_000)), Arc::new(AtomicUsize::new(0)));
    let (barrier, count) = (gate.clone(), waiting.clone());
    let agent = agent(&world, "a", move |_| {
        let (barrier, count) = (barrier.clone(), count.clone());
        async move {
            count.fetch_add(1, SeqCst);
            barrier.acquire().await.unwrap().forget();
            sure(0.5)
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for _ in 0..1_000 {
        assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    }
    assert_eq!(agent.connections(), 1);
    let calls = join_all((0..200).map(|_| ask(&operator, "a")));
    let all_wait = async {
        until("all wait at the agent at once", || async { (waiting.load(SeqCst) == 1_200).then_some(()) })
            .await;
        assert_eq!(node.agent("a").await.unwrap()["in_flight"], 200);
        gate.add_permits(200);
    };
    let (calls, ()) = tokio::join!(calls, all_wait);
    assert!(calls.iter().all(|raw| raw.status().code() == Code::Ok));
    assert!(agent.connections() <= 2, "{}", agent.connections());
    // So many are stored however fast they come; others may be too many for a second, and are counted.
    until("each is stored, or counted as dropped", || async {
        let stored = world.samples("a", 1_024).await.len() as u64;
        (stored + metric(&node, "parallax_confidence_samples_dropped_total").await == 1_200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_goodbye_loses_no_call() {
    let world = World::new().await;
    let agent = agent(&world, "a", |_| async {
        tokio::task::yield_now().await;
        sure(0.5)
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for round in 0..40 {
        let calls = join_all((0..20).map(|_| ask(&operator, "a")));
        let goodbye = async {
            tokio::task::yield_now().await;
            agent.say_goodbye();
        };
        let (calls, ()) = tokio::join!(calls, goodbye);
        for raw in calls {
            assert_eq!(raw.status().code(), Code::Ok, "round {round}: {:?}", raw.status());
        }
    }
    assert!(agent.connections() > 10, "it did say goodbye: {}", agent.connections());
}

#[tokio::test]
async fn a_call_that_is_under_way_outlives_a_goodbye() {
    let world = World::new().await;
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (barrier, beginning) = (gate.clone(), begun.clone());
    let agent = agent(&world, "a", move |_| {
        let (barrier, beginning) = (barrier.clone(), beginning.clone());
        async move {
            beginning.add_permits(1);
            barrier.acquire().await.unwrap().forget();
            sure(0.5)
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let caller = operator.clone();
    let early = tokio::spawn(async move { ask(&caller, "a").await });
    begun.acquire().await.unwrap().forget();
    agent.say_goodbye();
    let late = tokio::spawn(async move { ask(&operator, "a").await });
    within("the second call arrives", begun.acquire()).await.unwrap().forget();
    gate.add_permits(2);
    assert_eq!(early.await.unwrap().status().code(), Code::Ok);
    assert_eq!(late.await.unwrap().status().code(), Code::Ok);
}

#[tokio::test]
async fn a_request_that_was_refused_unseen_goes_out_again_and_any_other_does_not() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.control_plane.put(record("h2", listener.local_addr().unwrap(), Transport::Plaintext));
    let streams = Arc::new(AtomicUsize::new(0));
    let seen = streams.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                    match seen.fetch_add(1, SeqCst) {
                        0 => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        1 => {
                            tokio::spawn(async move {
                                let body = request.body_mut().data().await.unwrap().unwrap();
                                assert_eq!(body, framed(b"once"));
                                let head =
                                    http::Response::builder().header("content-type", "application/grpc");
                                let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
                                let mut trailers = http::HeaderMap::new();
                                trailers.insert("grpc-status", 0.into());
                                send.send_trailers(trailers).unwrap();
                            });
                        }
                        _ => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                    }
                }
            });
        }
    });
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let raw = call(&operator, ANALYZE, framed(b"once"), &[(wire::AGENT, "h2")]).await;
    assert_eq!(raw.status().code(), Code::Ok, "{:?}", raw.status());
    assert_eq!(streams.load(SeqCst), 2);
    let raw = call(&operator, ANALYZE, framed(b"once"), &[(wire::AGENT, "h2")]).await;
    assert_eq!(raw.status().code(), Code::Internal);
    assert_eq!(streams.load(SeqCst), 3, "it may have been processed");
}

/// An agent of one port that takes so many streams at a time on a connection, and counts.
struct Narrow {
    connections: AtomicUsize,
    calls: AtomicUsize,
    most: AtomicUsize,
}

async fn narrow(world: &World, id: &str, streams: u32) -> Arc<Narrow> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.control_plane.put(record(id, listener.local_addr().unwrap(), Transport::Plaintext));
    let seen = Arc::new(Narrow { connections: 0.into(), calls: 0.into(), most: 0.into() });
    let counted = seen.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            counted.connections.fetch_add(1, SeqCst);
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::Builder::new()
                    .max_concurrent_streams(streams)
                    .handshake::<_, bytes::Bytes>(socket)
                    .await
                    .unwrap();
                let open = Arc::new(AtomicUsize::new(0));
                while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                    counted.calls.fetch_add(1, SeqCst);
                    counted.most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
                    let open = open.clone();
                    tokio::spawn(async move {
                        while request.body_mut().data().await.is_some() {
                            tokio::task::yield_now().await;
                        }
                        let head = http::Response::builder().header("content-type", "application/grpc");
                        let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", 0.into());
                        open.fetch_sub(1, SeqCst);
                        send.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    seen
}

#[tokio::test]
async fn an_agent_gets_as_many_calls_at_a_time_as_it_takes_and_the_others_wait() {
    let world = World::new().await;
    let mut agents = Vec::new();
    for streams in 1..=5 {
        agents.push((streams, narrow(&world, &format!("takes-{streams}"), streams).await));
    }
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for (streams, agent) in agents {
        let id = format!("takes-{streams}");
        // The first of them come before the agent has said how many it takes.
        let calls = join_all((0..60).map(|_| ask(&operator, &id)));
        for raw in within("all are answered", calls).await {
            assert_eq!(raw.status().code(), Code::Ok, "{streams}: {:?}", raw.status());
        }
        let most = agent.most.load(SeqCst);
        assert!(most <= streams as usize, "{most} of {streams}");
        assert_eq!(agent.calls.load(SeqCst), 60, "none was refused and sent again");
        assert!(agent.connections.load(SeqCst) <= 2);
    }
}

#[tokio::test]
async fn connections_end_when_the_agent_leaves_and_its_calls_have_ended() {
    let world = World::new().await;
    let (_agent, mut told) = hanging(&world, "a").await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let asked = tokio::spawn(async move { ask(&operator, "a").await });
    hears(&mut told, "began").await;
    let connections = r#"parallax_upstream_connections{tenant="default",agent="a"}"#;
    let shown = |n: usize| {
        let (line, node) = (format!("{connections} {n}\n"), &node);
        async move { node.admin("/metrics").await.1.contains(&line).then_some(()) }
    };
    until("one connection", || shown(1)).await;
    world.control_plane.remove("a");
    until("it has left", || async { node.agent("a").await.is_none().then_some(()) }).await;
    assert!(shown(1).await.is_some(), "a call is on it");
    asked.abort();
    hears(&mut told, "gone").await;
    until("no connection", || shown(0)).await;
}

#[tokio::test]
async fn a_silent_connection_is_replaced_after_a_deadline() {
    let world = World::new().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let agent = agent(&world, "a", move |request: Request<Incoming>| {
        let second = counted.fetch_add(1, SeqCst) == 1;
        async move {
            if second {
                std::future::pending::<Infallible>().await;
            }
            request.into_body().collect().await.unwrap();
            sure(0.5)
        }
    })
    .await;
    let node = world.node_with(|config| config.silence = Duration::from_millis(20)).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    // Connecting takes its time: the deadline is the next call's alone.
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    let metadata = [(wire::AGENT, "a"), ("grpc-timeout", "50m")];
    let raw = bare(&node, request(ANALYZE, framed(b""), &metadata)).await;
    assert_eq!(raw.status().code(), Code::DeadlineExceeded);
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    assert_eq!(agent.connections(), 2);
}

#[tokio::test]
async fn refusals_and_cancellations_by_the_thousand_cost_nobody_their_connection() {
    let world = World::new().await;
    // One that answers before it has read is at fault when requests come for what it has answered, and h2 counts that.
    let reads = |request: Request<Incoming>| async {
        _ = request.into_body().collect().await;
        sure(0.5)
    };
    let agent = agent(&world, "a", reads).await;
    let node = world.ready_node().await;
    let mut caller = Bare::connect(&node).await;
    let to = |id: &'static str| request(ANALYZE, framed(b""), &[(wire::AGENT, id)]);
    for _ in 0..3_000 {
        assert_eq!(caller.send(to("nobody")).await.status().code(), Code::NotFound);
    }
    // Dropped at any moment, so that answers cross cancellations.
    for n in 0..6_000 {
        let mut asked = Box::pin(caller.send(to("a")));
        for _ in 0..n % 7 {
            if futures::poll!(&mut asked).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(asked);
        // Not faster than the node hears of it: that would be an attack.
        if n % 100 == 0 {
            let raw = caller.send(to("a")).await;
            assert_eq!(raw.status().code(), Code::Ok, "{n}: {:?}", raw.status());
        }
    }
    assert_eq!(agent.connections(), 1);
    node.shows("a", "in_flight", 0).await;
}

/// Stands before an agent in plaintext, and counts the frames of a type that are sent to it.
async fn counting(agent: SocketAddr, kind: u8) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (counted, far) = (counted.clone(), TcpStream::connect(agent).await.unwrap());
            let ((mut asked, mut answers), (mut answered, mut asks)) = (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answered, &mut answers).await });
            tokio::spawn(async move {
                let mut bytes = vec![0; 24];
                asked.read_exact(&mut bytes).await?;
                asks.write_all(&bytes).await?;
                loop {
                    let mut head = [0; 9];
                    asked.read_exact(&mut head).await?;
                    // No answer to a ping of the agent's own.
                    counted.fetch_add(usize::from(head[3] == kind && head[4] == 0), SeqCst);
                    bytes.resize(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize, 0);
                    asked.read_exact(&mut bytes).await?;
                    asks.write_all(&head).await?;
                    asks.write_all(&bytes).await?;
                }
                #[allow(unreachable_code)]
                Ok::<(), std::io::Error>(())
            });
        }
    });
    (addr, count)
}

/// gRPC's C core closes a connection on which it is pinged for the third time without data between.
#[tokio::test]
async fn agents_hear_of_cancellations_without_being_pinged() {
    let world = World::new().await;
    let (began, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (beginning, ending) = (began.clone(), ended.clone());
    let agent = plain_agent(&world, "a", move |_| {
        beginning.fetch_add(1, SeqCst);
        let ending = Ending(ending.clone());
        async move {
            let _ending = ending;
            std::future::pending().await
        }
    })
    .await;
    let (addr, pings) = counting(agent.addr, 6).await;
    world.control_plane.put(record("a", addr, Transport::Plaintext));
    let node = world.node_with(|config| config.limits.least = 500).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let mut calls = JoinSet::new();
    for _ in 0..90 {
        let operator = operator.clone();
        calls.spawn(async move { ask(&operator, "a").await });
    }
    until("all have begun", || async { (began.load(SeqCst) == 90).then_some(()) }).await;
    calls.abort_all();
    until("all have ended", || async { (ended.load(SeqCst) == 90).then_some(()) }).await;
    assert_eq!((pings.load(SeqCst), agent.connections()), (0, 1));
}

/// Counts when it goes.
struct Ending(Arc<AtomicUsize>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn an_agent_that_refuses_a_call_is_sent_it_once_more() {
    let world = World::new().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.control_plane.put(record("a", listener.local_addr().unwrap(), Transport::Plaintext));
    let counted = calls.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    counted.fetch_add(1, SeqCst);
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let refused = ask(&operator, "a").await;
    assert_eq!(refused.status().code(), Code::Unavailable);
    assert!(refused.status().message().contains("it turned the call away"), "{:?}", refused.status());
    assert_eq!(calls.load(SeqCst), 2);
}
