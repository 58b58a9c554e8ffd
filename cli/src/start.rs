//! `parallax start`: the life of a process that serves.

use std::{io::Write, net::SocketAddr, path::Path, pin::Pin, process::Stdio, sync::Arc, time::Duration};

use parallax_control_plane::{Bounds, ControlPlane};
use parallax_data_plane::DataPlane;
use parallax_runtime::{
    config::Loaded,
    env::{Env, System},
    lifecycle::Lifecycle,
    store::Stores,
};
use parallax_security::{Authority, Files, Kind, Plaintext, Tls};
use parallax_telemetry::{admin::Block, init};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use crate::{
    args::{self, Args, Place},
    exit::{Exit, Result},
    instance::{self, Addresses, Owned, authority_dir, local_tls},
    settings::{self, Settings},
};

/// How long the planes may take until they are ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often certificates are looked after: renewed when they are ours, read again when they are not.
const CERTIFICATES: Duration = Duration::from_secs(60);
/// How long telemetry may take to be flushed at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// Which planes a process holds. A program that names [`Role::DATA_PLANE`] alone does not link the other plane.
#[derive(Clone, Copy)]
pub struct Role {
    control_plane: Option<StartControlPlane>,
    pub(crate) data_plane: bool,
}

type StartControlPlane =
    for<'a> fn(&'a Ground<'a>) -> Pin<Box<dyn Future<Output = Result<ControlPlane>> + Send + 'a>>;

impl Role {
    pub const BOTH: Self = Self { data_plane: true, ..Self::CONTROL_PLANE };
    pub const CONTROL_PLANE: Self =
        Self { control_plane: Some(|ground| Box::pin(control_plane(ground))), data_plane: false };
    pub const DATA_PLANE: Self = Self { control_plane: None, data_plane: true };

    pub(crate) fn control_plane(self) -> bool {
        self.control_plane.is_some()
    }
}

/// `parallax start`, to the end of the process's life.
///
/// # Errors
/// Settings, a port, a directory, a certificate or a store that cannot be used.
pub async fn run(args: &Args, start: &args::Start) -> Result {
    let role = match (start.control_plane_only, start.data_plane_only) {
        (true, _) => Role::CONTROL_PLANE,
        (_, true) => Role::DATA_PLANE,
        _ => Role::BOTH,
    };
    if start.detached {
        return detach(&args.place, start, role).await;
    }
    serve(&args.place, &start.serve, role).await
}

/// `parallax control-plane` and `parallax data-plane`, and `parallax start` in the foreground.
///
/// # Errors
/// As [`run`].
pub async fn serve(place: &Place, serve: &args::Serve, role: Role) -> Result {
    let mut loaded = Settings::load(place, &serve.flags())?;
    let telemetry = init(loaded.settings.telemetry()).map_err(Exit::usage)?;
    let mut shutdown = Shutdown::catch()?;
    let delay = loaded.settings.shutdown_delay();
    let mut hangup = catch(SignalKind::hangup())?;
    let planes = Planes::start(loaded.settings.clone(), role).await?;
    print_addresses(&planes.addresses);
    let (ready, mut said) = (planes.ready(), false);
    tokio::pin!(ready);
    // From the first signal on.
    let (mut unready, mut until) = (Vec::new(), None);
    loop {
        tokio::select! {
            () = shutdown.told() => match until {
                Some(_) => break,
                None => {
                    unready = planes.unready();
                    until = Some(Instant::now() + delay);
                    info!("not ready any more; stopping in {} s (shutdown_delay_seconds)", delay.as_secs());
                }
            },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
            () = &mut ready, if !said => {
                said = true;
                say(format_args!("ready (process {})", planes.addresses.pid));
            }
            _ = hangup.recv() => planes.reload(&mut loaded, Settings::load(place, &serve.flags())),
        }
    }
    info!("stopping");
    planes.stop().await;
    drop(unready);
    telemetry.shutdown(FLUSH).map_err(Exit::failed)
}

/// The planes of this process, up and ready.
pub struct Planes {
    pub addresses: Addresses,
    life: Lifecycle,
    drain: Duration,
    reload: Arc<Notify>,
    control_plane: Option<ControlPlane>,
    data_plane: Option<DataPlane>,
    /// Released last.
    _owned: Owned,
}

impl Planes {
    /// Takes the data directory, opens the stores, binds the ports, serves, and waits until all is ready.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn start(settings: Settings, role: Role) -> Result<Self> {
        let owned = Owned::take(&settings.data_dir, role)?;
        let env = System::shared();
        let life = Lifecycle::new();
        let reload = Arc::new(Notify::new());
        let (stores, certificates) =
            (Stores::new(env.clone(), life.clone()), Certificates::open(&settings, env.clone())?);
        let ground =
            Ground { settings: &settings, role, env, life: &life, reload: &reload, stores, certificates };
        let (addresses, control_plane, data_plane) = match planes(&ground).await {
            Ok(started) => started,
            Err(exit) => {
                life.drain(settings.drain()).await;
                return Err(exit);
            }
        };
        owned.announce(&addresses)?;
        let drain = settings.drain();
        Ok(Self { addresses, life, drain, reload, control_plane, data_plane, _owned: owned })
    }

    /// Until the node of this process, if there is one, knows whom it can call.
    fn ready(&self) -> impl Future<Output = ()> + use<> {
        let readiness = self.data_plane.as_ref().map(|plane| plane.readiness().clone());
        async move {
            if let Some(readiness) = readiness {
                readiness.ready().await;
            }
        }
    }

    /// Reads the certificates again, now and not when their time comes; connections keep those they have. Takes
    /// over what of the settings a node can change while it runs, if all of them can be used, and says which cannot.
    fn reload(&self, loaded: &mut Loaded<Settings>, read: Result<Loaded<Settings>>) {
        self.reload.notify_waiters();
        let before = match read {
            Ok(read) => std::mem::replace(loaded, read),
            Err(e) => return warn!("the settings stay as they were: {e}"),
        };
        if let Some(plane) = &self.data_plane {
            let checked = plane.reconfigure(|config| loaded.settings.data_plane.over(config));
            checked.expect("settings are checked when they are read");
        }
        let changed = loaded.origins.iter().filter(|(key, (value, _))| before.origins[*key].0 != *value);
        for (key, (value, origin)) in changed {
            let live = |key: &str| self.data_plane.is_some() && !settings::DataPlane::BOUND.contains(&key);
            match key.strip_prefix("data_plane.").is_some_and(live) {
                true => info!("{key} is {value} from now on ({origin})"),
                false => warn!("{key} is {value} from the next start on ({origin})"),
            }
        }
    }

    /// Says that no plane is ready as long as what it returns is kept.
    fn unready(&self) -> Vec<Block> {
        let control_plane = self.control_plane.as_ref().map(|plane| &plane.readiness);
        let all = control_plane.into_iter().chain(self.data_plane.as_ref().map(DataPlane::readiness));
        all.map(|readiness| readiness.block("stopping")).collect()
    }

    /// Stops accepting, drains, and lets go of the directory.
    pub async fn stop(self) {
        if !self.life.drain(self.drain).await {
            warn!("some work was still going on after {:?}; its journal says how far it came", self.drain);
        }
    }
}

/// What the planes of a process have in common.
struct Ground<'a> {
    settings: &'a Settings,
    role: Role,
    env: Arc<dyn Env>,
    life: &'a Lifecycle,
    reload: &'a Arc<Notify>,
    stores: Stores,
    certificates: Certificates,
}

async fn planes(ground: &Ground<'_>) -> Result<(Addresses, Option<ControlPlane>, Option<DataPlane>)> {
    let mut addresses =
        Addresses { pid: std::process::id(), http: None, grpc: None, data_plane: None, admin: None };
    let (mut control_plane, mut data_plane) = (None, None);
    if let Some(start) = ground.role.control_plane {
        let plane = start(ground).await?;
        (addresses.http, addresses.grpc) = (Some(plane.http), Some(plane.grpc));
        control_plane = Some(plane);
    }
    if ground.role.data_plane {
        let plane = self::data_plane(ground, addresses.grpc).await?;
        (addresses.data_plane, addresses.admin) = (Some(plane.grpc_addr()), Some(plane.admin_addr()));
        data_plane = Some(plane);
    }
    if let Some(plane) = &control_plane
        && !plane.ready(PATIENCE).await
    {
        let waiting = plane.readiness.pending().join(", ");
        return Err(Exit::failed(format!("not ready after {PATIENCE:?}; still waiting for: {waiting}")));
    }
    Ok((addresses, control_plane, data_plane))
}

async fn control_plane(ground: &Ground<'_>) -> Result<ControlPlane> {
    let Ground { settings, role, env, life, reload, stores, certificates } = ground;
    let own = &settings.control_plane;
    let config = parallax_control_plane::Config {
        grpc: own.grpc,
        http: own.http,
        local: own.local,
        patterns: Some(&own.patterns).filter(|dir| !dir.is_empty()).map(Into::into),
        bounds: Bounds {
            run_timeout: Duration::from_secs(own.run_timeout_seconds),
            call_timeout: Duration::from_secs(own.call_timeout_seconds),
            runs_at_once: own.max_runs.get(),
            runs_waiting: own.max_queued_runs,
            owner_ttl: Duration::from_secs(own.owner_ttl_seconds.get()),
        },
        advertise: Some(own.advertise.clone()).filter(|advertise| !advertise.is_empty()),
        private_webhooks: own.local || own.webhook_private_networks,
        nodes_wanted: usize::from(role.data_plane),
    };
    let tls = certificates.load(Kind::ControlPlane, "control-plane", life, reload)?;
    let url = |store| settings.store_url(store);
    let registry = stores.registry(&url(&settings.stores.registry)).await.map_err(Exit::usage)?;
    let runs = stores.runs(&url(&settings.stores.runs)).await.map_err(Exit::usage)?;
    ControlPlane::start(config, tls, env.clone(), registry, runs, life).await.map_err(Exit::usage)
}

/// Follows the control plane of this process, if there is one at `beside`.
async fn data_plane(ground: &Ground<'_>, beside: Option<SocketAddr>) -> Result<DataPlane> {
    let Ground { settings, role, env, life, reload, stores, certificates } = ground;
    let own = &settings.data_plane;
    let named = own.control_plane.split(',').map(str::trim).filter(|named| !named.is_empty());
    let mut control_planes: Vec<_> = named.map(str::to_owned).collect();
    if control_planes.is_empty() {
        // This process's, one that runs in the same directory, or where the settings have it.
        let running = || instance::running(&settings.data_dir).iter().find_map(|found| found.grpc);
        let grpc = beside.or_else(running).unwrap_or(settings.control_plane.grpc);
        control_planes.push(grpc.to_string());
    }
    let defaults = own.over(parallax_data_plane::Config::default());
    let alone = !role.control_plane();
    let node_id = if alone { format!("data-plane-{}", env.id()) } else { "data-plane".to_owned() };
    let tls = certificates.load(Kind::DataPlane, &node_id, life, reload)?;
    // A certificate that was given names the node.
    let node_id = tls.identity().id;
    let config = parallax_data_plane::Config {
        node_id,
        grpc: own.grpc,
        admin: own.admin,
        advertise: Some(own.advertise.clone()).filter(|advertise| !advertise.is_empty()),
        control_planes,
        plaintext: if settings.control_plane.local { Plaintext::Loopback } else { Plaintext::Refuse },
        workers: match own.workers {
            0 if alone => defaults.workers,
            0 => 1,
            workers => workers,
        },
        drain: settings.drain(),
        ..defaults
    };
    let url = settings.store_url(&settings.stores.confidence);
    let confidence = stores.confidence(&url).await.map_err(Exit::usage)?;
    DataPlane::bind(config, tls, env.clone(), confidence, life).await.map_err(Exit::usage)
}

/// Where a process's certificates come from.
enum Certificates {
    Given { files: Files, env: Arc<dyn Env> },
    Local { authority: Arc<Authority>, data_dir: std::path::PathBuf, env: Arc<dyn Env> },
}

impl Certificates {
    fn open(settings: &Settings, env: Arc<dyn Env>) -> Result<Self> {
        let given = &settings.tls;
        let empty =
            [&given.ca, &given.cert, &given.key].iter().filter(|path| path.as_os_str().is_empty()).count();
        match empty {
            0 => {
                let files = Files { ca: given.ca.clone(), cert: given.cert.clone(), key: given.key.clone() };
                Ok(Self::Given { files, env })
            }
            3 => {
                let dir = authority_dir(&settings.data_dir);
                let authority = Arc::new(Authority::open(&dir, env.system_time()).map_err(Exit::usage)?);
                let data_dir = settings.data_dir.clone();
                // The operator's own, so that commands need not write into a directory that they only read.
                local_tls(&authority, &data_dir, Kind::Operator, OPERATOR, env.system_time())
                    .map_err(Exit::usage)?;
                Ok(Self::Local { authority, data_dir, env })
            }
            _ => Err(Exit::usage("settings tls.ca, tls.cert and tls.key: give all three or none")),
        }
    }

    /// Loads, and keeps them fresh as long as the process lives: now and then, and when told to.
    fn load(&self, kind: Kind, id: &str, life: &Lifecycle, reload: &Arc<Notify>) -> Result<Tls> {
        let (tls, env) = match self {
            Self::Given { files, env } => (Tls::load(files.clone(), env.system_time()), env.clone()),
            Self::Local { authority, data_dir, env } => {
                (local_tls(authority, data_dir, kind, id, env.system_time()), env.clone())
            }
        };
        let tls = tls.map_err(Exit::usage)?;
        let (kept, id, reload) = (tls.clone(), id.to_owned(), reload.clone());
        let renew = match self {
            Self::Given { .. } => None,
            Self::Local { authority, data_dir, .. } => Some((authority.clone(), data_dir.clone())),
        };
        life.spawn_until_stopped("certificates", async move {
            loop {
                // Late or told to, it is the same.
                _ = tokio::time::timeout(CERTIFICATES, reload.notified()).await;
                let now = env.system_time();
                let renewed = match &renew {
                    Some((authority, data_dir)) => local_tls(authority, data_dir, kind, &id, now).map(drop),
                    None => Ok(()),
                };
                match renewed.and_then(|()| kept.reload(now)) {
                    Ok(true) => info!("certificates were replaced"),
                    Ok(false) => {}
                    Err(e) => warn!("certificates cannot be renewed, the former stay in use: {e}"),
                }
            }
        });
        Ok(tls)
    }
}

/// The id in the certificate that local commands use.
pub const OPERATOR: &str = "cli";

fn catch(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Exit::failed(format!("signals cannot be caught: {e}")))
}

/// SIGINT and SIGTERM, which end nothing by themselves any more.
pub struct Shutdown {
    interrupt: Signal,
    terminate: Signal,
}

impl Shutdown {
    /// Catches them from now on.
    ///
    /// # Errors
    /// Signals that cannot be caught.
    pub fn catch() -> Result<Self> {
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Resolves at the next of them.
    pub async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The same command without `-d`, on its own, until it is ready.
async fn detach(place: &Place, start: &args::Start, role: Role) -> Result {
    let data_dir = Settings::load(place, &start.serve.flags())?.settings.data_dir;
    if instance::is_occupied(&data_dir, role) {
        return Err(instance::occupied(&data_dir));
    }
    let log_file = data_dir.join(if role.control_plane() { "parallax.log" } else { "data-plane.log" });
    let unusable = |e| instance::unusable(&data_dir, &e);
    instance::make_private(&data_dir).map_err(unusable)?;
    let log = std::fs::File::create(&log_file).map_err(unusable)?;
    let program = std::env::current_exe().map_err(Exit::failed)?;
    let own_args = std::env::args_os().skip(1).filter(|arg| arg != "-d" && arg != "--detached");
    let mut command = std::process::Command::new(program);
    command.args(own_args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = tokio::process::Command::from(command).spawn().map_err(Exit::failed)?;
    let up = async {
        loop {
            // Not what a killed process has left there.
            let running = instance::running(&data_dir);
            if let Some(own) = running.into_iter().find(|found| Some(found.pid) == child.id()) {
                return Ok(own);
            }
            if let Ok(Some(_)) = child.try_wait() {
                return Err(complaint(&log_file));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, up).await {
        Ok(Ok(addresses)) => {
            print_addresses(&addresses);
            match (role.control_plane(), addresses.admin) {
                // It may have to wait for its control plane.
                (false, Some(admin)) => say(format_args!(
                    "started (process {}); http://{admin}/readyz says when it is ready",
                    addresses.pid
                )),
                _ => say(format_args!("ready (process {})", addresses.pid)),
            }
            Ok(())
        }
        Ok(Err(message)) => Err(Exit::usage(message)),
        Err(_) => Err(Exit::failed(format!("not ready after {PATIENCE:?}; see {}", log_file.display()))),
    }
}

fn complaint(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The complaint is the last thing that a process says, over however many lines.
    let last =
        format!("\n{text}").rsplit_once("\nparallax: ").map(|(_, complaint)| complaint.trim_end().to_owned());
    last.unwrap_or_else(|| format!("it ended at once; see {}", log.display()))
}

fn print_addresses(addresses: &Addresses) {
    let line = |what: &str, scheme: &str, addr: Option<std::net::SocketAddr>| {
        if let Some(addr) = addr {
            say(format_args!("{what:<14}{scheme}{addr}"));
        }
    };
    line("HTTP API", "https://", addresses.http);
    line("control plane", "grpcs://", addresses.grpc);
    line("data plane", "grpcs://", addresses.data_plane);
    line("metrics", "http://", addresses.admin);
}

fn say(line: std::fmt::Arguments<'_>) {
    // Whoever started us may have closed the pipe by now.
    writeln!(std::io::stdout(), "{line}").ok();
}
