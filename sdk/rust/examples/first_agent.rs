use parallax_sdk::{Answer, Error, Task, agent, serve};

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt().init();
    serve(agent("greeter").capability("greet").answer(|task: Task| async move {
        let name = task.text("name")?;
        Answer::new(format!("Hello, {name}!"), 0.9)
    }))
    .await
}
