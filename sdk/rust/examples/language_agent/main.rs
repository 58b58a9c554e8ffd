//! An agent that identifies the language of a text: `cargo run -p parallax-sdk --example language_agent --
//! --engine whatlang|lingua|langdetect`. One engine per process; start several.

mod engines;

use clap::Parser;
use engines::{Kind, LanguageAgent};

#[derive(Parser)]
struct Args {
    /// whatlang, lingua or langdetect
    #[arg(long, default_value_t = Kind::Whatlang)]
    engine: Kind,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let agent = LanguageAgent::open(Args::parse().engine).map_err(|e| e.to_string())?;
    parallax_sdk::serve(agent).await?;
    Ok(())
}
