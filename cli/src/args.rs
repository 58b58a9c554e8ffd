//! What can be typed.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use parallax_runtime::config::Flag;

/// Control plane and data plane for AI agents.
#[derive(Parser)]
#[command(name = "parallax", version, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// The control plane's HTTP API [default: that of the instance in the data directory]
    #[arg(long, global = true, env = "PARALLAX_API_URL", value_name = "URL")]
    pub api_url: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

/// Where a process finds its files.
#[derive(clap::Args)]
pub struct Place {
    /// Where certificates and stores are kept [default: ~/.parallax]
    #[arg(long, global = true, env = "PARALLAX_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Settings, TOML; `parallax config show` prints all there are
    #[arg(long, global = true, env = "PARALLAX_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A data-plane node, as `parallax data-plane` is
#[derive(Parser)]
#[command(name = "parallax-data-plane", version, max_term_width = 100)]
pub struct DataPlane {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub serve: Serve,
}

#[derive(Subcommand)]
pub enum Command {
    /// Start the planes: both in one process, unless told otherwise
    Start(Start),
    /// Start a control plane alone, one of several replicas perhaps
    ControlPlane(Serve),
    /// Start a data-plane node alone
    DataPlane(Serve),
    /// Stop the instance that runs in the data directory
    Stop,
    /// Whether the planes run, and what they hold
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Run a pattern
    Run(Run),
    /// Look at agents
    #[command(subcommand)]
    Agent(Agent),
    /// Look at patterns, upload them, and check files
    #[command(subcommand)]
    Pattern(Pattern),
    /// Look at runs
    #[command(subcommand)]
    Runs(Runs),
    /// Have patterns run by the clock
    #[command(subcommand)]
    Schedule(Schedule),
    /// Tools of the language that patterns are written in; none needs a control plane
    #[command(subcommand)]
    Prism(Prism),
    /// Look at settings
    #[command(subcommand)]
    Config(Config),
    /// Three agents tell the languages of real sentences, and a pattern decides
    #[cfg(feature = "demo")]
    Demo {
        /// Leave the planes and the agents running until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// One of the demo's agents
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoAgent { engine: String },
}

#[derive(clap::Args, Default)]
pub struct Start {
    /// Return once it is ready, and leave it running
    #[arg(short, long)]
    pub detached: bool,
    #[arg(long, conflicts_with = "data_plane_only")]
    pub control_plane_only: bool,
    #[arg(long)]
    pub data_plane_only: bool,
    #[command(flatten)]
    pub serve: Serve,
}

/// Where to serve, and what.
#[derive(clap::Args, Default)]
pub struct Serve {
    /// HTTP port of the control plane [default: 3000]
    #[arg(long, env = "PORT", value_name = "PORT")]
    pub http: Option<String>,
    /// gRPC port of the control plane [default: 50051]
    #[arg(long, env = "GRPC_PORT", value_name = "PORT")]
    pub grpc: Option<String>,
    /// gRPC port of the data plane [default: 50052]
    #[arg(long, value_name = "PORT")]
    pub data_plane_grpc: Option<String>,
    /// Admin port of the data plane [default: 3001]
    #[arg(long, value_name = "PORT")]
    pub data_plane_admin: Option<String>,
    /// Patterns beside or in place of the embedded ones
    #[arg(long, value_name = "DIR")]
    pub patterns: Option<String>,
}

impl Serve {
    /// As settings.
    #[must_use]
    pub fn flags(&self) -> Vec<Flag<'static>> {
        // A bare port listens on loopback; anything else is an address of its own.
        let addr = |text: &String| match text.parse::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => text.clone(),
        };
        let flags = [
            ("--http", "control_plane.http", self.http.as_ref().map(addr)),
            ("--grpc", "control_plane.grpc", self.grpc.as_ref().map(addr)),
            ("--data-plane-grpc", "data_plane.grpc", self.data_plane_grpc.as_ref().map(addr)),
            ("--data-plane-admin", "data_plane.admin", self.data_plane_admin.as_ref().map(addr)),
            ("--patterns", "control_plane.patterns", self.patterns.clone()),
        ];
        flags.into_iter().filter_map(|(name, key, value)| Some((name, key, value?))).collect()
    }
}

#[derive(clap::Args)]
pub struct Run {
    /// Its name, in any of the three spellings, or a .prism file
    pub pattern: String,
    /// The input, JSON
    #[arg(short, long, value_name = "JSON", conflicts_with = "file")]
    pub input: Option<String>,
    /// A file with the input, JSON; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Exit with 4 if the result's confidence is below this
    #[arg(long, value_name = "0..1", value_parser = parse_confidence)]
    pub min_confidence: Option<f64>,
    /// How long the run may take: 500ms, 30s, 5m
    #[arg(long, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Let what agents have answered to other runs answer this one
    #[arg(long)]
    pub cache_results: bool,
    /// Print what happens, as it happens
    #[arg(short, long)]
    pub watch: bool,
    /// Print the whole execution; with --watch, each event too, one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Agent {
    /// All registered agents
    List {
        #[arg(long)]
        json: bool,
    },
    /// How an agent says it is; exits with 1 unless it says that it is healthy
    Status {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Ask an agent one question, in no run
    Test {
        id: String,
        /// What it is asked to do
        #[arg(short, long, default_value = "test")]
        task: String,
        /// What it does it with, JSON
        #[arg(short, long, value_name = "JSON")]
        data: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Ask many agents one question, in no run; exits with 1 if too few answer, with 4 if none is sure enough
    Ask(Ask),
    /// What the registered agents can do, and which can
    Capabilities {
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("whom").required(true).multiple(true).args(["capability", "agents"]))]
pub struct Ask {
    /// Everybody who has it: the best expected first, 32 of them unless --max-agents says otherwise
    #[arg(long)]
    pub capability: Option<String>,
    /// These, by commas
    #[arg(long = "agent", value_name = "ID,…", value_delimiter = ',')]
    pub agents: Vec<String>,
    /// When it is enough: all, first, quorum (--n), best-effort (--by) or ordered (--confidence)
    #[arg(long, default_value = "all", value_parser = ["all", "first", "quorum", "best-effort", "ordered"])]
    pub mode: String,
    /// So many must answer; those who are not needed any more are cancelled
    #[arg(long, value_name = "ANSWERS")]
    pub n: Option<u32>,
    /// End with what is there by then: 500ms, 30s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub by: Option<Duration>,
    /// Ask one after the other, until one is so sure
    #[arg(long, value_name = "0..1", value_parser = parse_confidence)]
    pub confidence: Option<f64>,
    #[arg(long, value_name = "COUNT")]
    pub max_agents: Option<u32>,
    /// Ask at most so many at the same time
    #[arg(long, value_name = "COUNT")]
    pub max_concurrency: Option<u32>,
    /// What they are asked to do
    #[arg(short, long)]
    pub task: String,
    /// What they do it with, JSON
    #[arg(short, long, value_name = "JSON")]
    pub input: Option<String>,
    /// How long the whole may take: 500ms, 30s, 5m
    #[arg(long, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Pattern {
    /// All patterns
    List {
        #[arg(long)]
        json: bool,
    },
    /// One pattern's script
    Show {
        name: String,
        /// Another than the current one
        #[arg(long)]
        version: Option<String>,
    },
    /// What a pattern needs and does, told without running it: agents, capabilities, calls, steps
    Explain(Explain),
    /// Keep a pattern file in the control plane, as the current version of its pattern
    Upload {
        file: PathBuf,
        /// Replace what is there under the same version
        #[arg(long)]
        overwrite: bool,
    },
    /// All versions of a pattern
    Versions {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Make an earlier upload the current version
    Rollback { name: String, version: String },
    /// Delete what was uploaded under a name, or one version of it
    Delete { name: String, version: Option<String> },
    /// Check pattern files; needs no control plane
    Validate {
        /// A .prism file, or a directory of such
        path: PathBuf,
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
pub struct Explain {
    /// A file if there is one of this name or it ends in .prism; else a pattern of the control plane, or, where none
    /// answers, of those built in
    #[arg(value_name = "NAME|FILE")]
    pub pattern: String,
    /// Print the steps only, as a Mermaid flowchart
    #[arg(long, conflicts_with = "json")]
    pub mermaid: bool,
    /// Print everything
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Runs {
    /// Runs, the newest first
    List {
        #[arg(long, default_value_t = 20)]
        limit: u64,
        /// pending, running, completed, failed or cancelled
        #[arg(long)]
        status: Option<String>,
        #[arg(long)]
        pattern: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// One run with its journal
    Show {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// What happens in a run, as it happens, until it ends
    Watch {
        id: String,
        /// Go on after this event (as `--json` shows their ids)
        #[arg(long)]
        after: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Where a run's time went
    Timeline {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// End a run; the agents that it waits for see their calls cancelled
    Cancel {
        id: String,
        #[arg(long)]
        reason: Option<String>,
    },
    /// Run the same pattern with the same input again
    Retry { id: String },
    /// Do a run again from its journal, asking nobody; exits with 1 if anything differs
    Replay {
        id: String,
        /// Ask anew for this effect and all that follows, in a run of its own
        #[arg(long, value_name = "EFFECT")]
        from: Option<u64>,
        #[arg(long)]
        json: bool,
    },
    /// Where two runs part; exits with 1 if they do
    Diff {
        a: String,
        b: String,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub enum Schedule {
    /// All schedules
    List {
        #[arg(long)]
        json: bool,
    },
    /// Run a pattern at certain times, or every so often
    Create(Box<NewSchedule>),
    /// One schedule
    Show { name: String },
    /// Let no more times come
    Pause { name: String },
    /// Go on with the times from now on
    Resume { name: String },
    /// Run it now
    Trigger { name: String },
    /// Remove a schedule; its runs stay
    Delete { name: String },
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("times").required(true).args(["cron", "every"]))]
pub struct NewSchedule {
    pub name: String,
    pub pattern: String,
    /// Five fields: minute, hour, day of month, month, day of week
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: Option<String>,
    /// Whose clocks cron goes by: an IANA name, like Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron")]
    pub time_zone: Option<String>,
    /// Every so often, from now on: 30s, 15m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub every: Option<Duration>,
    /// The input, JSON
    #[arg(short, long, value_name = "JSON", conflicts_with = "file")]
    pub input: Option<String>,
    /// A file with the input, JSON; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What becomes of times when nothing ran: skip, once (one run for all) or all [default: once]
    #[arg(long, value_parser = ["skip", "once", "all"])]
    pub missed: Option<String>,
    /// While the last run goes on: allow another, or skip it [default: allow]
    #[arg(long, value_parser = ["allow", "skip"])]
    pub overlap: Option<String>,
    /// How long each run may take: 500ms, 30s, 5m
    #[arg(long, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    #[arg(long)]
    pub paused: bool,
}

#[derive(Subcommand)]
pub enum Prism {
    /// Run a file of conformance cases; exits with 1 if one differs
    Test {
        /// A JSON list of programs with what each must give
        file: PathBuf,
    },
    /// Run a program that asks nobody: no agents, patterns or models
    Run(PrismRun),
    /// Try the language out, entry by entry
    Repl,
    /// Bring programs into the one layout
    Fmt(PrismFmt),
    /// The language server that editors start; it speaks over standard input and output
    Lsp,
}

#[derive(clap::Args)]
pub struct PrismFmt {
    /// .prism files, directories of such, or - for standard input, which is printed formatted
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub paths: Vec<PathBuf>,
    /// Change nothing; exit with 1 if a file is not formatted
    #[arg(long)]
    pub check: bool,
}

#[derive(clap::Args)]
pub struct PrismRun {
    /// A .prism file; - for standard input
    pub file: PathBuf,
    /// What the program reads as `input`, JSON
    #[arg(short, long, value_name = "JSON")]
    pub input: Option<String>,
    /// The strict profile: no variables made by assignment, no nulls for missing properties
    #[arg(long)]
    pub strict: bool,
    /// How long it may run: 500ms, 30s, 5m; without this, as long as it takes
    #[arg(long, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Subcommand)]
pub enum Config {
    /// Every setting, its value, and where that comes from
    Show,
}

fn parse_confidence(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|c| (0.0..=1.0).contains(c));
    number.ok_or_else(|| "a confidence is a number from 0 to 1".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a number with its unit: 500ms, 30s, 5m".to_owned();
    let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => number,
        "s" => number.saturating_mul(1_000),
        "m" => number.saturating_mul(60_000),
        _ => return Err(wrong()),
    };
    if millis == 0 { Err("0 is no time at all".to_owned()) } else { Ok(Duration::from_millis(millis)) }
}
