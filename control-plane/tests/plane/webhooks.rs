//! Webhooks, at a receiver that answers when it is told to.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::world::{Setup, World, soon};

/// A request that waits for its answer.
struct Delivery {
    headers: BTreeMap<String, String>,
    body: String,
    stream: BufReader<TcpStream>,
}

impl Delivery {
    /// `None` when the connection is closed before its request is complete: its sender was stopped.
    async fn read(stream: TcpStream) -> Option<Self> {
        let (mut stream, mut headers, mut line) = (BufReader::new(stream), BTreeMap::new(), String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.trim_end().split_once(": ") {
                headers.insert(name.to_lowercase(), value.to_owned());
            }
        }
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
        Some(Self { headers, body: String::from_utf8(body).unwrap(), stream })
    }

    async fn answer(mut self, status: &str) {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        self.stream.write_all(answer.as_bytes()).await.unwrap();
    }

    /// Event, delivery id.
    fn named(&self) -> (String, String) {
        (self.headers["x-parallax-event"].clone(), self.headers["x-parallax-delivery"].clone())
    }
}

struct Receiver {
    url: String,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=x", listener.local_addr().unwrap());
        let (arrived, deliveries) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Some(delivery) = Delivery::read(stream).await
                    && arrived.send(delivery).is_err()
                {
                    break;
                }
            }
        });
        Self { url, deliveries }
    }

    async fn next(&mut self) -> Delivery {
        soon(self.deliveries.recv()).await.unwrap()
    }
}

async fn world(on_disk: bool) -> World {
    let patterns = vec![("add", "({ sum: input.a + input.b }) ~> 0.5")];
    World::start_with(Setup { patterns, on_disk, ..Setup::default() }).await
}

async fn start(world: &World, webhook: Json) -> String {
    let body = json!({"patternName": "add", "input": {"a": 1, "b": 2}, "webhook": webhook});
    let accepted = world.http("POST", "/api/executions", &body.to_string()).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(accepted.json()["webhookConfigured"], true);
    accepted.json()["id"].as_str().unwrap().to_owned()
}

async fn finished(world: &World, id: &str) -> Json {
    soon(async {
        loop {
            let run = world.get(&format!("/api/executions/{id}")).await;
            assert!(!run.body.contains("hush"), "the secret is shown to nobody");
            let webhook = run.json()["webhook"].clone();
            if webhook["state"] != "delivering" {
                break webhook;
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_end_of_a_run_is_told_and_signed() {
    let (world, mut receiver) = (world(false).await, Receiver::start().await);
    let id = start(&world, json!({"url": receiver.url, "secret": "hush"})).await;
    let first = receiver.next().await;
    let (kind, delivery) = first.named();
    assert_eq!((kind.as_str(), &first.headers["x-parallax-execution-id"]), ("completed", &id));
    let body: Json = serde_json::from_str(&first.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["result"]), (&json!("completed"), &json!({"sum": 3})), "{body}");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"hush");
    let signature = first.headers["x-parallax-signature"].strip_prefix("sha256=").unwrap();
    let bytes: Vec<u8> = (0..signature.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&signature[i..i + 2], 16).unwrap())
        .collect();
    ring::hmac::verify(&key, first.body.as_bytes(), &bytes).unwrap();
    // A redirect is a failure like any other.
    first.answer("307 Temporary Redirect\r\nlocation: /elsewhere").await;
    let again = receiver.next().await;
    assert_eq!(again.named(), ("completed".to_owned(), delivery));
    again.answer("204 No Content").await;
    let webhook = finished(&world, &id).await;
    assert_eq!(
        (&webhook["state"], &webhook["delivered"], &webhook["failed"]),
        (&json!("delivered"), &json!(1), &json!(0))
    );
    assert!(receiver.deliveries.try_recv().is_err());
}

#[tokio::test]
async fn a_restart_neither_loses_nor_repeats_but_the_one_in_flight() {
    let (world, mut receiver) = (world(true).await, Receiver::start().await);
    let id = start(&world, json!({"url": receiver.url, "events": ["started", "completed"]})).await;
    let first = receiver.next().await;
    assert_eq!(first.named().0, "started");
    assert!(!first.headers.contains_key("x-parallax-signature"), "no secret was given");
    first.answer("200 OK").await;
    let cut = receiver.next().await;
    assert_eq!(cut.named().0, "completed");
    let world = world.restart().await;
    let again = receiver.next().await;
    assert_eq!((again.named(), &again.body), (cut.named(), &cut.body));
    again.answer("200 OK").await;
    let webhook = finished(&world, &id).await;
    assert_eq!((&webhook["state"], &webhook["delivered"]), (&json!("delivered"), &json!(2)));
    assert!(receiver.deliveries.try_recv().is_err());
}

#[tokio::test]
async fn another_plane_delivers_when_the_leader_goes() {
    let (world, mut receiver) = (world(false).await, Receiver::start().await);
    let id = start(&world, json!({"url": receiver.url})).await;
    let cut = receiver.next().await;
    // Only now, so that it is the first that leads.
    let other = world.another().await;
    world.stop().await;
    let again = receiver.next().await;
    assert_eq!(again.named(), cut.named());
    again.answer("200 OK").await;
    assert_eq!(finished(&other, &id).await["state"], "delivered");
}

#[tokio::test]
async fn what_is_no_webhook_is_refused() {
    let world = world(false).await;
    for (webhook, field) in [
        (json!({"url": "ftp://example.com"}), "webhook.url"),
        (json!({"url": "http://a", "secret": ""}), "webhook.secret"),
        (json!({"url": "http://a", "events": ["done"]}), "webhook.events"),
    ] {
        let body = json!({"patternName": "add", "webhook": webhook}).to_string();
        let refused = world.http("POST", "/api/executions", &body).await;
        assert!(refused.problem(400, "PARALLAX-API-001").starts_with(field), "{refused:?}");
    }
    let body = json!({"patternName": "no-such", "webhook": {"url": "http://a"}}).to_string();
    world.http("POST", "/api/executions", &body).await.problem(404, "PARALLAX-PATTERN-001");
    assert_eq!(world.get("/api/executions").await.json()["total"], 0);
}
